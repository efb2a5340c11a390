from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.worker.pace import WINDOW_S, Pace


def begin(pace: Pace, number: int) -> None:
    for _ in range(number):
        pace.begin()


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_no_bound_is_no_bound() -> None:
    pace = Pace(per_minute=None, now=Now())
    begin(pace, 1000)
    assert pace.room(7) == 7


def test_room_comes_back_a_minute_later() -> None:
    now = Now()
    pace = Pace(per_minute=3, now=now)
    assert pace.room(9) == 3
    begin(pace, 2)
    assert pace.room(9) == 1
    now.seconds += WINDOW_S / 2
    pace.begin()
    assert pace.room(9) == 0
    now.seconds += WINDOW_S / 2
    assert pace.room(9) == 2
    assert pace.room(1) == 1
    now.seconds += WINDOW_S
    assert pace.room(9) == 3


def test_asking_for_room_takes_none() -> None:
    pace = Pace(per_minute=3, now=Now())
    assert [pace.room(3), pace.room(3)] == [3, 3]
    assert pace.room(0) == 0


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 40), st.integers(0, 6)), max_size=30))
def test_no_minute_ever_sees_more(per_minute: int, wishes: list[tuple[float, int]]) -> None:
    now = Now()
    pace = Pace(per_minute=per_minute, now=now)
    begun: list[float] = []
    for pause, wanted in wishes:
        now.seconds += pause
        room = pace.room(wanted)
        assert 0 <= room <= wanted
        begin(pace, room)
        begun += [now.seconds] * room
    for start in begun:
        assert sum(start <= moment < start + WINDOW_S for moment in begun) <= per_minute
