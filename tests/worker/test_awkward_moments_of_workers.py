"""Workers at awkward moments: jobs that come back, an absent database, a gate without room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from orchestrator.errors import StoreUnavailable
from orchestrator.store.verbs import people, streams
from orchestrator.testing import Fault, Kind
from orchestrator.worker import worker as workers
from orchestrator.worker.worker import Worker

from .harness import BOUND_S, Bench, eventually

POLL = {"follow": {"mode": "poll"}}
STREAM = {"follow": {"mode": "stream"}}
LONG_AGO = "'2020-01-01 00:00:00.000000'"
SEVERAL_ROUNDS_S = 0.5
"""How long something is watched that must not happen: ten rounds of every duty."""


# --- a job that comes back ----------------------------------------------------------------------


@asynccontextmanager
async def taken_back(bench: Bench) -> AsyncIterator[tuple[Worker, int]]:
    """A worker that took back, under a higher lease, a run that it already follows."""
    (job_id,) = await bench.enqueue('[hang text="Done."]')
    with anyio.fail_after(2 * BOUND_S), capture_logs() as logs:
        async with bench.working(bench.settings(**POLL, worker={"heartbeat": 0.2})) as worker:
            await bench.until(job_id, lambda job: job.run_status == "running")
            before = worker.holdings.live[job_id]
            # A peer thought this worker dead, adopted the run, and gave it back at once.
            await bench.execute("UPDATE jobs SET lease = lease + 1, worker_id = NULL")
            await bench.until_event(job_id, "run.adopted")

            async def let_go() -> bool:
                return "run.not_released" in [entry["event"] for entry in logs]

            await eventually(let_go, lambda: "the end of the follower of before")
            after = worker.holdings.live[job_id]
            assert after is not before
            assert after.job.lease == (await bench.job(job_id)).lease == before.job.lease + 2
            yield worker, job_id


async def test_a_job_that_comes_back_under_a_higher_lease_has_one_follower(bench: Bench) -> None:
    async with taken_back(bench) as (worker, job_id):
        assert list(worker.holdings.live) == [job_id]
        for run in bench.server.runs:
            bench.server.runs.settle(run, "failed")
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.error_kind) == ("failed", "run_failed")
    assert not worker.holdings.live
    assert (await bench.events(job_id)).count("run.run_failed") == 1


async def test_a_drain_ends_after_a_job_has_come_back(bench: Bench) -> None:
    async with taken_back(bench) as (worker, job_id):
        pass
    assert not worker.holdings.live
    job = await bench.job(job_id)
    assert (job.state, job.worker_id) == ("running", None)


# --- the database ------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [None, "[hang]"], ids=["idle", "following"])
async def test_a_drain_ends_without_a_database(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, prompt: str | None
) -> None:
    monkeypatch.setattr(workers, "FAREWELL_S", 0.3)
    settings = bench.settings(**STREAM, worker={"drain_timeout": 1.0, "heartbeat": 0.1})
    with anyio.fail_after(BOUND_S), capture_logs() as logs:
        async with bench.working(settings) as worker:
            if prompt is None:
                await eventually(lambda: started(bench), lambda: "a worker")
            else:
                (job_id,) = await bench.enqueue(prompt)
                await bench.until(job_id, lambda job: job.stream_opened_at is not None)
            for verb in ("beat", "read", "write", "write_alone"):
                monkeypatch.setattr(bench.store, verb, _away)

            async def noticed() -> bool:
                return "worker.beat_failed" in [entry["event"] for entry in logs]

            await eventually(noticed, lambda: "a beat that fails")
    assert "worker.stopped" in [entry["event"] for entry in logs]
    assert not len(worker.holdings)


async def started(bench: Bench) -> bool:
    return bool(await bench.sql("SELECT id FROM workers"))


async def _away(*_args: object, **_options: object) -> None:
    raise StoreUnavailable("the database is away")


@pytest.mark.parametrize("times", [1, 5])
async def test_a_checkpoint_whose_commit_is_unknown_is_saved_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    lose_answers(bench, monkeypatch, streams.checkpoint_each, times)
    bench.server.faults.add("missing-step")  # the fold is what is compared
    (job_id,) = await bench.enqueue('[steps=5 tools=2 tool_time=0.6 text="Done." tail=1]')
    async with bench.working(bench.settings(**STREAM)):

        async def several() -> list[dict[str, Any]]:
            rows = await bench.sql(
                "SELECT first_index, count FROM stream_checkpoints ORDER BY first_index"
            )
            return rows if len(rows) >= 3 else []

        saved = await eventually(several, lambda: "three checkpoints")
        (job,) = await bench.until_settled(job_id)
    ends = [row["first_index"] + row["count"] for row in saved]
    assert [row["first_index"] for row in saved] == [0, *ends[:-1]]
    assert (job.state, job.result_text) == ("completed", "Done.")
    await bench.assert_kept(job, source="stream")


def lose_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verb: Callable[..., object], times: int
) -> None:
    """Let the first writes of a verb be committed and their answers be lost."""
    write, left = bench.store.write, [times]

    async def flaky(given: Any, *args: Any, **options: Any) -> Any:
        result = await write(given, *args, **options)
        if getattr(given, "verb", None) is verb and left[0] > 0:
            left[0] -= 1
            raise StoreUnavailable("the answer to COMMIT was lost")
        return result

    monkeypatch.setattr(bench.store, "write", flaky)


# --- once --------------------------------------------------------------------------------------


async def test_once_does_not_wait_for_a_queue_that_is_limited_to_nothing(bench: Bench) -> None:
    held, free = await bench.enqueue_rows(
        {"prompt": "held", "queue": "none"}, {"prompt": 'free [text="Done."]'}
    )
    async with bench.orchestrator() as orc:
        await orc.limit_queue("none", 0)
    assert await bench.once() == 0
    await bench.assert_completed(free, "Done.")
    assert (await bench.job(held)).state == "queued"


async def test_once_ends_at_an_outage_that_began_with_a_401(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look at a suspected key finds no API at all: that is an outage, and shut."""
    monkeypatch.setattr(workers, "GATE_SHUT_TOO_LONG_S", 0.3)
    bench.server.faults.add("unauthorized", times=1)
    bench.server.faults.add("proxy-502")
    (job_id,) = await bench.enqueue("hello")
    assert await bench.once() == 75
    gate = await bench.gate()
    assert (gate["reason"], gate["closed_at"] is None) == ("outage", False)
    assert "502" in gate["detail"]
    assert (await bench.job(job_id)).state == "queued"
    assert bench.all_posts() == 1


