"""Limits, queues and `--once`: what is claimed, how much at once, and when a worker ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from orchestrator.states import CLAIMED, State

from .harness import Bench, eventually


def most_at_once(bench: Bench, route: str) -> int:
    """The most requests of a route that were under way at the server at one time."""
    edges = []
    for call in bench.server.stats.requests(route):
        assert call.ended_at is not None
        edges += [(call.at, 1), (call.ended_at, -1)]
    now = most = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


async def most_live(bench: Bench, job_ids: list[int]) -> int:
    """The most of these jobs that were seen live at one time, until all of them completed."""
    seen = 0

    async def all_completed() -> bool:
        nonlocal seen
        rows = await bench.sql("SELECT id, state FROM jobs")  # one look: all at one time
        states = [State(row["state"]) for row in rows if row["id"] in job_ids]
        seen = max(seen, sum(state in CLAIMED for state in states))
        return all(state is State.COMPLETED for state in states)

    await eventually(all_completed, lambda: "all jobs completed")
    return seen


async def test_submissions_in_flight_are_bounded(bench: Bench) -> None:
    await bench.enqueue(*(f"{number} [provision=0.1]" for number in range(12)))
    settings = bench.settings(submit={"concurrency": 3})
    assert await bench.once(settings) == 0
    assert most_at_once(bench, "start") == 3


async def test_live_jobs_are_bounded(bench: Bench) -> None:
    job_ids = await bench.enqueue(*(f"{number} [tail=0.3]" for number in range(6)))
    async with bench.working(bench.settings(worker={"concurrency": 2})):
        assert await most_live(bench, job_ids) == 2


async def test_submissions_in_a_minute_are_bounded(bench: Bench) -> None:
    job_ids = await bench.enqueue(*(f"{number}" for number in range(6)))
    async with bench.working(bench.settings(submit={"max_per_minute": 4})):
        await bench.until_states(completed=4, queued=2)
        with anyio.move_on_after(0.3):
            await bench.until_states(completed=5, queued=1)
    assert bench.all_posts() == 4
    assert len(job_ids) == 6


@pytest.mark.parametrize("once", [True, False])
async def test_max_jobs_ends_a_worker(bench: Bench, once: bool) -> None:
    job_ids = await bench.enqueue(*(f"{number}" for number in range(5)))
    async with bench.making(once=once, max_jobs=3) as worker:
        with anyio.fail_after(15):
            ended = await worker.run()
    assert ended.value == "nothing_due"
    states = [(await bench.job(job_id)).state for job_id in job_ids]
    assert states == ["completed"] * 3 + ["queued"] * 2
    assert bench.all_posts() == 3


async def test_higher_priority_goes_first(bench: Bench) -> None:
    await bench.enqueue_rows(
        {"prompt": "low", "priority": -1}, {"prompt": "middle"}, {"prompt": "high", "priority": 9}
    )
    assert await bench.once(bench.settings(submit={"concurrency": 1})) == 0
    calls = bench.server.stats.requests("start")
    assert [call.prompt for call in calls] == ["high", "middle", "low"]


async def test_a_worker_keeps_to_its_queues(bench: Bench) -> None:
    mine, other = await bench.enqueue_rows(
        {"prompt": "mine", "queue": "a"}, {"prompt": "other", "queue": "b"}
    )
    assert await bench.once(bench.settings(worker={"queues": ["a"]})) == 0
    assert (await bench.job(mine)).state == "completed"
    assert (await bench.job(other)).state == "queued"
    assert bench.posts("other") == 0


async def test_a_paused_queue_waits_and_goes_on(bench: Bench) -> None:
    paused, open_ = await bench.enqueue_rows({"prompt": "p", "queue": "a"}, {"prompt": "o"})
    async with bench.orchestrator() as orc:
        await orc.pause("a", "budget")
        assert await bench.once() == 0, "a paused queue is not due"
        assert (await bench.job(paused)).state == "queued"
        assert (await bench.job(open_)).state == "completed"
        await orc.resume("a")
    assert await bench.once() == 0
    assert (await bench.job(paused)).state == "completed"


async def test_a_queues_own_limit_holds_for_all_workers_together(bench: Bench) -> None:
    rows = [{"prompt": f"{number} [tail=0.2]", "queue": "narrow"} for number in range(4)]
    narrow = await bench.enqueue_rows(*rows)
    wide = await bench.enqueue(*(f"wide {number} [tail=0.2]" for number in range(4)))
    async with bench.orchestrator() as orc:
        await orc.limit_queue("narrow", 1)
    async with bench.working(), bench.working():
        assert await most_live(bench, narrow) == 1
        await bench.until_settled(*wide)
    assert bench.all_posts() == len(narrow) + len(wide)


async def test_two_workers_share_the_work_without_a_second_post(bench: Bench) -> None:
    prompts = [str(number) for number in range(30)]
    job_ids = await bench.enqueue(*prompts)
    async with bench.working(), bench.working():
        await bench.until_settled(*job_ids)
    assert {bench.posts(prompt) for prompt in prompts} == {1}
    rows = await bench.sql("SELECT state, count(*) AS n FROM jobs GROUP BY state")
    assert rows == [{"state": "completed", "n": 30}]


# --- once ---------------------------------------------------------------------------------------


async def test_once_on_an_empty_table_ends_at_once(bench: Bench) -> None:
    assert await bench.once() == 0
    assert bench.server.stats.requests() == []


async def test_once_waits_for_a_back_off(bench: Bench) -> None:
    bench.server.faults.add("rate-limited", route="start", times=1)
    (job_id,) = await bench.enqueue('[text="Then."]')
    assert await bench.once() == 0
    job = await bench.job(job_id)
    assert (job.state, job.result_text) == ("completed", "Then.")


async def test_once_does_not_wait_for_what_is_scheduled_later(bench: Bench) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    (job_id,) = await bench.enqueue("later", scheduled_at=later)
    assert await bench.once() == 0
    assert (await bench.job(job_id)).state == "queued"
    assert bench.all_posts() == 0


async def test_once_does_not_wait_for_what_another_worker_holds(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[hang]")
    async with bench.working():
        await bench.until_state(job_id, "running")
        assert await bench.once() == 0
        await bench.execute("UPDATE gates SET leaving = 'safe'")
    job = await bench.job(job_id)
    assert job.state == "running"


async def test_once_says_when_something_did_not_complete(bench: Bench) -> None:
    await bench.enqueue("fine", "[fail=0]")
    assert await bench.once() == 3
    assert await bench.once() == 0, "what an earlier worker handled is not this one's"
