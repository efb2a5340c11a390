"""SIGTERM, a second signal, and what the next worker finds."""

from __future__ import annotations

import os
import signal
import time

import pytest

from orchestrator.testing import Fault, Kind

from .crew import CrewNight

RUNS = 50
DRAIN_S = 8
"""Fifty streams are left after four fifths of it, and written down in the last: on a busy machine
that takes a second."""


@pytest.mark.parametrize(("mode", "silence"), [("poll", 6), ("stream", 14)])
async def test_sigterm_leaves_fifty_runs_to_the_next_worker(
    night: CrewNight, mode: str, silence: int
) -> None:
    night.change(FOLLOW__MODE=mode, FOLLOW__POLL_MIN="0.5", FOLLOW__POLL_MAX="1")
    # The silence outlasts the drain, in which an open stream may end by itself.
    night.enqueue(*(f"job {n} [steps=1 tokens=10 silence={silence}]" for n in range(RUNS)))
    with night.fork(WORKER__DRAIN_TIMEOUT=str(DRAIN_S)) as first:
        await night.until(lambda: night.states() == {"running": RUNS}, "fifty running")
        os.kill(first, signal.SIGTERM)
        began = time.monotonic()
        assert await night.ended(first, within=20) == 0
        assert time.monotonic() - began < DRAIN_S + 1
    assert night.states() == {"running": RUNS}
    assert night.sql("SELECT count(*) FROM jobs WHERE worker_id IS NOT NULL") == [(0,)]
    assert night.server.stats.stops == []
    with night.fork(once=True) as second:
        assert await night.ended(second, within=60) == 0
    assert night.states() == {"completed": RUNS}
    assert night.posts() == [1] * RUNS


async def test_a_drain_lets_posts_in_flight_answer(night: CrewNight) -> None:
    night.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=2.0))
    night.enqueue(*(f"job {number}" for number in range(12)))
    with night.fork() as first:
        await night.until(lambda: len(night.posts()) == 8, "eight POSTs in flight")
        os.kill(first, signal.SIGTERM)
        assert await night.ended(first) == 0
    assert night.states().get("in_doubt") is None
    assert night.states()["queued"] == 4
    assert night.posts() == [1] * 8


async def test_a_post_that_outlasts_the_drain_is_in_doubt(night: CrewNight) -> None:
    night.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=60.0))
    night.enqueue("slow")
    with night.fork(WORKER__DRAIN_TIMEOUT="1") as first:
        await night.until(lambda: len(night.posts()) == 1, "the POST")
        os.kill(first, signal.SIGTERM)
        assert await night.ended(first, within=5) == 0
    night.server.faults.clear()
    with night.fork(once=True) as second:
        assert await night.ended(second) == 3
    assert night.states() == {"in_doubt": 1}
    assert night.posts() == [1]


async def test_a_second_signal_ends_the_worker_at_once(night: CrewNight) -> None:
    """The command itself, as a service manager starts it."""
    night.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=60.0))
    night.enqueue("slow")
    with night.worker() as worker:
        await night.until(lambda: len(night.posts()) == 1, "the POST")
        worker.send_signal(signal.SIGTERM)
        await night.until(lambda: "asked_to_stop" in night.logs(), "the first signal")
        worker.send_signal(signal.SIGTERM)
        await night.until(lambda: worker.poll() is not None, "the end", within=5)
        assert worker.returncode == 128 + signal.SIGTERM


async def test_an_outage_in_the_middle_fails_nothing(night: CrewNight) -> None:
    def probes() -> int:
        return int(night.sql("SELECT probes FROM gates")[0][0])

    night.enqueue(*(f"job {n} [steps=1 tokens=10 delay=0.03]" for n in range(200)))
    with night.fork() as worker:
        await night.until(lambda: night.states().get("completed", 0) >= 5, "five completed")
        outage = night.server.faults.add("proxy-502", route="*")
        await night.until(
            lambda: (
                night.sql("SELECT reason FROM gates WHERE closed_at IS NOT NULL") == [("outage",)]
            ),
            "the gate closed",
        )
        await night.until(lambda: probes() >= 1, "the first probe")
        sent = sum(night.posts())
        await night.until(lambda: probes() >= 3, "three probes")
        assert sum(night.posts()) == sent
        await night.server.refuse()
        night.server.faults.remove(outage)
        refused_from = probes()
        await night.until(lambda: probes() > refused_from, "a refused probe")
        await night.server.accept()
        await night.until(
            lambda: set(night.states()) <= {"completed", "in_doubt"}, "everything at rest", 100
        )
        os.kill(worker, signal.SIGTERM)
        assert await night.ended(worker) == 0
    assert night.states().get("in_doubt", 0) <= 8 + 2, "those in flight, and two trials"
    assert "failed" not in night.states()
    assert max(night.posts()) == 1
