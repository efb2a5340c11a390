"""What each outcome of a submission makes of the job: its row, the gate, and the POSTs sent."""

from __future__ import annotations

import pytest

from orchestrator.job import Job
from orchestrator.testing import Fault, Kind

from .harness import Bench

PROMPT = 'hello [text="Hi there."]'


async def submitted(bench: Bench, *faults: Fault, event: str, **sections: dict[str, object]) -> Job:
    """Submit one job against the faults, and return it as the answer left it."""
    for fault in faults:
        bench.server.faults.add(fault)
    (job_id,) = await bench.enqueue(PROMPT)
    async with bench.working(bench.settings(**sections)):
        await bench.until_event(job_id, event)
    return await bench.job(job_id)


def envelope(status: int, **headers: str) -> Fault:
    return Fault(
        kind=Kind.ANSWER,
        route="start",
        times=1,
        status=status,
        error="no such luck",
        headers=headers,
    )


def page(status: int, **headers: str) -> Fault:
    return Fault(
        kind=Kind.ANSWER,
        route="start",
        times=1,
        status=status,
        body="<html><body>nginx</body></html>",
        headers={"Content-Type": "text/html", **headers},
    )


async def test_202_is_followed_to_its_message(bench: Bench) -> None:
    (job_id,) = await bench.enqueue(PROMPT)
    assert await bench.once() == 0
    job = await bench.assert_completed(job_id, "Hi there.")
    assert job.attempt == 1
    assert job.request == {"prompt": PROMPT}
    assert job.sent_at is not None
    assert job.accepted_at is not None
    assert job.finished_at is not None
    assert job.sent_at <= job.accepted_at <= job.finished_at


async def test_a_202_whose_body_broke_finds_its_chat_while_the_run_goes_on(bench: Bench) -> None:
    bench.server.faults.add("broken-body")
    (job_id,) = await bench.enqueue('[text="Found." tail=inf]')
    async with bench.working():
        await bench.until_event(job_id, "run.chat_found")
        bench.release(await bench.job(job_id))
        await bench.until_settled(job_id)
    job = await bench.assert_completed(job_id, "Found.")
    assert job.attempt == 1


async def test_a_202_whose_body_broke_and_whose_chat_is_never_found_ends_at_once(
    bench: Bench,
) -> None:
    bench.server.faults.add("broken-body")
    bench.server.faults.add("server-error", route="chats")
    (job_id,) = await bench.enqueue(PROMPT)
    assert await bench.once() == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("failed", "collect_failed", "completed")
    assert (job.run_id in {run.order.run_id for run in bench.server.runs}, job.chat_id) == (
        True,
        None,
    )
    assert "chat is not known" in (job.error or "")
    assert bench.posts(PROMPT) == 1


WAITS = [
    pytest.param(envelope(408), None, id="408"),
    pytest.param(envelope(425), None, id="425"),
    pytest.param(page(429), None, id="429"),
    pytest.param(page(429, **{"Retry-After": "77"}), 77, id="429-retry-after"),
    pytest.param(page(503, **{"Retry-After": "77"}), 77, id="503-retry-after"),
]


@pytest.mark.parametrize(("fault", "retry_after"), WAITS)
async def test_an_answer_that_asks_for_patience_puts_the_job_back(
    bench: Bench, fault: Fault, retry_after: int | None
) -> None:
    job = await submitted(bench, fault, event="submit.deferred")
    assert (job.state, job.error_kind, job.attempt) == ("queued", None, 0)
    assert job.http_status == fault.status
    assert job.error is not None
    assert str(fault.status) in job.error
    assert (job.sent_at, job.worker_id, job.run_id) == (None, None, None)
    assert bench.posts(PROMPT) == 1
    assert (await bench.gate())["closed_at"] is None
    wait_s = (job.available_at - job.updated_at).total_seconds()
    if retry_after is None:
        assert 0.9 <= wait_s <= 2.1
    else:
        assert retry_after - 0.1 <= wait_s <= retry_after + 1

    await bench.hurry()
    assert await bench.once() == 0
    job = await bench.job(job.id)
    assert (job.state, job.attempt, job.error) == ("completed", 1, None)
    assert bench.posts(PROMPT) == 2
    assert bench.server.stats.runs_by_prompt[PROMPT] == 1


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 413, 415, 422])
async def test_a_refusal_in_the_envelope_fails_the_job_in_the_servers_words(
    bench: Bench, status: int
) -> None:
    bench.server.faults.add(envelope(status))
    (job_id,) = await bench.enqueue(PROMPT)
    assert await bench.once() == 3
    job = await bench.job(job_id)
    kind = "forbidden" if status == 403 else "rejected"
    assert (job.state, job.error_kind, job.http_status) == ("failed", kind, status)
    assert job.attempt == 1
    assert job.error is not None
    assert "no such luck" in job.error
    assert bench.posts(PROMPT) == 1
    assert (await bench.gate())["closed_at"] is None


