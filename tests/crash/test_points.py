"""A worker dies at each point at which its state and the world's differ; another goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from orchestrator.worker.points import POINTS, Act, Point

from .case import night_of, side_by_side
from .conftest import Rooms
from .forks import Zygote
from .scenarios import SCENARIO_OF, SCENARIOS, may_stand

HANDFUL = 4
"""Acts whose points one test takes, side by side."""

HANDFULS = [tuple(Act)[first : first + HANDFUL] for first in range(0, len(Act), HANDFUL)]


def test_each_act_has_a_scenario() -> None:
    assert set(SCENARIO_OF) == set(Act)
    assert set(SCENARIO_OF.values()) <= set(SCENARIOS)


@pytest.mark.parametrize("acts", HANDFULS, ids="-".join)
async def test_a_kill_at_each_point(rooms: Rooms, zygote: Zygote, acts: Sequence[Act]) -> None:
    await side_by_side(
        partial(kill_and_recover, rooms, zygote, dialect, point)
        for point in POINTS
        for dialect in ("sqlite", "postgresql")
        if point.act in acts
    )


async def kill_and_recover(rooms: Rooms, zygote: Zygote, dialect: str, point: Point) -> None:
    scenario = SCENARIOS[SCENARIO_OF[point.act]]
    async with night_of(rooms, zygote, dialect, str(point), scenario) as case:
        stood = await case.die_at(point)
        assert stood in may_stand(point, scenario, dialect)
        await case.recover()
        case.check(stood)
