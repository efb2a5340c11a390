"""Small plans made by hand: what seeds found once, and where rare bugs show themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .plan import Act, Ambush, Plan, PlannedJob, plan

_QUIET = replace(plan(0), workers=1, acts=(), ambushes=(), limits={}, calm_at=60.0)


def _scene(
    seeds: int, *jobs: dict[str, Any], follow: dict[str, Any] | None = None, **changes: Any
) -> tuple[Plan, ...]:
    """The same plan under a few seeds, which move its moments a little."""
    settings = {
        **_QUIET.settings,
        "worker": {**_QUIET.settings["worker"], "dead_after": 15.0, "concurrency": 20},
        "submit": {**_QUIET.settings["submit"], "on_in_doubt": "hold", "concurrency": 4},
        "follow": {**_QUIET.settings["follow"], "poll_max": 5.0, **(follow or {})},
    }
    planned = tuple(
        PlannedJob(0.0, {**options, "prompt": f"job {number}. [{options['prompt']}]"})
        for number, options in enumerate(jobs, start=1)
    )
    scene = replace(_QUIET, settings=settings, jobs=planned, **changes)
    return tuple(replace(scene, seed=seed) for seed in range(seeds))


LATE_STOP = _scene(
    6,
    {"prompt": "hang", "run_timeout": 25.0},
    acts=(
        Act(24.0, "database partition", {"slot": 0}),
        Act(44.5, "database partition ends", {"slot": 0}),
    ),
)
"""The database is away between the decision to stop a run and the note of it."""

TAKEN_OVER = _scene(
    2,
    {"prompt": "steps=3 tool_time=14 delay=0.2"},
    follow={"mode": "stream"},
    workers=2,
    ambushes=(Ambush("accepts", 1, 8.0, "crash", 90.0),),
)
"""A worker dies while it reads a stream, and another goes on."""

UNKNOWN_FOR_A_WHILE = _scene(
    2,
    {"prompt": "tokens=15 delay=2"},
    acts=(Act(8.0, "api fault", {"fault": "run-not-found", "seconds": 9.0}),),
)
"""The status route does not know a run, and then it does."""

ROLLED_BACK = _scene(
    2,
    *({"prompt": "delay=0.3"} for _ in range(6)),
    acts=(Act(0.0, "shaky database", {"undone": 0.4}), Act(20.0, "shaky database ends", {})),
)
"""Transactions fail at their very end."""

SLOW_TO_STOP = _scene(2, {"prompt": "hang stop_time=12", "run_timeout": 12.0})
"""A run that was told to stop goes on for some seconds."""

TOLD_TO_STOP = _scene(1, {"prompt": "hang", "run_timeout": 12.0}, settled_by_s=240.0)
"""A run is cancelled because its time ran out; whoever misses that polls to the bound."""

SCENES: Mapping[str, tuple[Plan, ...]] = {
    "fence_ignored": LATE_STOP,
    "successor_from_the_start": TAKEN_OVER,
    "failed_commit_believed": ROLLED_BACK,
    "unknown_run_is_lost": UNKNOWN_FOR_A_WHILE,
    "stop_is_the_end": SLOW_TO_STOP,
    "polls_for_ever": TOLD_TO_STOP,
}
"""By the planted bug that shows itself there."""
