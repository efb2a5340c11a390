"""Jobs at awkward moments: called off, deleted, malformed or expired while work goes on."""

from __future__ import annotations

import os
import sys

import anyio
import pytest

from orchestrator.testing import Fault, Kind
from orchestrator.worker import progress
from orchestrator.worker.points import Act, Point, Side

from .harness import BOUND_S, Bench, eventually, over

POLL = {"follow": {"mode": "poll"}}


# --- called off -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["resubmit", "hold"])
async def test_a_job_called_off_before_its_answer_was_lost_is_never_sent_again(
    bench: Bench, policy: str
) -> None:
    prompt = '[provision=0.4 text="Hi there."]'
    bench.server.faults.add("lost-answer", times=1)
    (job_id,) = await bench.enqueue(prompt, on_in_doubt=policy)
    async with bench.orchestrator() as orc, bench.working():
        await bench.until(job_id, lambda job: job.sent_at is not None)
        assert (await orc.cancel(job_id)).state == "submitting"
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("cancelled", "cancelled", 1)
    assert "may have started a run" in (job.error or "")
    assert "submit.in_doubt" in await bench.events(job_id)
    assert bench.posts(prompt) == 1


async def test_a_job_called_off_while_its_end_is_read_gets_no_further_attempt(
    bench: Bench,
) -> None:
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="chat", delay=0.5, times=1))
    (job_id,) = await bench.enqueue("[fail=1]", max_attempts=2)
    passed: set[Point] = set()
    bench.reach = passed.add

    async def its_end_is_read() -> bool:
        return Point(Side.BEFORE, Act.COLLECT) in passed

    async with bench.orchestrator() as orc, bench.working(bench.settings(**POLL)):
        await eventually(its_end_is_read, lambda: "the look for the message")
        asked = await orc.cancel(job_id)
        assert (asked.state, asked.cancel_requested_at is None) == ("running", False)
        job = await bench.until(job_id, lambda job: job.state != "running")
    assert (job.state, job.error_kind, job.attempt) == ("failed", "run_failed", 1)
    assert "job.retried" not in await bench.events(job_id)
    assert bench.all_posts() == 1


async def test_a_job_called_off_in_an_outage_is_stopped_when_the_api_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STOP_PATIENCE_S", 1.0)
    (job_id,) = await bench.enqueue("[hang]")
    async with bench.orchestrator() as orc, bench.working(bench.settings(**POLL)):
        await bench.until(job_id, lambda job: job.run_status == "running")
        bench.server.faults.add("proxy-502", route="status")
        await orc.cancel(job_id)
        asked_at = anyio.current_time()

        async def longer_than_its_patience() -> bool:
            return anyio.current_time() - asked_at > progress.STOP_PATIENCE_S

        await eventually(longer_than_its_patience, lambda: "a long outage")
        assert bench.server.stats.stops == []
        bench.server.faults.clear()
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("cancelled", "cancelled", "cancelled")
    assert [stop.stopped for stop in bench.server.stats.stops] == [True]


# --- rows of other programs -------------------------------------------------------------------


async def insert_latin_1(bench: Bench, column: str) -> int:
    """Enqueue a job with SQL, one column in bytes that are no UTF-8, as an old script does."""
    await bench.execute("INSERT INTO jobs (prompt) VALUES ('[text=\"Odd.\"]')")
    (row,) = await bench.sql("SELECT id FROM jobs")
    await bench.execute(f"UPDATE jobs SET {column} = CAST(x'22636166e922' AS TEXT)")  # noqa: S608 - our own words
    return int(row["id"])


@pytest.mark.parametrize("column", ["prompt", "model"])
async def test_a_row_that_is_not_utf8_is_rejected_and_stops_nothing(
    bench: Bench, column: str
) -> None:
    bad = await insert_latin_1(bench, column)
    (good,) = await bench.enqueue('[text="Done."]')
    assert await bench.once() == 3
    await bench.assert_completed(good, "Done.")
    job = await bench.job(bad)
    assert (job.state, job.error_kind, job.sent_at) == ("failed", "rejected", None)
    assert bench.all_posts() == 1
    assert await listed(bench) == {str(bad): "failed", str(good): "completed"}


