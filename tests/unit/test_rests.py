"""How long a run is left alone between two looks at its status."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.verdict import Stopping
from orchestrator.worker.poll import RESTS, Poller
from orchestrator.worker.progress import Sign

WAIT_S = 30.0


@pytest.mark.parametrize(
    ("circumstance", "waits"),
    [
        ({}, RESTS),
        ({"moves": False}, 1),
        ({"streaming": False}, 1),
        ({"in_question": True}, 1),
        ({"answered": False}, 1),
        ({"stopping": Stopping.CANCELLED}, 1),
        ({"run_timeout": 80.0}, 2),
        ({"run_timeout": 10.0}, 1),
    ],
    ids=str,
)
async def test_a_run_is_left_alone_while_its_stream_moves(
    circumstance: dict[str, Any], waits: int
) -> None:
    given = {
        "moves": True,
        "streaming": True,
        "in_question": False,
        "answered": True,
        "stopping": None,
        "run_timeout": 3600.0,
        **circumstance,
    }
    now = 100.0
    tools: Any = SimpleNamespace(
        settings=SimpleNamespace(
            follow=SimpleNamespace(
                poll_min=1.0,
                poll_max=WAIT_S,
                run_timeout=given["run_timeout"],
                stall_timeout=5400.0,
            )
        ),
        clock=SimpleNamespace(boottime=lambda: now),
    )
    job: Any = SimpleNamespace(run_timeout=None, stall_timeout=None, followed_s=0.0, quiet_s=0.0)
    poller = Poller(
        tools=tools,
        gate=cast(Any, None),
        heartbeat=cast(Any, None),
        job=job,
        leaving=cast(Any, SimpleNamespace(in_question=given["in_question"])),
        streaming=lambda: bool(given["streaming"]),
    )
    poller.progress = replace(
        poller.progress, seen_at=now if given["answered"] else None, stopping=given["stopping"]
    )
    slept: list[float] = []

    async def sleep(seconds: float) -> bool:
        nonlocal now
        slept.append(seconds)
        now += seconds
        if given["moves"]:
            poller.observe(Sign.NEWS)
        return False

    poller._sleep = sleep  # type: ignore[method-assign] # time passes at once
    await poller._rest(WAIT_S)
    assert slept == [WAIT_S] * waits
