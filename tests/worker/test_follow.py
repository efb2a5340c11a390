"""How runs end, in every mode: the row, the messages, and what they equal."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from orchestrator.job import Job
from orchestrator.recoup import MessageFold
from orchestrator.testing import Fault, Kind
from orchestrator.worker import progress
from orchestrator.worker.follow import Follower
from orchestrator.worker.poll import Poller
from orchestrator.worker.stream import StreamFollower

from .harness import Bench

MODES = ["poll", "stream", "auto"]


@dataclass(frozen=True)
class Case:
    """A prompt, and what becomes of its job. `text` None: not looked at."""

    prompt: str
    state: str = "completed"
    kind: str | None = None
    text: str | None = "Done."
    finish: str | None = "stop"


COMPLETE = [
    Case('plain [text="Done."]'),
    Case('slow [text="Done." first=0.3 tail=0.3]'),
    Case('tools [steps=3 tool=search tools=2 tool_time=0.1 text="Done."]'),
    Case('tool error [steps=2 tool_error text="Done."]'),
    Case('refused tool [steps=2 tool_error=Cancelled tool_time=0.1 text="Done."]'),
    Case('falsy [steps=2 input={} output=null text="Done."]'),
    Case('reasoning [reasoning steps=2 text="Done."]'),
    Case('retried [steps=2 retry_step=1 text="Done."]'),
    Case('retried last [steps=2 retry_step=2 text="Done."]'),
    Case('error chunk [error_chunk text="Done."]'),
    Case('commit [commit commit_time=0.3 text="Done."]'),
    Case('attachments [sources files text="Done."]'),
    Case('split [split text="Pair \\ud83d\\ude00 and \\ud83d alone"]', text=None),
    Case('queued [queued=0.2 text="Done."]'),
    Case('hidden [no_stream text="Done." first=0.2]'),
    Case('bare [no_metadata text="Done."]', finish=None),
    Case('odd [finish=unheard-of text="Done."]', finish="unheard-of"),
]

BAD_ENDS = [
    Case('[finish=length text="Done."]', "failed", "incomplete", finish="length"),
    Case('[finish=content-filter text="Done."]', "failed", "incomplete", finish="content-filter"),
    Case('[finish=other text="Done."]', "failed", "incomplete", finish="other"),
    Case('[finish=error text="Done."]', "failed", "model_error", finish="error"),
]

NO_OUTPUT = [
    Case("mute [no_message]", "failed", "no_output", None, None),
    Case("mute tools [no_message steps=2 tool_time=0.2]", "failed", "no_output", None, None),
    Case("skipped [skipped]", "failed", "no_output", None, None),
]

FAILURES = [
    Case("[fail=1]", "failed", "run_failed", None, None),
    Case("[steps=3 fail=2]", "failed", "run_failed", None, None),
    Case("[fail=0]", "failed", "run_failed", None, None),
]


async def ran(bench: Bench, cases: list[Case], mode: str, **sections: Any) -> list[Job]:
    """Run all cases at once, and check their rows against the cases and the server."""
    job_ids = await bench.enqueue(*(case.prompt for case in cases))
    settings = bench.settings(**{"follow": {"mode": mode}, **sections})
    completed = all(case.state == "completed" for case in cases)
    assert await bench.once(settings) == (0 if completed else 3)
    jobs = [await bench.job(job_id) for job_id in job_ids]
    for case, job in zip(cases, jobs, strict=True):
        shown = (case.prompt, job.state, job.error_kind)
        assert shown == (case.prompt, case.state, case.kind)
        assert bench.posts(case.prompt) == 1
        run = bench.server.runs.get(job.run_id or "")
        assert run is not None
        assert (job.run_status, run.status) == (run.status, job.run_status)
        assert (job.chat_id, job.session_id) == (run.order.chat_id, run.order.session_id)
        assert (job.error is None) == (case.state == "completed")
        if case.text is not None:
            assert (case.prompt, job.result_text) == (case.prompt, case.text)
            assert job.finish_reason == case.finish
    return jobs


@pytest.mark.parametrize("mode", MODES)
async def test_runs_that_complete_keep_the_servers_message(bench: Bench, mode: str) -> None:
    for job in await ran(bench, COMPLETE, mode):
        await bench.assert_kept(job)
        message = (await bench.messages(job.id))[0].message
        metadata = message.get("metadata", {})
        usage = metadata.get("totalMessageUsage", {})
        assert job.cost_usd == pytest.approx(metadata.get("totalMessageCost"))
        assert job.input_tokens == usage.get("inputTokens")
        assert job.output_tokens == usage.get("outputTokens")
        assert job.total_tokens == usage.get("totalTokens")
        assert job.reasoning_tokens == usage.get("reasoningTokens")
        assert job.cached_tokens == usage.get("cachedInputTokens")
        assert job.model_used == metadata.get("modelId")
    if mode == "poll":
        assert bench.server.stats.requests("stream") == []
    rows = await bench.sql("SELECT count(*) AS n FROM stream_checkpoints")
    assert rows == [{"n": 0}], "checkpoints are dropped at settling"


@pytest.mark.parametrize("mode", MODES)
async def test_an_answer_that_is_not_whole_fails_and_keeps_its_text(
    bench: Bench, mode: str
) -> None:
    for job in await ran(bench, BAD_ENDS, mode):
        await bench.assert_kept(job)


async def test_accepted_finish_reasons_complete(bench: Bench) -> None:
    cases = [
        Case('[finish=length text="Done."]', finish="length"),
        Case('[finish=error text="Done."]', "failed", "model_error", finish="error"),
    ]
    await ran(bench, cases, "poll", collect={"accept_finish": ["length"]})


async def test_a_last_step_that_ends_in_tool_calls_is_not_whole(bench: Bench) -> None:
    (job,) = await ran(bench, [Case("[finish=tool-calls]", "failed", "incomplete", None)], "auto")
    assert job.finish_reason == "tool-calls"
    await bench.assert_kept(job)


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_without_a_message_has_no_output(bench: Bench, mode: str) -> None:
    for job in await ran(bench, NO_OUTPUT, mode):
        assert job.run_status == "completed"


@pytest.mark.parametrize("mode", MODES)
async def test_a_failed_run_keeps_what_its_steps_left(bench: Bench, mode: str) -> None:
    _, second, early = await ran(bench, FAILURES, mode)
    run = bench.server.runs.get(second.run_id or "")
    assert run is not None
    assert run.message is not None
    (kept,) = await bench.messages(second.id)
    assert kept.message["id"] == run.message["id"]
    done = run.message["parts"]
    assert kept.message["parts"][: len(done)] == done
    assert await bench.messages(early.id) == []


# --- reads that go wrong ------------------------------------------------------------------------


def page(status: int, route: str, **fields: object) -> Fault:
    values = {"body": "<html>proxy</html>", "headers": {"Content-Type": "text/html"}, **fields}
    return Fault(kind=Kind.ANSWER, route=route, status=status, **values)  # type: ignore[arg-type] # fields of a fault by name


THIRD = 1 / 3
UNSTEADY = [
    pytest.param([Fault(kind=Kind.ANSWER, route="status", probability=THIRD)], id="500"),
    pytest.param(
        [Fault(kind=Kind.ANSWER, route="status", status=404, probability=THIRD)], id="404"
    ),
    pytest.param([Fault(kind=Kind.RESET, route="status", probability=THIRD)], id="reset"),
    pytest.param([Fault(kind=Kind.CLOSE, route="status", probability=THIRD)], id="close"),
    pytest.param(
        [Fault(kind=Kind.BREAK_BODY, route="status", when="after", probability=THIRD)], id="half"
    ),
    pytest.param([Fault(kind=Kind.ANSWER, route="status", status=404, times=8)], id="404-a-while"),
    pytest.param([page(404, "status", times=8)], id="proxy-404"),
    pytest.param([page(403, "status", probability=THIRD)], id="proxy-403"),
    pytest.param([page(200, "status", probability=THIRD)], id="proxy-200"),
    pytest.param([page(302, "status", probability=THIRD)], id="proxy-302"),
    pytest.param([page(502, "chat", times=2)], id="chat-502"),
    pytest.param([page(404, "chat", times=1)], id="chat-proxy-404"),
    pytest.param([Fault(kind=Kind.ANSWER, route="chat", status=404, times=1)], id="chat-404"),
    pytest.param([Fault(kind=Kind.RESET, route="chat", times=1)], id="chat-reset"),
    pytest.param([page(502, "stream", probability=0.5)], id="stream-502"),
    pytest.param([page(404, "stream", times=4)], id="stream-proxy-404"),
    pytest.param([Fault(kind=Kind.RESET, route="stream", times=2)], id="stream-reset"),
]


@pytest.mark.parametrize("faults", UNSTEADY)
async def test_reads_that_go_wrong_fail_no_job(bench: Bench, faults: list[Fault]) -> None:
    for fault in faults:
        bench.server.faults.add(fault)
    # A stream is asked for only while the run goes on.
    pace = "first=1" if faults[0].route == "stream" else "tail=0.2"
    cases = [Case(f'{number} [text="Done." {pace}]') for number in range(5)]
    for job in await ran(bench, cases, "auto"):
        await bench.assert_kept(job)
    struck = [call for call in bench.server.stats.requests(faults[0].route) if call.faults]
    assert struck, "the fault did strike"


@pytest.mark.parametrize("mode", ["poll", "stream"])
async def test_a_third_of_all_polls_failing_in_every_way(bench: Bench, mode: str) -> None:
    for fault in (
        Fault(kind=Kind.ANSWER, route="status", probability=0.12),
        Fault(kind=Kind.ANSWER, route="status", status=404, probability=0.12),
        Fault(kind=Kind.RESET, route="status", probability=0.12),
    ):
        bench.server.faults.add(fault)
    cases = [Case(f'{number} [steps=2 text="Done."]') for number in range(20)]
    for job in await ran(bench, cases, mode):
        await bench.assert_kept(job)


async def test_polls_honour_retry_after(bench: Bench) -> None:
    bench.server.faults.add("rate-limited", route="status", times=1)
    (job,) = await ran(bench, [Case('[text="Done."]')], "poll")
    first, second = bench.server.stats.requests("status")[:2]
    assert first.status == 429
    assert second.at - first.at >= 1.0
    await bench.assert_kept(job)


@pytest.mark.parametrize("mode", ["poll", "stream"])
async def test_an_empty_chat_is_asked_again(bench: Bench, mode: str) -> None:
    bench.server.faults.add("no-messages", times=3)
    (job,) = await ran(bench, [Case('[text="Done."]')], mode)
    await bench.assert_kept(job)


async def test_a_chat_that_stays_unreadable_fails_the_collecting_of_a_failed_run_quickly(
    bench: Bench,
) -> None:
    bench.server.faults.add("not-found", route="chat")
    (job,) = await ran(bench, [Case("[fail=0]", "failed", "run_failed", None)], "poll")
    assert await bench.messages(job.id) == []


@pytest.mark.parametrize("mode", ["stream", "auto"])
async def test_the_fold_stands_in_for_a_message_without_its_last_step(
    bench: Bench, mode: str
) -> None:
    bench.server.faults.add("missing-step")
    # The tail: a server cuts off what a slow reader has not read when the run is over.
    prompt = '[steps=3 tools=2 tool_time=0.1 reasoning text="Done." tail=2]'
    (job,) = await ran(bench, [Case(prompt)], mode)
    await bench.assert_kept(job, source="stream")
    assert (await bench.detail(job.id, "collect.difference"))["kept"] == "stream"


async def test_without_a_stream_the_stored_message_is_all_there_is(bench: Bench) -> None:
    bench.server.faults.add("missing-step")
    (job_id,) = await bench.enqueue('[steps=2 tool=search talk="Looking." text="Done."]')
    await bench.once(bench.settings(follow={"mode": "poll"}))
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.finish_reason) == ("failed", "incomplete", "tool-calls")
    (kept,) = await bench.messages(job_id)
    assert kept.source == "server"


# --- clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_that_hangs_is_stopped_by_its_clocks(bench: Bench, mode: str) -> None:
    long, still, fine = await bench.enqueue_rows(
        {"prompt": "long [hang]", "run_timeout": 0.5},
        {"prompt": "still [hang]", "stall_timeout": 0.5},
        {"prompt": '[text="Done." first=0.3]', "run_timeout": 30, "stall_timeout": 30},
    )
    assert await bench.once(bench.settings(follow={"mode": mode})) == 3
    for job_id, kind in ((long, "timed_out"), (still, "stalled")):
        job = await bench.job(job_id)
        assert (job.state, job.error_kind, job.run_status) == ("failed", kind, "cancelled")
        assert [stop.stopped for stop in bench.server.stats.stops if stop.run_id == job.run_id] == [
            True
        ]
        assert "stop.sent" in await bench.events(job_id)
    await bench.assert_completed(fine, "Done.")


async def test_the_configurations_clocks_hold_for_jobs_that_name_none(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[hang]")
    assert await bench.once(bench.settings(follow={"mode": "poll", "run_timeout": 0.4})) == 3
    assert (await bench.job(job_id)).error_kind == "timed_out"


async def test_a_run_that_moves_does_not_stall(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("[delay=0.05 tokens=30]", stall_timeout=0.8)
    assert await bench.once(bench.settings(follow={"mode": "stream"})) == 0
    assert bench.server.stats.stops == []
    assert (await bench.job(job_id)).state == "completed"


async def test_a_run_that_completes_after_its_stop_completes(bench: Bench) -> None:
    prompt = '[text="Done." first=2 stop_time=30]'
    (job_id,) = await bench.enqueue(prompt, run_timeout=0.3)
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 0
    await bench.assert_completed(job_id, "Done.")
    assert "stop.sent" in await bench.events(job_id)


async def test_a_run_that_ignores_the_stop_is_settled_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STOP_PATIENCE_S", 1.2)
    monkeypatch.setattr(progress, "STOP_EVERY_S", 0.3)
    bench.server.faults.add("stuck")
    (job_id,) = await bench.enqueue('[text="Done." stop_time=60]', run_timeout=0.3)
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("failed", "timed_out", "running")
    assert "it did not end when told to; it may still go on" in (job.error or "")
    await bench.assert_kept(job)


async def test_a_run_that_somebody_cancels_says_so(bench: Bench) -> None:
    job_ids = await bench.enqueue("one [hang]", "two [hang]")
    async with bench.working(bench.settings(follow={"mode": "auto", "trial_streams": 1})):
        for job_id in job_ids:
            job = await bench.until_state(job_id, "running")
            run = bench.server.runs.get(job.run_id or "")
            assert run is not None
            bench.server.runs.settle(run, "cancelled")
        jobs = await bench.until_settled(*job_ids)
    for job in jobs:
        assert (job.state, job.error_kind) == ("failed", "cancelled_remotely")
        assert job.run_status == "cancelled"
    assert bench.server.stats.stops == []


async def test_a_run_that_the_server_forgot_is_lost_after_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOST_AFTER_S", 0.5)
    bench.server.faults.add("run-not-found")
    lost, saved = await bench.enqueue("lost [no_message]", 'saved [text="Done."]')
    assert await bench.once(bench.settings(follow={"mode": "poll"})) == 3
    job = await bench.job(lost)
    assert (job.state, job.error_kind, job.run_status) == ("failed", "run_lost", None)
    job = await bench.job(saved)
    assert (job.state, job.result_text) == ("completed", "Done."), "its message was still there"


# Not in mode auto, where runs wait for a trial place: who is cancelled while it waits leaves frames
# that hold each other behind, in the libraries.
@pytest.mark.parametrize("mode", ["poll", "stream"])
async def test_a_run_that_is_over_leaves_nothing_to_the_collector(bench: Bench, mode: str) -> None:
    """A worker lets the collector of cycles look seldom: what a run held must go by itself."""
    gc.collect()
    before = {id(each) for each in gc.get_objects() if isinstance(each, _HEAVY)}
    settings = bench.settings(follow={"mode": mode})
    await bench.enqueue(*('slow [text="Done." first=0.5 tail=0.1]' for _ in range(5)))
    gc.disable()
    try:
        assert await bench.once(settings) == 0
        left = [each for each in gc.get_objects() if isinstance(each, _HEAVY)]
    finally:
        gc.enable()
    assert [type(each) for each in left if id(each) not in before] == []


_HEAVY = (Follower, Poller, StreamFollower, MessageFold, httpx.Response)
