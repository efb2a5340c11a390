"""Cancel, expire and retry: what people and policies do to jobs in each state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from orchestrator.errors import NotAllowed
from orchestrator.testing import Fault, Kind

from .harness import Bench, canonical, eventually

PROMPT = 'hello [text="Hi there."]'


@asynccontextmanager
async def silent_listener() -> AsyncIterator[str]:
    """An https URL where connections are taken, held open for a second, and closed."""

    async def hold(stream: SocketStream) -> None:
        async with stream:
            with anyio.move_on_after(1):
                async for _ in stream:
                    pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, not Django's
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, hold)
        yield f"https://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


async def test_a_queued_job_is_cancelled_at_once(bench: Bench) -> None:
    (job_id,) = await bench.enqueue(PROMPT)
    async with bench.orchestrator() as orc:
        job = await orc.cancel(job_id)
        assert (job.state, job.error_kind, job.attempt) == ("cancelled", "cancelled", 0)
        with pytest.raises(NotAllowed):
            await orc.cancel(job_id)
    assert await bench.once() == 0
    assert bench.all_posts() == 0


async def test_a_job_that_connects_is_cancelled_before_it_is_sent(bench: Bench) -> None:
    (job_id,) = await bench.enqueue(PROMPT)
    # A TLS handshake with a plain server that never says anything does not come to its end.
    async with silent_listener() as url:
        bench.base_url = url
        async with bench.orchestrator() as orc, bench.working():
            await bench.until_state(job_id, "submitting")
            job = await orc.cancel(job_id)
            assert (job.state, job.error_kind) == ("cancelled", "cancelled")
            assert job.sent_at is None
    assert (await bench.job(job_id)).attempt == 0


async def test_a_job_that_was_sent_is_cancelled_when_its_answer_comes(bench: Bench) -> None:
    prompt = "[provision=0.5 hang]"
    (job_id,) = await bench.enqueue(prompt)
    async with bench.orchestrator() as orc, bench.working():
        await bench.until(job_id, lambda job: job.sent_at is not None)
        job = await orc.cancel(job_id)
        assert job.state == "submitting"
        assert job.cancel_requested_at is not None
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("cancelled", "cancelled", "cancelled")
    assert [stop.run_id for stop in bench.server.stats.stops] == [job.run_id]
    assert bench.posts(prompt) == 1


@pytest.mark.parametrize("mode", ["poll", "stream"])
async def test_a_running_job_is_stopped_and_settled_by_its_end(bench: Bench, mode: str) -> None:
    (job_id,) = await bench.enqueue("[steps=2 hang=2]")
    async with bench.orchestrator() as orc, bench.working(bench.settings(follow={"mode": mode})):
        await bench.until_state(job_id, "running")
        job = await orc.cancel(job_id)
        assert job.state == "running"
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("cancelled", "cancelled", "cancelled")
    run = bench.server.runs.get(job.run_id or "")
    assert run is not None
    assert run.status == "cancelled"
    assert [stop.stopped for stop in bench.server.stats.stops] == [True]


async def test_a_run_that_wins_the_race_against_its_stop_completes(bench: Bench) -> None:
    prompt = '[first=inf text="Too late." stop_time=30]'
    (job_id,) = await bench.enqueue(prompt)
    async with bench.orchestrator() as orc, bench.working():
        job = await bench.until_state(job_id, "running")
        await orc.cancel(job_id)
        await eventually(lambda: asked_to_stop(bench), lambda: "a request to stop")
        bench.release(job)
        await bench.until_settled(job_id)
    await bench.assert_completed(job_id, "Too late.")


async def asked_to_stop(bench: Bench) -> bool:
    return bool(bench.server.stats.requests("stop"))


async def test_no_stop_is_sent_while_the_chat_points_elsewhere(bench: Bench) -> None:
    """The stop route stops whatever the chat points at."""
    prompt = '[no_stream first=2 text="Went on."]'
    (job_id,) = await bench.enqueue(prompt)
    async with bench.orchestrator() as orc, bench.working():
        await bench.until_state(job_id, "running")
        await orc.cancel(job_id)
        await bench.until_settled(job_id)
    assert bench.server.stats.requests("stop") == []
    await bench.assert_completed(job_id, "Went on.")


async def test_a_run_that_cannot_be_told_to_stop_is_settled_as_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.worker.progress.STOP_PATIENCE_S", 0.1)
    monkeypatch.setattr("orchestrator.worker.progress.STOP_EVERY_S", 0.2)
    monkeypatch.setattr("orchestrator.worker.progress.UNTOLD_PATIENCE_S", 1.0)
    (job_id,) = await bench.enqueue("[no_stream hang]", run_timeout=0.3, max_attempts=3)
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("failed", "timed_out", "running")
    assert "it could not be told to; it may still go on" in (job.error or "")
    assert bench.server.stats.requests("stop") == []
    events = await bench.events(job_id)
    assert (events.count("stop.withheld"), events.count("stop.sent")) == (1, 0)
    why = {"why": "timed_out", "reason": "its chat points at no run"}
    assert await bench.detail(job_id, "stop.withheld") == why
    assert bench.all_posts() == 1


async def test_a_chat_that_cannot_be_read_for_a_while_only_delays_the_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.worker.progress.STOP_PATIENCE_S", 0.3)
    monkeypatch.setattr("orchestrator.worker.progress.STOP_EVERY_S", 0.2)
    bench.server.faults.add("server-error", route="chat", times=4)
    (job_id,) = await bench.enqueue("[hang]", run_timeout=0.3)
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 3
    job = await bench.job(job_id)
    assert (job.error_kind, job.run_status) == ("timed_out", "cancelled")
    assert [stop.stopped for stop in bench.server.stats.stops] == [True]
    reason = (await bench.detail(job_id, "stop.withheld"))["reason"]
    assert reason == "its chat cannot be read"


async def test_a_stop_that_fails_is_sent_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.worker.progress.STOP_EVERY_S", 0.2)
    bench.server.faults.add("proxy-502", route="stop", times=2)
    (job_id,) = await bench.enqueue("[hang]")
    async with bench.orchestrator() as orc, bench.working():
        await bench.until_state(job_id, "running")
        await orc.cancel(job_id)
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind) == ("cancelled", "cancelled")
    assert len(bench.server.stats.requests("stop")) == 3


async def test_a_job_cancelled_while_it_goes_back_to_the_queue_is_swept(bench: Bench) -> None:
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=0.4, times=1))
    bench.server.faults.add("rate-limited", route="start", times=1)
    (job_id,) = await bench.enqueue(PROMPT)
    async with bench.orchestrator() as orc, bench.working():
        await bench.until(job_id, lambda job: job.sent_at is not None)
        await orc.cancel(job_id)
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("cancelled", "cancelled", 0)
    assert bench.posts(PROMPT) == 1


async def test_a_job_expires_while_it_waits(bench: Bench) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    (job_id,) = await bench.enqueue(PROMPT, queue="slow", expires_at=soon)
    (later,) = await bench.enqueue(PROMPT, expires_at=soon + timedelta(hours=1))
    async with bench.orchestrator() as orc:
        await orc.pause("slow")
    async with bench.working():
        expired, completed = await bench.until_settled(job_id, later)
    assert (expired.state, expired.error_kind) == ("failed", "expired")
    assert expired.attempt == 0
    assert completed.state == "completed"
    assert bench.all_posts() == 1


# --- retry ------------------------------------------------------------------------------------


async def test_a_policy_starts_a_second_attempt_after_a_failed_run(bench: Bench) -> None:
    prompt = "[steps=2 fail=2]"
    (job_id,) = await bench.enqueue(prompt, max_attempts=2)
    async with bench.working(bench.settings(follow={"mode": "poll"})):
        await bench.until_event(job_id, "job.retried")
        waiting = await bench.job(job_id)
        assert (waiting.state, waiting.attempt, waiting.run_id) == ("queued", 1, None)
        assert "the run failed" in (waiting.error or "")
        await bench.hurry()
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("failed", "run_failed", 2)
    (old,) = await bench.sql("SELECT * FROM attempts")
    assert (old["attempt"], old["state"], old["error_kind"]) == (1, "failed", "run_failed")
    assert old["run_status"] == "failed"
    assert old["run_id"] != job.run_id
    assert bench.posts(prompt) == 2
    for attempt, run_id in ((1, old["run_id"]), (2, job.run_id)):
        run = bench.server.runs.get(run_id or "")
        assert run is not None
        (kept,) = await bench.messages(job_id, attempt)
        assert canonical(kept.message) == canonical(run.message)
    rows = await bench.sql("SELECT job_id, attempt, run_id FROM runs ORDER BY attempt")
    assert [row["run_id"] for row in rows] == [old["run_id"], job.run_id]


async def test_retry_on_names_the_kinds_that_start_again(bench: Bench) -> None:
    failed, stalled, bad = await bench.enqueue_rows(
        {"prompt": "[fail=0]", "max_attempts": 3, "retry_on": ["stalled"]},
        {"prompt": "[hang]", "max_attempts": 2, "retry_on": ["stalled"], "stall_timeout": 0.3},
        {"prompt": "[finish=length]", "max_attempts": 3},
    )
    async with bench.working(bench.settings(follow={"mode": "poll"})):
        await bench.until_event(stalled, "job.retried")
        await bench.hurry()
        jobs = await bench.until_settled(failed, stalled, bad)
    assert [(job.error_kind, job.attempt) for job in jobs] == [
        ("run_failed", 1),
        ("stalled", 2),
        ("incomplete", 1),
    ]


async def test_a_run_that_would_not_stop_is_never_started_again_by_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.worker.progress.STOP_PATIENCE_S", 0.3)
    prompt = "[hang stop_time=60]"
    (job_id,) = await bench.enqueue(prompt, max_attempts=5, run_timeout=0.3)
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("failed", "timed_out", 1)
    assert bench.posts(prompt) == 1


@pytest.mark.parametrize("prompt", [PROMPT, "[fail=0]"])
async def test_a_person_retries_a_settled_job(bench: Bench, prompt: str) -> None:
    (job_id,) = await bench.enqueue(prompt)
    await bench.once()
    first = await bench.job(job_id)
    assert first.state.settled
    async with bench.orchestrator() as orc:
        job = await orc.retry(job_id)
        assert (job.state, job.error_kind, job.run_id, job.result_text) == (
            "queued",
            None,
            None,
            None,
        )
    await bench.once()
    job = await bench.job(job_id)
    assert (job.state, job.attempt) == (first.state, 2)
    assert job.run_id != first.run_id
    (old,) = await bench.sql("SELECT attempt, state, run_id, result_text FROM attempts")
    assert old == {
        "attempt": 1,
        "state": first.state,
        "run_id": first.run_id,
        "result_text": first.result_text,
    }
    assert bench.posts(prompt) == 2


async def test_a_person_cancels_a_job_that_waits_for_its_second_attempt(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[fail=0]", max_attempts=2)
    async with bench.orchestrator() as orc, bench.working():
        await bench.until_event(job_id, "job.retried")
        job = await orc.cancel(job_id)
    assert (job.state, job.error_kind) == ("cancelled", "cancelled")
    assert bench.all_posts() == 1


async def test_a_live_job_cannot_be_retried(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[tail=inf]")
    async with bench.orchestrator() as orc, bench.working():
        job = await bench.until_state(job_id, "running")
        with pytest.raises(NotAllowed):
            await orc.retry(job_id)
        bench.release(job)
        await bench.until_settled(job_id)
    assert bench.all_posts() == 1
