from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
from hypothesis import given

from orchestrator.store.verbs.turns import Turns, rank

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def later(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


weights = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 5), min_size=1)


@given(weights, st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_shares_are_as_the_weights_however_the_slots_come(
    weighed: dict[str, int], deals: list[int]
) -> None:
    turns = Turns()
    got: Counter[str] = Counter()
    for slots in deals:
        got.update(turns.deal(weighed, slots, {}))
    assert got.total() == sum(deals)
    for name, weight in weighed.items():
        due = sum(deals) * weight / sum(weighed.values())
        assert abs(got[name] - due) <= len(weighed)


@given(weights, st.integers(0, 30), st.dictionaries(st.sampled_from("abcde"), st.integers(0, 9)))
def test_no_queue_gets_more_than_its_room_and_no_slot_is_lost(
    weighed: dict[str, int], slots: int, room: dict[str, int]
) -> None:
    dealt = Turns().deal(weighed, slots, room)
    assert all(0 < number <= room.get(name, slots) for name, number in dealt.items())
    possible = sum(min(room.get(name, slots), slots) for name in weighed)
    assert sum(dealt.values()) == min(slots, possible)


def test_one_slot_at_a_time_goes_round() -> None:
    turns = Turns()
    order = [next(iter(turns.deal({"a": 1, "b": 1, "c": 1}, 1, {}))) for _ in range(6)]
    assert order == ["a", "b", "c"] * 2


def test_a_queue_that_had_no_jobs_saves_nothing_up() -> None:
    turns = Turns()
    for _ in range(50):
        turns.deal({"a": 1}, 1, {})
    assert turns.deal({"a": 1, "b": 1}, 10, {}) == {"a": 5, "b": 5}


def test_what_is_dealt_on_a_copy_is_not_remembered() -> None:
    weights = {"a": 3, "b": 1, "c": 1}
    turns, once = Turns(), Turns()
    for _ in range(7):
        turns.copied().deal(weights, 2, {})  # a transaction that was rolled back
        assert turns.deal(weights, 2, {}) == once.deal(weights, 2, {})


def test_higher_priority_comes_first_and_then_the_longer_wait() -> None:
    assert rank(1, later(0), 1800) < rank(0, later(0), 1800) < rank(0, later(1), 1800)
    assert rank(5, later(0), 0) < rank(4, later(-9999), 0) < rank(4, later(-9998), 0)


def test_a_step_of_priority_is_worth_its_wait() -> None:
    waited = rank(0, later(-31), 1800)
    assert rank(2, later(0), 1800) < waited < rank(1, later(0), 1800)


@given(st.lists(st.tuples(st.integers(-9, 9), st.floats(-1e4, 1e4)), min_size=2))
def test_with_steps_no_job_waits_for_ever(jobs: list[tuple[int, float]]) -> None:
    """Whatever comes later than the highest priority's head start stands behind all of these."""
    ranks = [rank(priority, later(minutes), 1800) for priority, minutes in jobs]
    spread = 18 * 30
    newest = max(minutes for _, minutes in jobs)
    assert all(old < rank(9, later(newest + spread + 1), 1800) for old in ranks)
    for one, other in itertools.pairwise(sorted(ranks)):
        assert one <= other