# --- a canary without room ----------------------------------------------------------------------


async def close_long_ago(bench: Bench) -> None:
    """Close the gate by an outage whose next probe is due."""
    await bench.execute(
        f"UPDATE gates SET closed_at = {LONG_AGO}, reason = 'outage', next_probe_at = {LONG_AGO}"  # noqa: S608 - our own words
    )


async def assert_stays_closed(bench: Bench) -> None:
    """Watch for a while that a closed gate is not opened."""
    with anyio.move_on_after(SEVERAL_ROUNDS_S):
        await bench.until_gate(lambda row: row["closed_at"] is None)
        raise AssertionError("the gate was opened")


async def test_a_canary_without_room_leaves_the_gate_closed(bench: Bench) -> None:
    (live,) = await bench.enqueue("live [hang]")
    async with bench.working(bench.settings(worker={"concurrency": 1})):
        await bench.until_state(live, "running")
        await close_long_ago(bench)
        (canary,) = await bench.enqueue('canary [text="Sings."]')
        await assert_stays_closed(bench)
        assert bench.all_posts() == 1
        for run in bench.server.runs:
            bench.server.runs.settle(run, "failed")
        await bench.until_settled(live, canary)
        assert (await bench.gate())["closed_at"] is None
    await bench.assert_completed(canary, "Sings.")


async def test_a_used_up_minute_leaves_the_gate_closed(bench: Bench) -> None:
    bench.server.faults.add(Fault(kind=Kind.RESET, route="start", when="after"))
    await bench.enqueue(*(str(number) for number in range(12)))
    settings = bench.settings(submit={"max_per_minute": 4, "concurrency": 2})
    async with bench.working(settings):
        await bench.until_gate(lambda row: row["reason"] == "outage")

        async def used_up() -> bool:
            return bench.all_posts() == 4

        await eventually(used_up, lambda: "four submissions")
        await assert_stays_closed(bench)
    assert bench.all_posts() == 4
    states = await bench.sql("SELECT state, count(*) AS n FROM jobs GROUP BY state ORDER BY state")
    assert states == [{"state": "in_doubt", "n": 4}, {"state": "queued", "n": 8}]


async def test_a_waiting_job_names_no_gate_of_a_key_that_nobody_uses(bench: Bench) -> None:
    await bench.execute(
        "INSERT INTO gates (api_origin, key_fingerprint, closed_at, reason)"  # noqa: S608 - our own words
        f" VALUES ('https://old.example', 'old', {LONG_AGO}, 'unauthorized')"
    )
    await bench.enqueue("hello", queue="unserved")
    async with bench.working(bench.settings(worker={"queues": ["served"]})):
        await eventually(lambda: started(bench), lambda: "a worker")
        (row,) = await bench.sql("SELECT waiting_for FROM waiting")
    assert "gate" not in row["waiting_for"]


# --- a key that was replaced --------------------------------------------------------------------


async def test_the_runs_of_a_replaced_key_are_followed_once_they_are_given_to_the_new(
    bench: Bench,
) -> None:
    (job_id,) = await bench.enqueue('[text="Followed." first=inf]')
    async with bench.working(bench.settings(**POLL)):
        await bench.until_state(job_id, "running")
    job = await bench.job(job_id)
    own = job.key_fingerprint
    await bench.execute("UPDATE jobs SET key_fingerprint = 'replaced'")
    assert await bench.once(bench.settings(**POLL)) == 0
    assert (await bench.job(job_id)).state == "running", "nobody has its key"

    def give(connection: Connection) -> int:
        origin = bench.server.url
        return len(people.rekey(connection, api_origin=origin, old="replaced", new=own or ""))

    assert await bench.store.write(give) == 1
    bench.release(job)
    assert await bench.once(bench.settings(**POLL)) == 0
    await bench.assert_completed(job_id, "Followed.")
