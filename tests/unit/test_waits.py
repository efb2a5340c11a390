from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_base

from orchestrator.worker.waits import LONGEST_RETRY_AFTER_S, Backoff, Growing, retry_after_of


@dataclass(frozen=True)
class Answer:
    retry_after: float | None


def state(number: int = 1, answer: object = None) -> RetryCallState:
    found = RetryCallState(AsyncRetrying(), None, (), {})
    found.attempt_number = number
    found.set_result(answer)
    return found


def lowest() -> float:
    return 0.0


def highest() -> float:
    return 1.0


# --- Backoff ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "full"), [(1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (99, 300)]
)
def test_a_back_off_doubles_up_to_its_bound(number: int, full: float) -> None:
    assert Backoff(first=2, most=300, rand=highest).seconds(number) == full
    assert Backoff(first=2, most=300, rand=lowest).seconds(number) == full / 2


def test_a_wish_to_be_left_alone_is_a_lower_bound() -> None:
    backoff = Backoff(first=2, most=300, rand=highest)
    assert backoff.seconds(1, 17.0) == 17.0
    assert backoff.seconds(9, 17.0) == 300
    assert backoff.seconds(1, 0.0) == 2
    assert backoff.seconds(1, 1e9) == LONGEST_RETRY_AFTER_S


@given(st.integers(-5, 10**9), st.none() | st.floats(0, 1e12), st.floats(0, 1))
def test_a_back_off_is_always_bounded(number: int, asked: float | None, rand: float) -> None:
    wait = Backoff(first=0.2, most=5, rand=lambda: rand).seconds(number, asked)
    assert 0.1 <= wait <= LONGEST_RETRY_AFTER_S


def test_a_back_off_is_a_wait_of_tenacity() -> None:
    wait: wait_base = Backoff(first=1, most=60, rand=highest)
    assert wait(state(3)) == 4
    assert wait(state(3, Answer(30.0))) == 30


# --- Growing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "wait"),
    [(0, 1), (5, 1), (7, 2), (15, 6), (60, 6), (300, 6), (600, 12), (1500, 30), (9999, 30)],
)
def test_a_growing_wait_rises_stays_and_rises_with_the_age(age: float, wait: float) -> None:
    for rand, factor in ((lowest, 0.95), (highest, 1.0)):
        growing = Growing(age=lambda: age, bounds=lambda: (1, 30), rand=rand)
        assert growing(state()) == pytest.approx(wait * factor)


def looks(length: float, rand: Callable[[], float]) -> tuple[int, float]:
    """How often a run of this length is asked about, and how late its end is known."""
    number, now = 1, 0.0
    growing = Growing(age=lambda: now, bounds=lambda: (1, 30), rand=rand)
    while now < length:
        now += growing(state())
        number += 1
    return number, now - length


@given(st.floats(4, 5) | st.floats(300, 10_000), st.randoms(use_true_random=False))
def test_an_end_is_known_within_a_second_or_a_fiftieth_of_the_run(
    length: float, random: Random
) -> None:
    _, late = looks(length, random.random)
    assert late <= max(1.0, length / 50)


@given(st.floats(300, 10_000))
def test_runs_from_five_minutes_on_are_asked_about_less_than_every_five_seconds(
    length: float,
) -> None:
    number, _ = looks(length, lambda: 0.5)
    assert number <= 1 + math.ceil(length / 5)


def test_a_growing_wait_honours_a_wish() -> None:
    growing = Growing(age=lambda: 0, bounds=lambda: (1, 30), rand=lowest)
    assert growing(state(answer=Answer(17))) == 17
    assert growing(state(answer=Answer(1e9))) == LONGEST_RETRY_AFTER_S


def test_bounds_may_change_in_between() -> None:
    bounds = [(1.0, 30.0), (10.0, 60.0)]
    growing = Growing(age=lambda: 0, bounds=bounds.pop, rand=highest)
    assert [growing(state()), growing(state())] == [10, 1]


def test_a_failed_call_asked_for_nothing() -> None:
    failed = state()
    failed.set_exception((OSError, OSError("reset"), None))
    assert retry_after_of(failed) is None
    assert retry_after_of(state(answer=Answer(None))) is None
    assert retry_after_of(state(answer=Answer(3))) == 3
