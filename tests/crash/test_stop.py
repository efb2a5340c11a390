"""SIGTERM, a second signal, and what the next worker finds."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.testing import DevServer, Fault, Kind
from tests.crash.processes import Night


@pytest.fixture
async def server() -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.mark.parametrize("mode", ["poll", "stream"])
async def test_sigterm_leaves_fifty_runs_to_the_next_worker(
    tmp_path: Path, server: DevServer, mode: str
) -> None:
    night = Night(tmp_path, server, mode)
    night.enqueue(*(f"job {n} [steps=2 tokens=60 delay=0.1]" for n in range(50)))
    with night.worker(ORCHESTRATOR_WORKER__DRAIN_TIMEOUT="5") as first:
        await night.until(lambda: night.states() == {"running": 50}, what="fifty running")
        first.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert await night.ended(first, within=10) == 0
        assert time.monotonic() - began < 6
    assert night.states() == {"running": 50}
    assert night.sql("SELECT count(*) FROM jobs WHERE worker_id IS NOT NULL") == [(0,)]
    assert server.stats.stops == []
    with night.worker("--once") as second:
        assert await night.ended(second, within=60) == 0
    assert night.states() == {"completed": 50}
    assert night.posts() == [1] * 50


async def test_a_drain_lets_posts_in_flight_answer(tmp_path: Path, server: DevServer) -> None:
    server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=2.0))
    night = Night(tmp_path, server)
    night.enqueue(*(f"job {number}" for number in range(12)))
    with night.worker() as first:
        await night.until(lambda: len(night.posts()) == 8, what="eight POSTs in flight")
        first.send_signal(signal.SIGTERM)
        assert await night.ended(first) == 0
    assert night.states().get("in_doubt") is None
    assert night.states()["queued"] == 4
    assert night.posts() == [1] * 8


async def test_a_post_that_outlasts_the_drain_is_in_doubt(
    tmp_path: Path, server: DevServer
) -> None:
    server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=60.0))
    night = Night(tmp_path, server)
    night.enqueue("slow")
    with night.worker(ORCHESTRATOR_WORKER__DRAIN_TIMEOUT="1") as first:
        await night.until(lambda: len(night.posts()) == 1, what="the POST")
        first.send_signal(signal.SIGTERM)
        assert await night.ended(first, within=5) == 0
    server.faults.clear()
    with night.worker("--once") as second:
        assert await night.ended(second) == 3
    assert night.states() == {"in_doubt": 1}
    assert night.posts() == [1]


async def test_a_second_signal_ends_the_worker_at_once(tmp_path: Path, server: DevServer) -> None:
    server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=60.0))
    night = Night(tmp_path, server)
    night.enqueue("slow")
    with night.worker() as worker:
        await night.until(lambda: len(night.posts()) == 1, what="the POST")
        worker.send_signal(signal.SIGTERM)
        await night.until(lambda: "asked_to_stop" in night.logs(), what="the first signal")
        worker.send_signal(signal.SIGTERM)
        assert await night.ended(worker, within=5) == 128 + signal.SIGTERM


async def test_an_outage_in_the_middle_fails_nothing(tmp_path: Path, server: DevServer) -> None:
    night = Night(tmp_path, server)
    night.enqueue(*(f"job {n} [steps=1 tokens=20 delay=0.02]" for n in range(150)))
    with night.worker() as worker:
        await night.until(lambda: night.states().get("completed", 0) >= 30, what="thirty completed")
        outage = server.faults.add("proxy-502", route="*")
        await night.until(
            lambda: (
                night.sql("SELECT reason FROM gates WHERE closed_at IS NOT NULL") == [("outage",)]
            ),
            what="the gate closed",
        )
        await night.until(
            lambda: night.sql("SELECT probes FROM gates")[0][0] >= 1, what="the first probe"
        )
        sent = sum(night.posts())
        await night.until(
            lambda: night.sql("SELECT probes FROM gates")[0][0] >= 3, what="three probes"
        )
        assert sum(night.posts()) == sent
        server.faults.remove(outage)
        await server.refuse()
        await night.until(
            lambda: night.sql("SELECT probes FROM gates")[0][0] >= 4, what="a refused probe"
        )
        await server.accept()
        await night.until(
            lambda: set(night.states()) <= {"completed", "in_doubt"}, 100, "everything at rest"
        )
        worker.send_signal(signal.SIGTERM)
        assert await night.ended(worker) == 0
    assert night.states().get("in_doubt", 0) <= 8
    assert "failed" not in night.states()
    assert max(night.posts()) == 1
