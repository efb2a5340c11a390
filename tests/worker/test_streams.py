"""Following by stream: cuts, drops, made-up chunks, foreign runs, and readers that leave."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from orchestrator.devserver.runs import Run
from orchestrator.job import Job
from orchestrator.testing import DevServer, Fault, Kind
from orchestrator.worker import leaving
from orchestrator.worker.points import Act, Point, Side

from .harness import Bench, canonical, eventually

TOOLS = "[steps=3 tools=2 tool_time=0.4 delay=0.008 tokens=20 reasoning tail=2]"
"""A run of some three seconds, one in the middle of tool calls; the tail after its `finish`
leaves a reader that is cut often the time to catch up."""

STREAM = {"follow": {"mode": "stream"}}


async def streamed(bench: Bench, *prompts: str, mode: str = "stream") -> list[Job]:
    """Run the prompts at once, and return their settled jobs."""
    job_ids = await bench.enqueue(*prompts)
    await bench.once(bench.settings(follow={"mode": mode}))
    return [await bench.job(job_id) for job_id in job_ids]


def assert_resumed_in_step(server: DevServer, run_id: str | None) -> list[int]:
    """Check that no response began behind what had been received, and return the indexes."""
    received = 0
    starts: list[int] = []
    for call in server.stats.requests("stream"):
        if call.run_id != run_id or call.status not in (200, None):  # None: it was broken off
            continue
        start = int(call.start_index or 0)
        assert start <= received, f"asked for {start} when {received} chunks had come"
        assert not starts or start >= starts[-1], "went back"
        received = max(received, start + call.sent)
        starts.append(start)
    return starts


CUTS = [
    Fault(kind=Kind.CUT, route="stream", after=0.5, prompt="twice a second"),
    Fault(kind=Kind.CUT, route="stream", after=0.15, prompt="more often"),
    Fault(kind=Kind.CUT, route="stream", chunks=10, prompt="every ten chunks"),
    Fault(kind=Kind.DROP, route="stream", chunks=9, times=6, prompt="dropped"),
]


async def test_cuts_in_the_middle_of_tool_calls_leave_the_exact_message(bench: Bench) -> None:
    # The stored message is kept from us, so that what is compared is the fold.
    bench.server.faults.add("missing-step")
    prompts: list[str] = []
    for fault in CUTS:
        bench.server.faults.add(fault)
        prompts += [
            f"plain, {fault.prompt} {TOOLS}",
            f"refused, {fault.prompt} {TOOLS.replace(']', ' tool_error=Cancelled]')}",
            f"empty, {fault.prompt} {TOOLS.replace(']', ' input={} output=null]')}",
        ]
    for job in await streamed(bench, *prompts):
        assert (job.state, job.error_kind) == ("completed", None)
        await bench.assert_kept(job, source="stream")
        assert len(assert_resumed_in_step(bench.server, job.run_id)) >= 2


async def test_an_undisturbed_stream_is_opened_once(bench: Bench) -> None:
    (job,) = await streamed(
        bench, '[first=0.5 steps=2 tools=2 reasoning sources files text="Done." tail=1]'
    )
    await bench.assert_kept(job)
    assert bench.starts(job.run_id) == [0]
    assert "collect.difference" not in await bench.events(job.id)


async def test_a_stream_is_read_beyond_finish(bench: Bench) -> None:
    (job,) = await streamed(bench, '[text="Done." commit commit_time=0.4 tail=1]')
    (call,) = [call for call in bench.server.stats.requests("stream") if call.run_id == job.run_id]
    run = bench.server.runs.get(job.run_id or "")
    assert run is not None
    assert call.sent == len(run.chunks), "both data-commit chunks were read"
    assert "left" not in call.faults


async def test_responses_that_bring_nothing_end_nothing(bench: Bench) -> None:
    """204, a lone `finish`, and bodies that end before or inside their first chunk."""
    faults = bench.server.faults
    faults.add("missing-step")
    faults.add("cut", chunks=0, times=2, prompt="empty")
    faults.add("drop", chunks=0, times=2, prompt="half a chunk")
    faults.add("no-stream", times=2, prompt="nothing")
    faults.add("cut", chunks=4, times=1, prompt="lone")
    faults.add("no-stream", skip=1, times=2, prompt="lone")
    faults.add("lone-finish", times=2, prompt="lone")
    starts = {
        "empty": [0, 0, 0],
        "half a chunk": [0, 0, 0],
        "nothing": [0, 0, 0],
        "lone": [0, 4, 4, 4],
    }
    prompts = [f'{name} [steps=2 tool_time=inf text="Done." delay=0.01 tail=2]' for name in starts]
    job_ids = await bench.enqueue(*prompts)

    async def all_asked() -> bool:
        asked = [bench.starts((await bench.job(job_id)).run_id) for job_id in job_ids]
        return asked == list(starts.values())

    async with bench.working(bench.settings(**STREAM)):
        await eventually(all_asked, lambda: "the streams, asked for as often as they bring nothing")
        for job_id in job_ids:
            bench.release(await bench.job(job_id))
        jobs = await bench.until_settled(*job_ids)
    for job, expected in zip(jobs, starts.values(), strict=True):
        assert (job.state, job.result_text) == ("completed", "Done.")
        await bench.assert_kept(job, source="stream")
        assert bench.starts(job.run_id) == expected


async def test_the_chunks_of_another_run_are_never_mixed_in(bench: Bench) -> None:
    bench.server.faults.add(Fault(kind=Kind.OTHER_RUN, route="stream"))
    (job,) = await streamed(bench, '[steps=2 tool_time=0.3 text="Done."]')
    assert (job.state, job.result_text) == ("completed", "Done.")
    await bench.assert_kept(job)
    assert await bench.sql("SELECT * FROM stream_checkpoints") == []


async def test_a_stream_without_its_tail_index_is_followed_all_the_same(bench: Bench) -> None:
    bench.server.faults.add(Fault(kind=Kind.NO_TAIL, route="stream"))
    bench.server.faults.add("missing-step")
    (job,) = await streamed(bench, '[steps=2 tool_time=0.3 text="Done." tail=1]')
    await bench.assert_kept(job, source="stream")


# --- readers that leave -------------------------------------------------------------------------


async def leaving_of(bench: Bench) -> str:
    return str((await bench.gate())["leaving"])


@pytest.mark.parametrize("mode", ["stream", "auto"])
async def test_a_run_cancelled_by_our_break_says_so_and_the_origin_is_unsafe(
    bench: Bench, mode: str
) -> None:
    bench.server.faults.add("cancel-on-leave")
    bench.server.faults.add("drop", chunks=5, prompt="broken")
    (job,) = await streamed(bench, "broken [first=1 steps=2 tool_time=5]", mode=mode)
    assert (job.state, job.error_kind) == ("failed", "cancelled_by_disconnect")
    assert job.run_status == "cancelled"
    assert bench.server.stats.stops == []
    assert await leaving_of(bench) == "unsafe"
    opened = len(bench.server.stats.requests("stream"))
    (after,) = await streamed(bench, '[text="Polled." first=0.2 tail=0.2]', mode="auto")
    await bench.assert_completed(after.id, "Polled.")
    assert len(bench.server.stats.requests("stream")) == opened, "no stream is opened any more"


async def test_open_streams_are_read_on_but_none_is_reopened_once_unsafe(bench: Bench) -> None:
    bench.server.faults.add("cancel-on-leave")
    bench.server.faults.add("drop", chunks=5, prompt="broken")
    bench.server.faults.add("cut", chunks=None, after=4.0, prompt="other")
    broken, other = await bench.enqueue(
        "broken [first=1 steps=2 tool_time=5]", 'other [text="Done." tail=5]'
    )
    await bench.once(bench.settings(follow={"mode": "auto"}))
    assert (await bench.job(broken)).error_kind == "cancelled_by_disconnect"
    job = await bench.assert_completed(other, "Done.")
    assert bench.starts(job.run_id) == [0]


async def test_three_survived_breaks_make_an_origin_safe(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "SURVIVED_S", 0.2)
    bench.server.faults.add("drop", chunks=5, times=3)
    prompts = [f'{number} [steps=2 tool_time=2 text="Done."]' for number in range(3)]
    for job in await streamed(bench, *prompts, mode="auto"):
        assert job.state == "completed"
        assert (await bench.detail(job.id, "stream.leaving_learnt"))["run"] == "survived"
    assert await leaving_of(bench) == "safe"
    assert await most_open(bench, 6, mode="auto") == 6, "safe: streams without limit"


async def test_what_a_failed_run_streamed_is_saved_before_its_message_is_looked_for(
    bench: Bench,
) -> None:
    """Whatever happens while the chat is read: the server keeps less of such a run, or nothing."""
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="chat", delay=1.0, times=1))
    passed: set[Point] = set()
    bench.reach = passed.add
    (job_id,) = await bench.enqueue('[steps=2 hang=2 talk="Half of it."]')
    settings = bench.settings(follow={"mode": "stream", "checkpoint_every": 60.0})
    async with bench.dying(settings):

        async def streamed_so_far() -> bool:
            calls = bench.server.stats.requests("stream")
            return bool(calls) and calls[0].sent == len(run_of(bench).plan.chunks)

        async def looked_for() -> bool:
            return Point(Side.BEFORE, Act.COLLECT) in passed

        await eventually(streamed_so_far, lambda: "all that the run writes, sent")
        bench.server.runs.settle(run_of(bench), "failed")
        await eventually(looked_for, lambda: "the look for the message")
        (saved,) = await bench.sql("SELECT sum(count) AS chunks FROM stream_checkpoints")
        assert saved["chunks"] == len(run_of(bench).plan.chunks)
    assert (await bench.job(job_id)).state == "running"


def run_of(bench: Bench) -> Run:
    (run,) = bench.server.runs
    return run


@pytest.mark.parametrize("places", [0, 1, 4])
async def test_trial_streams_bound_what_is_open_at_once(bench: Bench, places: int) -> None:
    assert await most_open(bench, places, mode="auto", trial_streams=places) == places


async def test_a_place_is_free_while_a_message_is_awaited(bench: Bench) -> None:
    """Collecting may take long, and a stream that ended long ago is no stream that was left."""
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="chat", delay=0.4))
    (job_id,) = await bench.enqueue("[text=Done. no_message tail=inf]")
    async with bench.dying(bench.settings(follow={"mode": "auto"})):
        job = await bench.until(job_id, lambda job: job.stream_opened_at is not None)
        bench.release(job)
        job = await bench.until(job_id, lambda job: job.stream_opened_at is None)
    assert (job.state, job.run_status, job.stream_left_at) == ("running", "completed", None)


async def test_who_lets_go_while_it_takes_a_place_gives_it_back(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[hang]")
    async with bench.dying(bench.settings(follow={"mode": "auto"})) as worker:

        def let_go(point: Point) -> None:
            if point == Point(Side.BEFORE, Act.OPEN_STREAM):
                worker.holdings.live[job_id]._scope.cancel()

        bench.reach = let_go
        object.__setattr__(worker._tools, "reach", let_go)
        await bench.until(job_id, lambda job: job.state == "running" and job.worker_id is None)
        job = await bench.job(job_id)
    assert (job.stream_opened_at, job.stream_left_at) == (None, None)


async def test_stream_mode_knows_no_such_bound(bench: Bench) -> None:
    assert await most_open(bench, 6, mode="stream") == 6


async def most_open(bench: Bench, expected: int, **follow: Any) -> int:
    """Follow six runs that hang until `expected` streams are open, and end the runs; return how
    many streams were open at most."""
    job_ids = await bench.enqueue(*(f"{number} [hang]" for number in range(6)))
    async with bench.working(bench.settings(follow=follow)):
        for job_id in job_ids:
            await bench.until_state(job_id, "running")

        async def all_open() -> bool:
            return bench.server.stats.open_streams == expected

        await eventually(all_open, lambda: f"{expected} open streams")
        for run in bench.server.runs:
            bench.server.runs.settle(run, "failed")
        await bench.until_settled(*job_ids)
    return bench.server.stats.max_open_streams


async def test_a_run_whose_stream_moves_is_seldom_asked_about(bench: Bench) -> None:
    (job,) = await streamed(bench, "[tokens=60 delay=0.05 tail=0.1]")
    assert job.state == "completed"
    # At three seconds and `poll_max` of 0.3 a silent run would be asked about ten times.
    assert len(bench.server.stats.requests("status")) <= 6


async def test_a_run_that_moves_beyond_its_time_is_stopped(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[tokens=2000 delay=0.05 stop_time=0.1]", run_timeout=1.0)
    await bench.once(bench.settings(follow={"mode": "stream"}))
    job = await bench.job(job_id)
    assert (job.state, job.error_kind) == ("failed", "timed_out")


# --- checkpoints ------------------------------------------------------------------------------


async def test_a_second_worker_resumes_behind_the_checkpoint(bench: Bench) -> None:
    bench.server.faults.add("missing-step")
    (job_id,) = await bench.enqueue('[steps=2 tools=2 tool_time=inf text="Done." reasoning tail=1]')
    async with bench.dying(bench.settings(**STREAM)):
        await eventually(lambda: saved_count(bench), lambda: "a checkpoint")
    first_saved = await saved_count(bench)
    await eventually(lambda: closed(bench), lambda: "the stream is left")
    async with bench.working(bench.settings(**STREAM)):
        await eventually(lambda: opened(bench), lambda: "an open stream")
        bench.release(await bench.job(job_id))
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.result_text) == ("completed", "Done.")
    await bench.assert_kept(job, source="stream")
    starts = assert_resumed_in_step(bench.server, job.run_id)
    assert starts[0] == 0
    assert starts[1] == first_saved
    assert bench.posts(job.prompt or "") == 1
    assert "run.adopted" in await bench.events(job_id)


async def saved_count(bench: Bench) -> int:
    (row,) = await bench.sql("SELECT coalesce(sum(count), 0) AS n FROM stream_checkpoints")
    return int(row["n"])


async def test_a_drained_worker_leaves_a_stream_where_that_is_safe(bench: Bench) -> None:
    (job_id,) = await bench.enqueue('[steps=2 tool_time=inf text="Done."]')
    async with bench.working(bench.settings(**STREAM)):
        await eventually(lambda: saved_count(bench), lambda: "a checkpoint")
        await bench.execute("UPDATE gates SET leaving = 'safe'")
    job = await bench.job(job_id)
    assert (job.state, job.worker_id) == ("running", None)
    assert bench.server.stats.stops == []
    await eventually(lambda: closed(bench), lambda: "the stream is left")
    async with bench.working(bench.settings(**STREAM)):
        await eventually(lambda: opened(bench), lambda: "an open stream")
        bench.release(job)
        await bench.until_settled(job_id)
    job = await bench.assert_completed(job_id, "Done.")
    starts = assert_resumed_in_step(bench.server, job.run_id)
    assert len(starts) == 2
    assert starts[1] > 0


async def test_a_drain_waits_for_the_end_of_a_stream_that_must_not_be_left(bench: Bench) -> None:
    bench.server.faults.add("cancel-on-leave")
    (job_id,) = await bench.enqueue('[text="Done." first=0.3 tail=0.5]')
    async with bench.working(bench.settings(**STREAM, worker={"drain_timeout": 10})):
        await eventually(lambda: opened(bench), lambda: "an open stream")
    job = await bench.job(job_id)
    run = bench.server.runs.get(job.run_id or "")
    assert run is not None
    assert run.status == "completed", "nobody left its stream"
    await bench.once()
    await bench.assert_completed(job_id, "Done.")


async def opened(bench: Bench) -> bool:
    return bench.server.stats.open_streams > 0


async def closed(bench: Bench) -> bool:
    return bench.server.stats.open_streams == 0


async def test_watch_shows_the_text_as_it_grows(bench: Bench) -> None:
    async with bench.orchestrator() as orc, bench.working(bench.settings(**STREAM)):
        handle = await orc.enqueue("[tokens=40 delay=0.12]")
        with anyio.fail_after(15):
            texts = [update.text async for update in handle.watch()]
        result = await handle.result()
        (message,) = await handle.messages()
    growing = [text for text in texts if 0 < len(text) < len(result)]
    assert len(growing) >= 2
    assert all(result.startswith(text) for text in growing)
    assert growing == sorted(growing, key=len)
    assert texts[-1] == result
    run = next(iter(bench.server.runs))
    assert canonical(message.message) == canonical(run.message)
    assert len(bench.server.stats.requests("stream")) == 1, "watching opens no stream"
