"""Streams at awkward moments: what a break, a refusal and a departure teach."""

from __future__ import annotations

import pytest

from orchestrator.testing import Fault, Kind
from orchestrator.worker import leaving

from .harness import Bench, eventually

STREAM = {"follow": {"mode": "stream"}}
AUTO = {"follow": {"mode": "auto"}}


async def test_once_ends_with_a_run_that_outlived_a_break_after_its_stream_had_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream breaks, is taken up and finishes; only then is the break found survived."""
    monkeypatch.setattr(leaving, "SURVIVED_S", 0.8)
    bench.server.faults.add("drop", chunks=5, times=1)
    bench.server.faults.add("cut", chunks=None, after=0.3)
    (job_id,) = await bench.enqueue('[text="Done." tail=2]')
    assert await bench.once(bench.settings(**STREAM)) == 0
    await bench.assert_completed(job_id, "Done.")
    assert (await bench.detail(job_id, "stream.leaving_learnt"))["run"] == "survived"
    assert (await bench.gate())["breaks_survived"] == 1


async def test_refused_connections_prove_nothing_about_leaving(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "SURVIVED_S", 0.1)
    bench.server.faults.add("cancel-on-leave")
    bench.server.faults.add(Fault(kind=Kind.CLOSE, route="stream"))
    (job_id,) = await bench.enqueue('[first=2 text="Done."]')
    assert await bench.once(bench.settings(**AUTO)) == 0
    await bench.assert_completed(job_id, "Done.")
    assert len(bench.server.stats.requests("stream")) >= 2
    gate = await bench.gate()
    assert (gate["leaving"], gate["breaks_survived"]) == ("unknown", 0)
    assert "stream.leaving_learnt" not in await bench.events(job_id)


async def test_a_stream_that_was_left_is_remembered_for_the_next_worker(bench: Bench) -> None:
    bench.server.faults.add("cancel-on-leave")
    (job_id,) = await bench.enqueue("[steps=2 tool_time=30]")
    settings = bench.settings(**STREAM, worker={"drain_timeout": 0.5})
    async with bench.working(settings):
        await eventually(lambda: opened(bench), lambda: "an open stream")
    job = await bench.job(job_id)
    assert (job.state, job.worker_id, job.stream_opened_at) == ("running", None, None)
    assert job.stream_left_at is not None
    assert await bench.once(bench.settings(**AUTO)) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind) == ("failed", "cancelled_by_disconnect")
    assert (await bench.gate())["leaving"] == "unsafe"


async def test_a_cancellation_by_our_death_is_told_by_whoever_settles_it(bench: Bench) -> None:
    """The second worker finds out why the run was cancelled, and dies before it settles it."""
    bench.server.faults.add("cancel-on-leave")
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="chat", delay=2.0))
    (job_id,) = await bench.enqueue("[no_message steps=2 tool_time=inf]")
    async with bench.dying(bench.settings(**STREAM)):
        await bench.until(job_id, lambda job: job.stream_opened_at is not None)
        await eventually(lambda: opened(bench), lambda: "an open stream")
    async with bench.dying(bench.settings(**STREAM)):
        await bench.until_event(job_id, "stream.leaving_learnt")
    assert (await bench.job(job_id)).state == "running"
    bench.server.faults.clear()
    assert await bench.once(bench.settings(**STREAM)) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind) == ("failed", "cancelled_by_disconnect")


async def opened(bench: Bench) -> bool:
    return bench.server.stats.open_streams > 0


async def test_breaks_at_the_same_moment_are_all_blamed(bench: Bench) -> None:
    bench.server.faults.add("cancel-on-leave")
    bench.server.faults.add("drop", chunks=5)
    job_ids = await bench.enqueue(
        *(f"{number} [first=1 steps=2 tool_time=5]" for number in range(4))
    )
    assert await bench.once(bench.settings(**AUTO)) == 3
    kinds = [(await bench.job(job_id)).error_kind for job_id in job_ids]
    assert kinds == ["cancelled_by_disconnect"] * 4
    assert bench.server.stats.stops == []