async def test_a_refused_field_is_named(bench: Bench) -> None:
    organization = "3c90c3cc-0d44-4b50-8888-8dd25736052a"
    (job_id,) = await bench.enqueue(PROMPT, organization_id=organization)
    assert await bench.once() == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.http_status) == ("failed", "forbidden", 403)
    assert "Access denied to specified organization_id" in (job.error or "")


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 413, 415, 422])
async def test_the_same_answer_from_a_proxy_closes_the_gate(bench: Bench, status: int) -> None:
    job = await submitted(bench, page(status), event="submit.deferred")
    assert (job.state, job.error_kind, job.attempt) == ("queued", None, 0)
    assert job.http_status == status
    events = await bench.sql("SELECT count(*) AS n FROM job_events WHERE event = 'submit.deferred'")
    assert events == [{"n": 1}]
    gate = await bench.gate()
    assert gate["generation"] >= 1
    assert f"{bench.server.url}/api/chat/runs" in (job.error or "")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_closes_the_gate(bench: Bench, status: int) -> None:
    bench.server.faults.add("proxy-404", route="status")  # the probe sees the wrong host too
    job = await submitted(bench, page(status, Location="/elsewhere"), event="submit.deferred")
    assert (job.state, job.attempt, job.http_status) == ("queued", 0, status)
    gate = await bench.gate()
    assert gate["reason"] == "wrong_host"
    assert gate["closed_at"] is not None
    assert f"{bench.server.url}/api/chat/runs" in gate["detail"]
    assert "/elsewhere" in gate["detail"]
    assert bench.all_posts() == 1


@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorized"), (402, "payment_required")])
async def test_401_and_402_put_the_job_back_and_shut_the_gate(
    bench: Bench, status: int, reason: str
) -> None:
    bench.server.faults.add(envelope(status))
    bench.server.faults.add("unauthorized", route="status")
    (job_id,) = await bench.enqueue(PROMPT)
    async with bench.working():
        gate = await bench.until_gate(lambda row: row["closed_at"] is not None)
        assert gate["reason"] == reason
        assert "no such luck" in gate["detail"] or "Unauthorized" in gate["detail"]
        job = await bench.job(job_id)
        if status == 401:
            assert (job.state, job.attempt, job.http_status) == ("queued", 0, status)
            assert bench.posts(PROMPT) == 1


DOUBTS = [
    pytest.param(Fault(kind=Kind.RESET, route="start", when="after"), None, 1, id="reset-after"),
    pytest.param(Fault(kind=Kind.RESET, route="start"), None, 0, id="reset-before"),
    pytest.param(Fault(kind=Kind.CLOSE, route="start", when="after"), None, 1, id="closed-after"),
    pytest.param(Fault(kind=Kind.CLOSE, route="start"), None, 0, id="closed-before"),
    pytest.param(Fault(kind=Kind.DELAY, route="start", delay=1.5), None, 1, id="read-timeout"),
    pytest.param(envelope(500), 500, 0, id="500"),
    pytest.param(page(502), 502, 0, id="502"),
    pytest.param(page(503), 503, 0, id="503"),
    pytest.param(page(504), 504, 0, id="504"),
    pytest.param(page(524), 524, 0, id="524"),
    pytest.param(envelope(418), 418, 0, id="418"),
    pytest.param(envelope(410), 410, 0, id="410"),
    pytest.param(page(200), 200, 0, id="200"),
    pytest.param(page(202), 202, 0, id="202-unreadable"),
    pytest.param(page(204), 204, 0, id="204"),
    pytest.param(
        Fault(kind=Kind.ANSWER, route="start", when="after", status=500), 500, 1, id="started-500"
    ),
]


@pytest.mark.parametrize(("fault", "status", "runs"), DOUBTS)
async def test_an_answer_that_is_lost_or_unclear_leaves_the_job_in_doubt(
    bench: Bench, fault: Fault, status: int | None, runs: int
) -> None:
    bench.server.faults.add(fault)
    (job_id,) = await bench.enqueue(PROMPT)
    timeout = 0.4 if fault.kind is Kind.DELAY else 10.0
    assert await bench.once(bench.settings(submit={"timeout": timeout})) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.http_status) == ("in_doubt", "in_doubt", status)
    assert (job.attempt, job.worker_id, job.resubmit_at) == (1, None, None)
    assert job.sent_at is not None
    assert job.error is not None
    assert "a run may have been started" in job.error
    bench.server.faults.clear()
    assert await bench.once() == 0, "a held job is not due"
    assert bench.posts(PROMPT) == 1
    if fault.kind is not Kind.DELAY:
        assert bench.server.stats.runs_by_prompt[PROMPT] == runs
    assert (await bench.gate())["closed_at"] is None


@pytest.mark.parametrize("how", ["refused", "dns", "tls"])
async def test_nothing_sent_is_no_attempt(bench: Bench, how: str) -> None:
    match how:
        case "refused":
            await bench.server.refuse()
        case "dns":
            bench.base_url = "https://no-such-host.invalid"
        case "tls":
            bench.base_url = bench.server.url.replace("http://127.0.0.1", "https://localhost")
    job = await submitted(bench, event="submit.not_sent")
    assert (job.state, job.error_kind, job.attempt) == ("queued", None, 0)
    assert (job.sent_at, job.http_status, job.worker_id) == (None, None, None)
    assert "the request was not sent" in (job.error or "")
    assert bench.all_posts() == 0
    assert job.deferrals >= 1