@pytest.mark.parametrize("column", ["queue", "batch", "metadata", "unique_key"])
async def test_what_is_not_utf8_and_is_not_sent_stops_nothing(bench: Bench, column: str) -> None:
    odd = await insert_latin_1(bench, column)
    (good,) = await bench.enqueue('[text="Done."]')
    assert await bench.once() == 0
    await bench.assert_completed(good, "Done.")
    await bench.assert_completed(odd, "Odd.")
    assert await listed(bench) == {str(odd): "completed", str(good): "completed"}


async def listed(bench: Bench) -> dict[str, str]:
    """The ids and states that `orchestrator jobs` prints."""
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [sys.executable, "-m", "orchestrator", "jobs", "--csv"],
            env={**os.environ, "ORCHESTRATOR_DATABASE__URL": bench.url},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    head, *rows = (line.split(",") for line in done.stdout.decode().splitlines())
    at_id, at_state = head.index("id"), head.index("state")
    return {row[at_id]: row[at_state] for row in rows}


async def test_a_row_whose_retry_on_is_no_list_is_rejected(bench: Bench) -> None:
    await bench.execute(
        "INSERT INTO jobs (prompt, retry_on, max_attempts) VALUES ('x [fail=1]', '5', 2)"
    )
    assert await bench.once(bench.settings(**POLL)) == 3
    (row,) = await bench.sql("SELECT state, error_kind, error FROM jobs")
    assert (row["state"], row["error_kind"]) == ("failed", "rejected")
    assert "retry_on" in row["error"]
    assert bench.all_posts() == 0


@pytest.mark.parametrize(
    ("moment", "posts"), [("job.claimed", 0), ("submit.marked", 1), ("submit.accepted", 1)]
)
async def test_a_row_deleted_by_hand_ends_nothing(bench: Bench, moment: str, posts: int) -> None:
    deleted, other = await bench.enqueue("deleted", '[text="Done." first=0.5]')
    await bench.execute(
        "CREATE TRIGGER deleting AFTER INSERT ON job_events"  # noqa: S608 - our own words
        f" WHEN NEW.job_id = {deleted} AND NEW.event = '{moment}'"
        " BEGIN DELETE FROM jobs WHERE id = NEW.job_id; END"
    )
    assert await bench.once() == 0
    await bench.assert_completed(other, "Done.")
    assert await bench.sql("SELECT id FROM jobs") == [{"id": other}]
    assert bench.posts("deleted") == posts


# --- again ------------------------------------------------------------------------------------


async def test_a_retry_of_an_expired_job_runs(bench: Bench) -> None:
    (job_id,) = await bench.enqueue('[text="At last."]', expires_at="2999-01-31T08:00:00Z")
    await bench.execute("UPDATE jobs SET expires_at = '2020-01-01 00:00:00.000000'")
    assert await bench.once() == 3
    assert (await bench.job(job_id)).error_kind == "expired"
    async with bench.orchestrator() as orc:
        assert (await orc.retry(job_id)).expires_at is None
    assert await bench.once() == 0
    await bench.assert_completed(job_id, "At last.")


async def test_a_doubt_that_was_sent_again_and_completed_is_no_failure(bench: Bench) -> None:
    bench.server.faults.add("not-started", times=1)
    (job_id,) = await bench.enqueue('[text="Second."]', on_in_doubt="resubmit")
    codes: list[int] = []

    async def work() -> None:
        codes.append(await bench.once())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await bench.until_state(job_id, "in_doubt")
        await bench.execute("UPDATE jobs SET resubmit_at = '2020-01-01 00:00:00.000000'")
    job = await bench.job(job_id)
    assert (job.state, job.result_text, job.attempt) == ("completed", "Second.", 2)
    assert codes == [0]


async def test_a_run_that_ran_out_of_time_says_so_under_its_next_worker_too(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[hang stop_time=0.6]", run_timeout=0.4)
    async with bench.dying(bench.settings(**POLL)):

        async def stopped() -> bool:
            return bool(bench.server.stats.stops)

        await eventually(stopped, lambda: "a stop")
        followed_s = (await bench.job(job_id)).followed_s
        assert followed_s >= 0.4, "saved before the stop is sent: its sender may die at once"
    assert (await bench.job(job_id)).state == "running"
    (run,) = list(bench.server.runs)
    await over(run)
    assert await bench.once(bench.settings(**POLL)) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("failed", "timed_out", "cancelled")
    assert len(bench.server.stats.stops) == 1
