"""The worker that comes after a dead one dies too, and the one after it.

In each chain every death is one more in a recovery: what the dead before it left is the state in
which a worker starts, and each point that a recovering worker passes has its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from orchestrator.worker.points import Act, Point, Side

from .case import night_of, side_by_side
from .conftest import Rooms
from .forks import Zygote
from .scenarios import AT_REST, CLAIMED, LIVE, QUEUED, SCENARIOS, SENT, left_by_successor, standing


def before(act: Act) -> Point:
    return Point(Side.BEFORE, act)


def after(act: Act) -> Point:
    return Point(Side.AFTER, act)


def around(*acts: Act) -> tuple[Point, ...]:
    return tuple(Point(side, act) for act in acts for side in Side)


ARRIVAL = around(Act.REGISTER, Act.BEAT, Act.RESCUE)
"""What each worker passes before it takes up work."""

CHAINS: Mapping[str, tuple[str, tuple[Point, ...]]] = {
    # name: (scenario, the points at which one worker after the other dies)
    "queued": (
        "stream",
        (before(Act.CLAIM), *ARRIVAL, *around(Act.CLAIM), before(Act.POST), before(Act.MARK)),
    ),
    "claimed": ("stream", (after(Act.CLAIM), *ARRIVAL, before(Act.CLAIM))),
    "sent": ("stream", (after(Act.MARK), *ARRIVAL)),
    **{
        f"claimed, then {point}": ("stream", (after(Act.CLAIM), point))
        for point in (
            after(Act.MARK),
            *around(Act.BODY),
            after(Act.POST),
            before(Act.ANSWER),
            after(Act.ANSWER),
        )
    },
    # It is due again after a back-off only: a claim before that takes nothing.
    "put back": (
        "unmarked",
        (after(Act.PUT_BACK), *ARRIVAL, before(Act.CLAIM), before(Act.MARK)),
    ),
    "live, then called off": (
        "held",
        (
            after(Act.ANSWER),
            *ARRIVAL,
            # Nothing comes behind the saved chunks of a run that hangs: who lived on might save.
            *around(Act.OPEN_STREAM, Act.STREAM, Act.CHUNKS, Act.CHECKPOINT),
            *around(Act.STATUS, Act.PROGRESS),
            *around(Act.CHAT, Act.NOTE_STOP, Act.STOP, Act.COLLECT, Act.SETTLE),
        ),
    ),
    "over": (
        "stream",
        (
            before(Act.COLLECT),
            *ARRIVAL,
            *around(Act.STATUS, Act.COLLECT, Act.SETTLE),
        ),
    ),
    "given back": ("drain", (after(Act.RELEASE), *ARRIVAL, *around(Act.STATUS, Act.SETTLE))),
    "without a chat": (
        "held without a chat",
        (*around(Act.FIND_CHAT, Act.LEARN_CHAT), before(Act.CHAT)),
    ),
    "shut out": ("gate", around(Act.GATE, Act.PROBE)),
    "canary": ("canary", (*around(Act.CANARY), *ARRIVAL, *around(Act.CANARY))),
}

CALLED_OFF = before(Act.CHAT)
"""From here on a person wants the run to end."""


def test_the_chains_begin_in_each_state_that_a_death_leaves() -> None:
    left = {standing(points[0], SCENARIOS[name]) for name, points in CHAINS.values()}
    assert left == {QUEUED, CLAIMED, SENT, LIVE}


async def test_those_that_come_after_die_too(files: Rooms, zygote: Zygote) -> None:
    await side_by_side(
        partial(die_one_after_the_other, files, zygote, name, scenario, points)
        for name, (scenario, points) in sorted(CHAINS.items(), key=lambda item: -len(item[1][1]))
    )


async def die_one_after_the_other(
    files: Rooms, zygote: Zygote, name: str, scenario: str, points: Sequence[Point]
) -> None:
    async with night_of(files, zygote, "sqlite", name, SCENARIOS[scenario]) as case:
        stood = ""
        for point, expected in expectations(points, scenario):
            if point == CALLED_OFF:
                case.call_off()
            stood = await case.die_at(point)
            assert stood == expected, point
        if stood not in AT_REST:
            await case.recover()
        case.check(stood)


def expectations(points: Sequence[Point], name: str) -> Iterator[tuple[Point, str]]:
    """Each point with how the row must stand once a worker died there."""
    scenario = SCENARIOS[name]
    stands = ""
    for point in points:
        stands = left_by_successor(stands, point, scenario) if stands else standing(point, scenario)
        yield point, stands
