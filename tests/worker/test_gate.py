"""The gate: faults of the whole API pause the work, harm no job, and are over by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import cast

import anyio
import pytest
from structlog.testing import capture_logs

from orchestrator.clock import SystemClock
from orchestrator.config import fingerprint
from orchestrator.outcome import Signal
from orchestrator.store.verbs import gate as gate_verbs
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.gate import Reason
from orchestrator.testing import Fault, Kind
from orchestrator.worker import gate, worker
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.tools import Tools

from .harness import Bench, eventually

PROMPTS = [f'{number} [text="Answer {number}."]' for number in range(20)]
IN_FLIGHT = 8 + 2
"""What a fault can hit before the gate closes: the submissions under way at once, by default, and
the two that may follow the first ambiguous answers."""


async def shut(bench: Bench, reason: str) -> None:
    """Wait until the gate is closed for a reason and has been probed in vain some times."""
    await bench.until_gate(lambda row: row["reason"] == reason and row["probes"] >= 3)


async def assert_all_completed(bench: Bench, job_ids: list[int], *, in_doubt: int = 0) -> None:
    """Check that each job completed with one run of its prompt, save for a few in doubt."""
    jobs = [await bench.job(job_id) for job_id in job_ids]
    doubtful = [job for job in jobs if job.state == "in_doubt"]
    assert len(doubtful) <= in_doubt
    for job in jobs:
        if job not in doubtful:
            assert (job.state, job.error_kind) == ("completed", None)
            assert bench.server.stats.runs_by_prompt[job.prompt or ""] == 1


async def all_at_rest(bench: Bench, job_ids: list[int]) -> None:
    """Wait until every job is settled or in doubt."""
    for job_id in job_ids:
        await bench.until(job_id, lambda job: job.state.settled or job.state == "in_doubt")


def posts_since(bench: Bench, before: int) -> int:
    return bench.all_posts() - before


async def test_a_single_401_is_taken_for_a_fault_of_the_server(bench: Bench) -> None:
    bench.server.faults.add("unauthorized", route="start", times=1)
    job_ids = await bench.enqueue(*PROMPTS[:3])
    with capture_logs() as logs:
        async with bench.working(bench.settings(submit={"concurrency": 1})):
            await bench.until_gate(lambda row: row["suspected_at"] is not None)
            await bench.until_gate(lambda row: row["suspected_at"] is None)
            await bench.hurry()
            await bench.until_settled(*job_ids)
    await assert_all_completed(bench, job_ids)
    assert "gate.closed" not in [entry["event"] for entry in logs]
    assert bench.all_posts() == len(job_ids) + 1


async def test_a_wrong_key_closes_the_gate_until_it_is_given_back(bench: Bench) -> None:
    bench.server.keys.revoke(bench.server.key)
    job_ids = await bench.enqueue(*PROMPTS)
    async with bench.working():
        await shut(bench, "unauthorized")
        posts = bench.all_posts()
        assert posts <= IN_FLIGHT
        probes = (await bench.gate())["probes"]
        await bench.until_gate(lambda row: row["probes"] >= probes + 2)
        assert posts_since(bench, posts) == 0, "a wrong key is probed without a POST"
        rows = await bench.sql("SELECT DISTINCT state FROM jobs")
        assert rows == [{"state": "queued"}]
        assert bench.server.key not in str(await bench.gate())
        bench.server.keys.allow(bench.server.key)
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await bench.until_settled(*job_ids)
    await assert_all_completed(bench, job_ids)
    assert (await bench.gate())["reason"] is None


async def test_no_credits_are_tried_by_one_canary_at_a_time(bench: Bench) -> None:
    bench.server.faults.add("payment-required", route="start")
    job_ids = await bench.enqueue(*PROMPTS)
    async with bench.working():
        await bench.until_gate(lambda row: row["reason"] == "payment_required")
        await all_answered(bench)
        posts, probes = bench.all_posts(), (await bench.gate())["probes"]
        assert posts <= IN_FLIGHT + probes + 1
        await bench.hurry()
        row = await bench.until_gate(lambda row: row["probes"] >= probes + 2)
        assert posts_since(bench, posts) <= row["probes"] - probes + 1
        assert "insufficient_credits" in row["detail"]
        bench.server.faults.clear()
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await bench.until_settled(*job_ids)
    await assert_all_completed(bench, job_ids)


async def all_answered(bench: Bench) -> None:
    """Wait until no submission is under way."""

    async def none() -> bool:
        return not await bench.sql("SELECT id FROM jobs WHERE state = 'submitting'")

    await eventually(none, lambda: "an answer to each submission")


@pytest.mark.parametrize("preset", ["redirect", "proxy-404"])
async def test_a_wrong_host_closes_the_gate_and_names_itself(bench: Bench, preset: str) -> None:
    bench.server.faults.add(preset, route="*")
    job_ids = await bench.enqueue(*PROMPTS)
    async with bench.working():
        await shut(bench, "wrong_host")
        assert bench.all_posts() <= IN_FLIGHT
        assert bench.server.url in (await bench.gate())["detail"]
        rows = await bench.sql("SELECT DISTINCT state, error_kind FROM jobs")
        assert rows == [{"state": "queued", "error_kind": None}]
        bench.server.faults.clear()
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await bench.until_settled(*job_ids)
    await assert_all_completed(bench, job_ids)


async def test_refused_connections_cost_nothing_but_time(bench: Bench) -> None:
    await bench.server.refuse()
    job_ids = await bench.enqueue(*PROMPTS)
    async with bench.working():
        await shut(bench, "outage")
        assert bench.all_posts() == 0
        await bench.server.accept()
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await bench.until_settled(*job_ids)
    await assert_all_completed(bench, job_ids)
    assert bench.all_posts() == len(job_ids)


async def test_an_outage_of_every_route_leaves_a_handful_in_doubt(bench: Bench) -> None:
    bench.server.faults.add("proxy-502", route="*")
    job_ids = await bench.enqueue(*PROMPTS)
    async with bench.working():
        await shut(bench, "outage")
        assert bench.all_posts() <= IN_FLIGHT
        bench.server.faults.clear()
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await all_at_rest(bench, job_ids)
    await assert_all_completed(bench, job_ids, in_doubt=IN_FLIGHT)


async def test_where_only_submissions_fail_canaries_are_few(bench: Bench) -> None:
    bench.server.faults.add("proxy-502", route="start")
    job_ids = await bench.enqueue(*PROMPTS)
    async with bench.working():
        row = await bench.until_gate(lambda row: row["probes"] >= 2)
        assert row["reason"] == "outage"
        assert bench.all_posts() <= IN_FLIGHT + row["probes"] + 1
        bench.server.faults.clear()
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await all_at_rest(bench, job_ids)
    await assert_all_completed(bench, job_ids, in_doubt=IN_FLIGHT + 4)
    assert all(bench.posts(prompt) == 1 for prompt in PROMPTS)


async def test_an_outage_amid_many_jobs_fails_none(bench: Bench) -> None:
    prompts = [f'{number} [text="ok" tail=0.3]' for number in range(60)]
    job_ids = await bench.enqueue(*prompts)
    async with bench.working():
        await bench.until_settled(job_ids[5])
        bench.server.faults.add("proxy-502", route="*")
        await shut(bench, "outage")
        bench.server.faults.clear()
        await bench.until_gate(lambda row: row["closed_at"] is None)
        await bench.hurry()
        await all_at_rest(bench, job_ids)
    await assert_all_completed(bench, job_ids, in_doubt=IN_FLIGHT)
    assert all(bench.posts(prompt) == 1 for prompt in prompts)


async def test_what_was_sent_before_an_outage_opens_no_gate(bench: Bench) -> None:
    early, late = 'early [text="ok"]', [f"late {number}" for number in range(40)]
    slow = Fault(kind=Kind.DELAY, route="start", when="after", prompt="early", delay=3.0)
    bench.server.faults.add(slow)
    bench.server.faults.add("proxy-502", route="start", prompt="late")
    (early_id,) = await bench.enqueue(early)
    async with bench.working():

        async def arrived() -> bool:
            return bench.posts(early) == 1

        await eventually(arrived, lambda: "the early request")
        await bench.enqueue(*late)
        await bench.until_gate(lambda row: row["reason"] == "outage")
        assert (await bench.job(early_id)).state == "submitting", "its answer is still to come"
        await bench.until_settled(early_id)
        row = await bench.gate()
        assert (row["reason"], row["generation"]) == ("outage", 1)
        assert bench.all_posts() <= 1 + IN_FLIGHT + row["probes"]
    await bench.assert_completed(early_id, "ok")


async def test_live_runs_outlast_a_key_that_is_taken_away(bench: Bench) -> None:
    (job_id,) = await bench.enqueue('[text="Still here." tail=inf]')
    async with bench.working():
        job = await bench.until_state(job_id, "running")
        bench.server.keys.revoke(bench.server.key)
        await shut(bench, "unauthorized")
        assert (await bench.job(job_id)).state == "running"
        bench.release(job)
        bench.server.keys.allow(bench.server.key)
        await bench.until_settled(job_id)
    await bench.assert_completed(job_id, "Still here.")


async def test_once_gives_up_at_a_gate_that_stays_closed_and_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GATE_SHUT_TOO_LONG_S", 0.3)
    bench.server.keys.revoke(bench.server.key)
    job_ids = await bench.enqueue(*PROMPTS[:2])
    with capture_logs() as logs:
        assert await bench.once() == 75
    (said,) = [entry for entry in logs if entry["event"] == "gate.stays_closed"]
    assert (said["log_level"], said["reason"]) == ("error", "unauthorized")
    assert {(await bench.job(job_id)).state for job_id in job_ids} == {"queued"}
    bench.server.keys.allow(bench.server.key)
    await bench.hurry()
    assert await bench.once() == 0, "a worker probes at its start"
    await assert_all_completed(bench, job_ids)


async def test_a_worker_that_ended_amid_its_probe_hinders_nobody(bench: Bench) -> None:
    bench.server.keys.revoke(bench.server.key)
    (job_id,) = await bench.enqueue(PROMPTS[0])
    async with bench.working():
        await bench.until_gate(lambda row: row["reason"] == "unauthorized")
    await bench.execute(
        "UPDATE gates SET probing_until = '2999-01-01 00:00:00.000000',"
        " probing_worker_id = (SELECT id FROM workers)"
    )
    bench.server.keys.allow(bench.server.key)
    await bench.hurry()
    assert await bench.once() == 0
    await assert_all_completed(bench, [job_id])


async def test_only_the_operator_opens_what_the_operator_closed(bench: Bench) -> None:
    who = Claimant("nobody", bench.server.url, fingerprint(bench.server.key))
    (first,) = await bench.enqueue('[text="One." tail=inf]')
    async with bench.working():
        job = await bench.until_state(first, "running")
        close = partial(
            gate_verbs.close, who=who, reason=Reason.OPERATOR, detail="a pause", probe_s=None
        )
        assert await bench.store.write(close)
        (second,) = await bench.enqueue(PROMPTS[0])
        bench.release(job)
        await bench.until_settled(first)
        assert bench.all_posts() == 1
        requests = len(bench.server.stats.requests("status"))
        with anyio.move_on_after(0.3):
            await bench.until_state(second, "submitting", "running", "completed")
        assert (await bench.job(second)).state == "queued"
        assert len(bench.server.stats.requests("status")) == requests, "nobody probes"
        opened = partial(gate_verbs.open_gate, who=who, by_person=True)
        assert await bench.store.write(opened)
        await bench.until_settled(second)
    await bench.assert_completed(first, "One.")
    await assert_all_completed(bench, [second])


async def test_ambiguous_answers_with_a_202_between_them_close_nothing(bench: Bench) -> None:
    prompts = [f"{number} {'lost' if number % 3 else 'fine'}" for number in range(9)]
    bench.server.faults.add(Fault(kind=Kind.RESET, route="start", when="after", prompt="lost"))
    job_ids = await bench.enqueue(*prompts)
    with capture_logs() as logs:
        assert await bench.once(bench.settings(submit={"concurrency": 1})) == 3
    assert "gate.closed" not in [entry["event"] for entry in logs]
    await assert_all_completed(bench, job_ids, in_doubt=6)
    assert gate.AMBIGUOUS_IN_A_ROW == 3


@asynccontextmanager
async def keeping(bench: Bench) -> AsyncIterator[Gatekeeper]:
    """The keeper of a worker that does not run; its gate has a row."""
    async with bench.making() as idle:
        await bench.execute(
            "INSERT INTO gates (api_origin, key_fingerprint) VALUES (:origin, :key)",
            origin=bench.server.url,
            key=fingerprint(bench.server.key),
        )
        yield idle._gate


def now() -> float:
    return SystemClock().boottime()


async def no_job() -> None:
    """A canary that finds nothing to submit."""


@pytest.mark.parametrize("trouble", [Signal.UNAUTHORIZED, Signal.AMBIGUOUS])
async def test_a_gate_that_opens_without_a_run_leaves_the_caution(
    bench: Bench, trouble: Signal
) -> None:
    async with keeping(bench) as keeper:
        for signal in (Signal.AMBIGUOUS, trouble, trouble):
            await keeper.heard(signal, None, began=now())
        assert keeper.shut
        await keeper.tend(no_job, lambda: True, at_start=True)
        row = await bench.gate()
        assert (row["closed_at"], row["suspected_at"], keeper.shut) == (None, None, False)
        assert keeper.allows(8, []) == 1
        await keeper.heard(Signal.ACCEPTED, None, began=now())
        assert keeper.allows(8, []) == 8


async def test_a_canary_opens_the_gate_whatever_was_heard_meanwhile(bench: Bench) -> None:
    async with keeping(bench) as keeper:

        async def canary() -> Signal:
            began = now()
            await keeper.heard(Signal.AMBIGUOUS, None, began=0.0)
            await keeper.heard(Signal.ACCEPTED, None, began=began)
            assert keeper.shut
            return Signal.ACCEPTED

        for _ in range(gate.AMBIGUOUS_IN_A_ROW):
            await keeper.heard(Signal.AMBIGUOUS, None, began=now())
        await keeper.tend(canary, lambda: True, at_start=True)
        row = await bench.gate()
        assert (row["closed_at"], keeper.shut, keeper.allows(8, [])) == (None, False, 1)


async def test_who_closed_the_gate_anew_is_not_overruled(bench: Bench) -> None:
    who = Claimant("another", bench.server.url, fingerprint(bench.server.key))
    close = partial(gate_verbs.close, who=who, reason=Reason.OUTAGE, detail="", probe_s=60.0)
    async with keeping(bench) as keeper:
        await bench.store.write(close)
        await keeper.tend(no_job, lambda: False)
        sent = now()
        await bench.store.write(partial(gate_verbs.open_gate, who=who))
        await bench.store.write(close)
        await keeper.heard(Signal.ACCEPTED, None, began=sent)
        assert (await bench.gate())["closed_at"] is not None


async def test_a_gate_that_another_opens_begins_a_row_anew(bench: Bench) -> None:
    who = Claimant("another", bench.server.url, fingerprint(bench.server.key))
    async with keeping(bench) as keeper:
        for _ in range(gate.AMBIGUOUS_IN_A_ROW):
            await keeper.heard(Signal.AMBIGUOUS, None, began=now())
        await bench.store.write(partial(gate_verbs.open_gate, who=who))
        await keeper.tend(no_job, lambda: True)
        await keeper.heard(Signal.AMBIGUOUS, None, began=now())
        row = await bench.gate()
        assert (row["closed_at"], keeper.shut, keeper.allows(8, [])) == (None, False, 1)


async def test_the_next_trial_goes_out_beside_one_that_takes_long() -> None:
    at = 1000.0
    clock = SimpleNamespace(boottime=lambda: at)
    keeper = Gatekeeper(tools=cast(Tools, SimpleNamespace(clock=clock, rand=lambda: 0.5)))
    assert keeper.allows(8, []) == 8
    await keeper.heard(Signal.AMBIGUOUS, None, began=0.0)
    earlier, trial = 990.0, 1001.0
    assert keeper.allows(8, [earlier] * 7) == 1, "what was on its way before does not count"
    assert keeper.allows(8, [earlier] * 7 + [trial]) == 0
    at = trial + gate.TRIAL_S
    assert keeper.allows(8, [earlier] * 7 + [trial]) == 1


async def test_a_job_may_come_back_while_its_first_request_still_waits(bench: Bench) -> None:
    bench.server.faults.add(Fault(kind=Kind.DELAY, route="start", when="after", delay=3.0, times=1))
    (job_id,) = await bench.enqueue('[text="ok"]')
    async with bench.working() as working:
        await bench.until_state(job_id, "submitting")

        async def under_way(number: int) -> bool:
            return len(working.holdings.submitting) == number

        async def arrived() -> bool:
            return bench.all_posts() == 1

        await eventually(arrived, lambda: "the first request")
        bench.server.faults.add(
            Fault(kind=Kind.DELAY, route="start", when="after", delay=0.5, times=1)
        )
        await bench.execute(
            "UPDATE jobs SET state = 'queued', lease = lease + 1, worker_id = NULL, sent_at = NULL"
            " WHERE id = :id",
            id=job_id,
        )
        await eventually(partial(under_way, 2), lambda: "the second request")
        await bench.until_settled(job_id)
        await eventually(partial(under_way, 0), lambda: "an answer to both")
        (next_id,) = await bench.enqueue('next [text="ok"]')
        await bench.until_settled(next_id)
    assert (await bench.job(job_id)).state == "completed"
    await bench.assert_completed(next_id, "ok")
