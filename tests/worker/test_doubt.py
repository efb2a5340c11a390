"""Jobs in doubt: what becomes of them by policy, and by a person's decision."""

from __future__ import annotations

import anyio
import pytest

from orchestrator.errors import NotAllowed, NotFound
from orchestrator.testing import DevServer

from .harness import BOUND_S, Bench, canonical, over

PROMPT = 'hello [text="Hi there."]'
SLOW = '[text="Found." tail=inf]'


async def doubtful(bench: Bench, prompt: str = PROMPT, **options: object) -> int:
    """Make a job whose run exists while its answer is lost."""
    number = bench.server.faults.add("lost-answer", prompt=prompt)
    (job_id,) = await bench.enqueue(prompt, **options)
    assert await bench.once() == 3
    bench.server.faults.remove(number)
    assert (await bench.job(job_id)).state == "in_doubt"
    return job_id


def chat_of(server: DevServer, prompt: str) -> str:
    """The chat of the only run of a prompt."""
    (run,) = [run for run in server.runs if run.order.prompt == prompt]
    return run.order.chat_id


@pytest.mark.parametrize("by", ["config", "job"])
async def test_on_in_doubt_fail_settles_the_job_at_once(bench: Bench, by: str) -> None:
    bench.server.faults.add("lost-answer")
    own = {"on_in_doubt": "fail"} if by == "job" else {}
    (job_id,) = await bench.enqueue(PROMPT, **own)
    settings = bench.settings(submit={"on_in_doubt": "fail" if by == "config" else "hold"})
    assert await bench.once(settings) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("failed", "run_lost", 1)
    assert job.error is not None
    assert "a run may have been started" in job.error
    assert bench.posts(PROMPT) == 1


async def test_the_jobs_own_word_comes_before_the_configurations(bench: Bench) -> None:
    bench.server.faults.add("lost-answer")
    (job_id,) = await bench.enqueue(PROMPT, on_in_doubt="hold")
    assert await bench.once(bench.settings(submit={"on_in_doubt": "fail"})) == 3
    assert (await bench.job(job_id)).state == "in_doubt"


@pytest.mark.parametrize("by", ["config", "job"])
async def test_on_in_doubt_resubmit_waits_five_minutes_and_happens_once(
    bench: Bench, by: str
) -> None:
    bench.server.faults.add("lost-answer", times=2)
    own = {"on_in_doubt": "resubmit"} if by == "job" else {}
    (job_id,) = await bench.enqueue(PROMPT, **own)
    settings = bench.settings(submit={"on_in_doubt": "resubmit" if by == "config" else "hold"})
    async with bench.working(settings):
        job = await bench.until_state(job_id, "in_doubt")
        assert job.resubmit_at is not None
        assert 299 <= (job.resubmit_at - job.updated_at).total_seconds() <= 301
        await bench.execute("UPDATE jobs SET resubmit_at = '2020-01-01 00:00:00.000000'")
        job = await bench.until(job_id, lambda job: job.attempt == 2 and job.state == "in_doubt")
    assert (job.resubmits, job.resubmit_at, job.error_kind) == (1, None, "in_doubt")
    assert bench.posts(PROMPT) == 2
    (old,) = await bench.sql("SELECT attempt, state, error_kind, sent_at FROM attempts")
    assert (old["attempt"], old["state"], old["error_kind"]) == (1, "in_doubt", "in_doubt")
    assert old["sent_at"] is not None
    assert await bench.once(settings) == 0
    assert bench.posts(PROMPT) == 2


async def test_resubmit_by_policy_completes_as_a_second_attempt(bench: Bench) -> None:
    bench.server.faults.add("not-started", times=1)
    (job_id,) = await bench.enqueue(PROMPT, on_in_doubt="resubmit")
    async with bench.working():
        await bench.until_state(job_id, "in_doubt")
        await bench.execute("UPDATE jobs SET resubmit_at = '2020-01-01 00:00:00.000000'")
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.attempt, job.result_text) == ("completed", 2, "Hi there.")
    assert (job.error_kind, job.error) == (None, None)
    assert bench.posts(PROMPT) == 2
    assert bench.server.stats.runs_by_prompt[PROMPT] == 1


