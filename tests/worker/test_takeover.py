"""One writer: takeovers, stolen leases, forgotten rows, and workers thought dead."""

from __future__ import annotations

import anyio
import pytest

from orchestrator.testing import Fault, Kind
from orchestrator.worker import duties

from .harness import Bench, eventually, over

THIEF = "00000000-0000-4000-8000-000000000000"


async def add_worker(bench: Bench, worker_id: str = THIEF) -> None:
    """Give a worker that is alive elsewhere a row."""
    await bench.execute(
        "INSERT INTO workers (id, host, pid, version, api_origin, key_fingerprint, started_at,"
        " last_heartbeat_at) SELECT :id, 'elsewhere', 1, version, api_origin, key_fingerprint,"
        " '2020-01-01 00:00:00.000000', '2999-01-01 00:00:00.000000' FROM workers LIMIT 1",
        id=worker_id,
    )


async def steal(bench: Bench, job_id: int) -> None:
    """Take a job's lease, as a worker that thinks its holder dead does."""
    await add_worker(bench)
    await bench.execute(
        "UPDATE jobs SET lease = lease + 1, worker_id = :thief WHERE id = :id",
        thief=THIEF,
        id=job_id,
    )


@pytest.mark.parametrize("mode", ["poll", "stream"])
async def test_a_worker_that_lost_its_lease_writes_nothing(bench: Bench, mode: str) -> None:
    (job_id,) = await bench.enqueue('[text="Done." first=inf commit]')
    async with bench.working(bench.settings(follow={"mode": mode})) as worker:
        await bench.until_state(job_id, "running")
        await steal(bench, job_id)
        stolen = await bench.job(job_id)
        events = await bench.events(job_id)
        bench.release(stolen)

        async def dropped() -> bool:
            return not worker.holdings.live

        await eventually(dropped, lambda: "the old worker's end")
        assert await bench.job(job_id) == stolen
        assert await bench.messages(job_id) == []
        assert await bench.sql("SELECT * FROM stream_checkpoints") == []
        assert await bench.events(job_id) == events
    assert bench.server.stats.stops == []
    assert bench.all_posts() == 1


@pytest.mark.sqlite_only  # the trigger is in SQLite's words
async def test_a_lease_stolen_before_the_mark_sends_nothing(bench: Bench) -> None:
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=0.6))
    (job_id,) = await bench.enqueue("hello")
    # The thief waits in the database: whatever is claimed changes hands in the same transaction.
    await bench.execute(
        "CREATE TRIGGER thief AFTER UPDATE OF state ON jobs WHEN NEW.state = 'submitting' BEGIN"
        " UPDATE jobs SET lease = lease + 1 WHERE id = NEW.id; END"
    )
    async with bench.working() as worker:
        await bench.until_state(job_id, "submitting")

        async def dropped() -> bool:
            return not worker.holdings.submitting

        await eventually(dropped, lambda: "the old worker's end")
    assert bench.all_posts() == 0
    job = await bench.job(job_id)
    assert (job.state, job.sent_at, job.attempt) == ("submitting", None, 0)


async def test_ids_that_come_back_after_the_lease_was_lost_repair_a_job_in_doubt(
    bench: Bench,
) -> None:
    prompt = '[text="Repaired." provision=2]'
    (job_id,) = await bench.enqueue(prompt)
    async with bench.working():
        await bench.until(job_id, lambda job: job.sent_at is not None)
        await bench.execute(
            "UPDATE jobs SET lease = lease + 1, state = 'in_doubt', error_kind = 'in_doubt',"
            " error = 'its worker died', worker_id = NULL WHERE id = :id",
            id=job_id,
        )
        await bench.until_settled(job_id)
    job = await bench.assert_completed(job_id, "Repaired.")
    detail = await bench.detail(job_id, "submit.late_answer")
    assert (detail["run_id"], detail["chat_id"]) == (job.run_id, job.chat_id)
    assert job.attempt == 1


async def test_ids_that_come_back_too_late_are_in_the_events(bench: Bench) -> None:
    prompt = "[provision=2]"
    (job_id,) = await bench.enqueue(prompt)
    async with bench.working():
        await bench.until(job_id, lambda job: job.sent_at is not None)
        await bench.execute(
            "UPDATE jobs SET lease = lease + 1, state = 'failed', error_kind = 'run_lost',"
            " error = 'given up', worker_id = NULL, finished_at = updated_at WHERE id = :id",
            id=job_id,
        )
        before = await bench.job(job_id)
        await bench.until_event(job_id, "submit.late_answer")
    assert await bench.job(job_id) == before
    (run,) = list(bench.server.runs)
    assert (await bench.detail(job_id, "submit.late_answer"))["run_id"] == run.order.run_id


# --- forgotten rows, and what the dead leave ----------------------------------------------------


async def left_running(bench: Bench, prompt: str) -> int:
    """Make a job whose run goes on while nobody holds it."""
    (job_id,) = await bench.enqueue(prompt)
    async with bench.working(bench.settings(follow={"mode": "poll"})):
        await bench.until_state(job_id, "running")
    job = await bench.job(job_id)
    assert (job.state, job.worker_id) == ("running", None)
    return job_id


