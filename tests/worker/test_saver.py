"""The saver: what all streams of a worker bring is saved together, and each by itself in need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from orchestrator.job import Job
from orchestrator.store.commit import Joint
from orchestrator.worker import holdings
from orchestrator.worker.points import Act, Point, Side
from orchestrator.worker.saver import SHARES, Saver
from orchestrator.worker.stream import StreamFollower
from orchestrator.worker.tools import Tools

from .harness import Bench, eventually

STREAM = {"follow": {"mode": "stream", "checkpoint_every": 0.2}}
CHECKPOINT = Point(Side.BEFORE, Act.CHECKPOINT)
HANGS = '[steps=2 hang=2 talk="Half of it."]'


async def saved(bench: Bench, job_id: int) -> int:
    (row,) = await bench.sql(
        "SELECT coalesce(sum(count), 0) AS n FROM stream_checkpoints WHERE job_id = :id", id=job_id
    )
    return int(row["n"])


async def test_many_streams_are_saved_by_few_writes(bench: Bench) -> None:
    job_ids = await bench.enqueue(*(f"{n} {HANGS}" for n in range(30)))
    writes: list[Point] = []
    bench.reach = lambda point: writes.append(point) if point == CHECKPOINT else None
    settings = bench.settings(follow={"mode": "stream", "checkpoint_every": 4.0})
    async with bench.dying(settings):

        async def all_saved() -> bool:
            runs = {run.order.run_id: len(run.plan.chunks) for run in bench.server.runs}
            jobs = [await bench.job(job_id) for job_id in job_ids]
            if len(runs) < len(jobs):
                return False
            return all([await saved(bench, job.id) == runs[job.run_id or ""] for job in jobs])

        await eventually(all_saved, lambda: "every chunk of every stream, saved")
        assert 0 < len(writes) < len(job_ids)


async def test_who_lost_a_lease_lets_go_and_the_others_are_saved(bench: Bench) -> None:
    first, lost, last = await bench.enqueue(*(f"{n} {HANGS}" for n in range(3)))
    with capture_logs() as logs:
        async with bench.dying(bench.settings(**STREAM)):
            await bench.until_state(lost, "running")
            await bench.execute("UPDATE jobs SET lease = lease + 1 WHERE id = :id", id=lost)

            def let_go() -> bool:
                return any(
                    entry["event"] == "lease.lost" and entry["job_id"] == lost for entry in logs
                )

            async def others_saved() -> bool:
                return let_go() and all([await saved(bench, n) > 0 for n in (first, last)])

            await eventually(others_saved, lambda: f"the lost lease noticed: {logs}")


async def test_one_stream_is_saved_by_one_write_at_a_time() -> None:
    """Of two at once the older could come last, and take away what the newer had saved."""
    saved: list[tuple[int, int]] = []
    go_on = anyio.Event()

    async def write(_act: object, verb: Any, **_options: object) -> None:
        savings = [verb.item] if isinstance(verb, Joint) else verb.keywords["savings"]
        saved.extend((each.segment.first_index, len(each.segment.chunks)) for each in savings)
        await go_on.wait()

    tools = cast(Tools, SimpleNamespace(write=write, rand=lambda: 0.5, log=structlog.get_logger()))
    job = cast(Job, SimpleNamespace(id=1))
    stream = StreamFollower(
        tools=tools, job=job, placed=True, on_news=lambda: None, on_ended=lambda _how: None
    )
    saver = Saver(tools=tools)
    with saver.saving(stream, on_failure=lambda _error: None):
        async with anyio.create_task_group() as tasks:
            stream._take([{"type": "start"}, {"type": "start-step"}])
            tasks.start_soon(saver._save, job.id % SHARES)
            await anyio.wait_all_tasks_blocked()
            stream._take([{"type": "text-start", "id": "1"}])
            tasks.start_soon(stream.save)
            await anyio.wait_all_tasks_blocked()
            assert saved == [(0, 2)]
            go_on.set()
    assert saved == [(0, 2), (2, 1)]
    assert stream.unsaved() is None


@pytest.mark.sqlite_only
async def test_chunks_that_the_database_refuses_fail_their_own_job_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "FOLLOW_TRIES", 1)
    prompt = '[steps=2 tool_time=2 text="Done."]'
    bad, good = await bench.enqueue(f"bad {prompt}", f"good {prompt}")
    await bench.execute(
        "CREATE TRIGGER refuses BEFORE INSERT ON stream_checkpoints WHEN NEW.job_id = 1"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    job = await failed_by_us(bench, bad)
    assert "no" in (job["error"] or "")
    await bench.assert_completed(good, "Done.")


async def failed_by_us(bench: Bench, job_id: int) -> dict[str, Any]:
    assert await bench.once(bench.settings(**STREAM)) == 3
    (row,) = await bench.sql("SELECT state, error_kind, error FROM jobs WHERE id = :id", id=job_id)
    assert (row["state"], row["error_kind"]) == ("failed", "internal")
    return dict(row)