async def test_a_person_resubmits(bench: Bench) -> None:
    job_id = await doubtful(bench)
    async with bench.orchestrator() as orc:
        job = await orc.resolve(job_id, "resubmit")
    assert (job.state, job.error_kind, job.attempt) == ("queued", None, 1)
    assert await bench.once() == 0
    job = await bench.job(job_id)
    assert (job.state, job.attempt) == ("completed", 2)
    assert bench.posts(PROMPT) == 2


async def test_a_person_gives_the_job_up(bench: Bench) -> None:
    job_id = await doubtful(bench)
    async with bench.orchestrator() as orc:
        job = await orc.resolve(job_id, "fail")
        assert (job.state, job.error_kind) == ("failed", "run_lost")
        with pytest.raises(NotAllowed):
            await orc.resolve(job_id, "resubmit")
    assert await bench.once() == 0
    assert bench.posts(PROMPT) == 1


async def test_a_person_cancels_a_job_in_doubt(bench: Bench) -> None:
    job_id = await doubtful(bench)
    async with bench.orchestrator() as orc:
        job = await orc.cancel(job_id)
    assert (job.state, job.error_kind) == ("cancelled", "cancelled")
    assert "it may have started a run" in (job.error or "")


async def test_a_run_still_going_is_adopted_and_followed(bench: Bench) -> None:
    job_id = await doubtful(bench, SLOW)
    chat_id = chat_of(bench.server, SLOW)
    run = bench.server.runs.of_chat(chat_id)
    assert run is not None
    async with bench.orchestrator() as orc, bench.working():
        with anyio.fail_after(BOUND_S):
            while run.message is None:  # a chat shows up after its first model call
                await run.changed.wait()
        (candidate,) = await orc.candidates(job_id)
        assert (candidate.chat_id, candidate.active_run_id) == (chat_id, run.order.run_id)
        assert candidate.session_id == run.order.session_id
        adopted = await orc.resolve(job_id, "adopt", chat_id=chat_id)
        assert (adopted.state, adopted.error_kind) == ("running", None)
        assert adopted.run_id == run.order.run_id
        bench.release(adopted)
        await bench.until_settled(job_id)
    job = await bench.assert_completed(job_id, "Found.")
    assert job.attempt == 1


async def test_a_run_that_is_over_is_collected_at_once(bench: Bench) -> None:
    job_id = await doubtful(bench)
    chat_id = chat_of(bench.server, PROMPT)
    run = bench.server.runs.of_chat(chat_id)
    assert run is not None
    await over(run)
    async with bench.orchestrator() as orc:
        (candidate,) = await orc.candidates(job_id)
        assert (candidate.active_run_id, candidate.text) == (None, "Hi there.")
        job = await orc.resolve(job_id, "adopt", chat_id=chat_id)
    assert (job.state, job.error_kind, job.result_text) == ("completed", None, "Hi there.")
    assert (job.chat_id, job.session_id) == (chat_id, run.order.session_id)
    assert job.cost_usd == pytest.approx(0.0021)
    (kept,) = await bench.messages(job_id)
    assert canonical(kept.message) == canonical(run.message)
    assert bench.posts(PROMPT) == 1


async def test_an_adopted_run_that_ended_badly_fails_the_job(bench: Bench) -> None:
    prompt = '[text="Half" finish=length]'
    job_id = await doubtful(bench, prompt)
    run = bench.server.runs.of_chat(chat_of(bench.server, prompt))
    assert run is not None
    await over(run)
    async with bench.orchestrator() as orc:
        job = await orc.resolve(job_id, "adopt", chat_id=run.order.chat_id)
    assert (job.state, job.error_kind, job.result_text) == ("failed", "incomplete", "Half")


async def test_chats_of_known_jobs_are_no_candidates(bench: Bench) -> None:
    (known,) = await bench.enqueue("another")
    assert await bench.once() == 0
    job_id = await doubtful(bench)
    chat_id = (await bench.job(known)).chat_id
    assert chat_id is not None
    async with bench.orchestrator() as orc:
        assert chat_id not in [found.chat_id for found in await orc.candidates(job_id)]
        with pytest.raises(NotAllowed):
            await orc.resolve(job_id, "adopt", chat_id=chat_id)
        with pytest.raises(NotFound):
            await orc.resolve(job_id, "adopt", chat_id="00000000-0000-4000-8000-000000000000")
    assert (await bench.job(job_id)).state == "in_doubt"