async def hand_over(bench: Bench, job_id: int, worker_id: str, *, sent: bool | None) -> None:
    """Make a row say that a worker holds the job; `sent` None leaves its state as it is."""
    changes = "worker_id = :worker"
    if sent is not None:
        changes += ", state = 'submitting'"
    if sent:
        changes += ", attempt = 1, sent_at = updated_at"
    statement = f"UPDATE jobs SET {changes} WHERE id = :id"  # noqa: S608 - our own words
    assert await bench.execute(statement, worker=worker_id, id=job_id) == 1


@pytest.mark.parametrize("whose", ["own", "dead"])
async def test_rows_without_a_task_are_mended(
    bench: Bench, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "SELF_CHECK_EVERY_S", 0.1)
    ran = await left_running(bench, '[text="Remembered." first=inf]')
    unsent, sent = await bench.enqueue('unsent [text="Sent once."]', "sent")
    settings = bench.settings(follow={"mode": "poll"})
    async with bench.making(settings) as worker, anyio.create_task_group() as tasks:
        holder = worker._tools.who.worker_id if whose == "own" else THIEF
        if whose == "dead":
            await add_worker(bench)
            await bench.execute("UPDATE workers SET stopped_at = started_at")
        await hand_over(bench, ran, holder, sent=None)
        await hand_over(bench, unsent, holder, sent=False)
        await hand_over(bench, sent, holder, sent=True)
        tasks.start_soon(worker.run)
        await bench.until_state(sent, "in_doubt")
        await bench.until(unsent, lambda job: job.state != "submitting")
        await bench.hurry()
        bench.release(await bench.job(ran))
        await bench.until_settled(ran, unsent)
        worker.drain()
    await bench.assert_completed(ran, "Remembered.")
    await bench.assert_completed(unsent, "Sent once.")
    job = await bench.job(sent)
    assert (job.state, job.error_kind) == ("in_doubt", "in_doubt")
    assert bench.posts("sent") == 0


async def test_a_worker_that_was_declared_dead_goes_on(bench: Bench) -> None:
    slow, running = await bench.enqueue(
        'slow [provision=2 text="Late."]', 'running [first=inf text="On."]'
    )
    async with bench.working():
        job = await bench.until_state(running, "running")
        await bench.until(slow, lambda job: job.sent_at is not None)
        await bench.execute("UPDATE workers SET stopped_at = started_at")
        bench.release(job)
        await bench.until_settled(slow, running)

        async def revived() -> bool:
            return bool(await bench.sql("SELECT id FROM workers WHERE stopped_at IS NULL"))

        await eventually(revived, lambda: "the worker's row alive again")
    await bench.assert_completed(slow, "Late.")
    await bench.assert_completed(running, "On.")


async def test_a_silent_worker_elsewhere_is_judged_after_a_while(bench: Bench) -> None:
    job_id = await left_running(bench, '[text="Adopted." first=inf]')
    await add_worker(bench)
    await bench.execute(
        "UPDATE workers SET last_heartbeat_at = started_at WHERE id = :id", id=THIEF
    )
    await hand_over(bench, job_id, THIEF, sent=None)
    settings = bench.settings(worker={"heartbeat": 0.2, "dead_after": 0.8})
    started = anyio.current_time()
    async with bench.working(settings):
        await bench.until_event(job_id, "run.adopted")
        assert anyio.current_time() - started >= 0.8, "after an outage all others look dead"
        bench.release(await bench.job(job_id))
        await bench.until_settled(job_id)
    await bench.assert_completed(job_id, "Adopted.")


async def test_a_worker_that_beats_keeps_its_jobs(bench: Bench) -> None:
    job_id = await left_running(bench, "[hang]")
    await add_worker(bench)
    await hand_over(bench, job_id, THIEF, sent=None)
    assert await bench.once(bench.settings(worker={"heartbeat": 0.1, "dead_after": 0.3})) == 0
    assert (await bench.job(job_id)).worker_id == THIEF


async def test_a_run_of_another_origin_is_left_to_workers_with_its_key(bench: Bench) -> None:
    job_id = await left_running(bench, "[hang]")
    await bench.execute("UPDATE jobs SET api_origin = 'https://elsewhere.example'")
    assert await bench.once() == 0
    job = await bench.job(job_id)
    assert (job.state, job.worker_id) == ("running", None)


async def test_a_successor_collects_a_run_that_is_over(bench: Bench) -> None:
    job_id = await left_running(bench, '[text="Over." first=inf]')
    job = await bench.job(job_id)
    bench.release(job)
    run = bench.server.runs.get(job.run_id or "")
    assert run is not None
    await over(run)
    assert await bench.once() == 0
    await bench.assert_completed(job_id, "Over.")


async def test_the_clocks_of_a_run_go_on_with_its_next_worker(bench: Bench) -> None:
    job_id = await left_running(bench, "[hang]")
    await bench.execute("UPDATE jobs SET run_timeout = 100, followed_s = 99.8")
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 3
    assert (await bench.job(job_id)).error_kind == "timed_out"


async def test_a_cancellation_asked_for_while_nobody_follows_is_heard(bench: Bench) -> None:
    job_id = await left_running(bench, "[hang]")
    async with bench.orchestrator() as orc:
        await orc.cancel(job_id)
    assert await bench.once() == 3
    job = await bench.job(job_id)
    assert (job.state, job.run_status) == ("cancelled", "cancelled")
