"""What is sent: rows of plain SQL, both endpoints, and the documented form of messages."""

from __future__ import annotations

import json

import pytest

from orchestrator.testing import Fault, Kind

from .harness import Bench, canonical


async def insert(bench: Bench, **columns: object) -> int:
    """Insert a row as a person with a SQL shell would."""
    names, marks = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    await bench.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", **columns)  # noqa: S608 - names from this file
    (row,) = await bench.sql("SELECT max(id) AS id FROM jobs")
    return int(row["id"])


async def test_a_prompt_inserted_by_sql_is_all_that_it_takes(bench: Bench) -> None:
    prompt = 'plain SQL [text="It works."]'
    async with bench.working():
        job_id = await insert(bench, prompt=prompt)
        await bench.until_settled(job_id)
    job = await bench.assert_completed(job_id, "It works.")
    assert (job.queue, job.attempt, job.max_attempts) == ("default", 1, 1)


BAD_ROWS = [
    pytest.param({}, "exactly one of prompt and messages", id="nothing"),
    pytest.param({"prompt": "  \n"}, "blank", id="blank"),
    pytest.param({"prompt": "x", "input_messages": '[{"content": "y"}]'}, "exactly one", id="both"),
    pytest.param({"input_messages": "[]"}, "at least one message", id="no-messages"),
    pytest.param({"input_messages": '"text"'}, "list", id="messages-no-list"),
    pytest.param({"input_messages": '[{"role": "user"}]'}, "content", id="no-content"),
    pytest.param({"prompt": "x", "artist_id": "me"}, "UUID", id="artist"),
    pytest.param({"prompt": "x", "topic": "t"}, "drops this field", id="field-of-generate"),
    pytest.param({"prompt": "x" * 4_600_000}, "refuses requests over", id="too-large"),
]


@pytest.mark.parametrize(("columns", "words"), BAD_ROWS)
async def test_a_bad_row_is_rejected_before_anything_is_sent(
    bench: Bench, columns: dict[str, object], words: str
) -> None:
    job_id = await insert(bench, **{"batch": "sql", **columns})
    assert await bench.once() == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("failed", "rejected", 0)
    assert (job.sent_at, job.run_id) == (None, None)
    assert words in (job.error or "")
    assert bench.all_posts() == 0


async def test_messages_in_the_documented_form_work(bench: Bench) -> None:
    words = 'documented [text="Understood."]'
    (job_id,) = await bench.enqueue_rows({"messages": [{"id": "m1", "content": words}]})
    assert await bench.once() == 0
    job = await bench.job(job_id)
    assert (job.state, job.result_text) == ("completed", "Understood.")
    assert job.request == {
        "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": words}]}]
    }
    await bench.assert_kept(job)
    assert bench.posts(words) == 1


async def test_messages_inserted_by_sql_work_too(bench: Bench) -> None:
    words = 'rows [text="Understood."]'
    job_id = await insert(bench, input_messages=json.dumps([{"id": "m", "content": words}]))
    assert await bench.once() == 0
    assert (await bench.job(job_id)).result_text == "Understood."


async def test_model_and_artist_are_sent(bench: Bench) -> None:
    artist = "3c90c3cc-0d44-4b50-8888-8dd25736052a"
    (job_id,) = await bench.enqueue('[text="ok"]', model="vendor/model", artist_id=artist)
    assert await bench.once() == 0
    job = await bench.job(job_id)
    run = bench.server.runs.get(job.run_id or "")
    assert run is not None
    assert (run.order.model, run.order.artist_id) == ("vendor/model", artist)
    assert job.model_used == "vendor/model"


async def test_an_unknown_model_fails_its_run(bench: Bench) -> None:
    (job_id,) = await bench.enqueue("hello", model="unknown/model")
    assert await bench.once() == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.run_status) == ("failed", "run_failed", "failed")


# --- the synchronous endpoint ---------------------------------------------------------------------


async def test_generate_keeps_the_whole_answer(bench: Bench) -> None:
    prompt = '[text="Generated." reasoning]'
    (job_id,) = await bench.enqueue(prompt, endpoint="generate")
    assert await bench.once() == 0
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.result_text) == ("completed", None, "Generated.")
    assert (job.run_id, job.chat_id, job.attempt) == (None, None, 1)
    assert job.finish_reason == "stop"
    (kept,) = await bench.messages(job_id)
    assert kept.source == "generate"
    usage = kept.message["usage"]
    assert (job.input_tokens, job.output_tokens) == (usage["inputTokens"], usage["outputTokens"])
    assert job.total_tokens == usage["totalTokens"]
    assert kept.message["text"] == [{"type": "text", "text": "Generated."}]
    assert kept.message["finishReason"] == "stop"
    assert kept.message["response"]["messages"]
    assert canonical(kept.message) == kept.message
    assert bench.posts(prompt) == 1
    (call,) = bench.server.stats.requests()
    assert call.route == "generate"


async def test_generate_takes_the_documented_messages(bench: Bench) -> None:
    words = 'documented [text="Understood."]'
    (job_id,) = await bench.enqueue_rows(
        {
            "messages": [{"id": "m1", "role": "user", "content": words}],
            "endpoint": "generate",
            "topic": "a topic",
            "exclude_tools": ["search"],
        }
    )
    assert await bench.once() == 0
    job = await bench.job(job_id)
    assert (job.state, job.result_text) == ("completed", "Understood.")
    assert job.request is not None
    assert (job.request["topic"], job.request["excludeTools"]) == ("a topic", ["search"])


@pytest.mark.parametrize(
    ("finish", "kind"),
    [("length", "incomplete"), ("content-filter", "incomplete"), ("error", "model_error")],
)
async def test_generate_is_judged_by_its_finish_reason(
    bench: Bench, finish: str, kind: str
) -> None:
    (job_id,) = await bench.enqueue(f'[text="Half" finish={finish}]', endpoint="generate")
    assert await bench.once() == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.result_text) == ("failed", kind, "Half")
    assert job.finish_reason == finish


async def test_a_host_without_the_endpoint_rejects_only_its_jobs(bench: Bench) -> None:
    bench.server.faults.add("proxy-404", route="generate")
    old, new = await bench.enqueue_rows(
        {"prompt": "old", "endpoint": "generate", "priority": 1},
        {"prompt": '[text="Fine."]'},
    )
    assert await bench.once(bench.settings(submit={"concurrency": 1})) == 3
    job = await bench.job(old)
    assert (job.state, job.error_kind, job.http_status) == ("failed", "rejected", 404)
    assert "endpoint" in (job.error or "")
    await bench.assert_completed(new, "Fine.")
    assert (await bench.gate())["generation"] == 0, "the gate stayed open"


async def test_a_wrong_host_closes_the_gate_for_generate_too(bench: Bench) -> None:
    bench.server.faults.add("proxy-404", route="*")
    (job_id,) = await bench.enqueue("old", endpoint="generate")
    async with bench.working():
        await bench.until_gate(lambda row: row["reason"] == "wrong_host")
        assert (await bench.job(job_id)).state in ("queued", "submitting")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(kind=Kind.RESET, route="generate", when="after"), id="reset"),
        pytest.param(Fault(kind=Kind.ANSWER, route="generate", status=500), id="500"),
        pytest.param(Fault(kind=Kind.BREAK_BODY, route="generate", when="after"), id="half"),
        pytest.param(Fault(kind=Kind.DELAY, route="generate", delay=1.5), id="timeout"),
    ],
)
async def test_a_lost_answer_of_generate_is_in_doubt(bench: Bench, fault: Fault) -> None:
    bench.server.faults.add(fault)
    (job_id,) = await bench.enqueue('[text="ok"]', endpoint="generate")
    assert await bench.once(bench.settings(generate={"timeout": 0.5})) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind, job.attempt) == ("in_doubt", "in_doubt", 1)
    assert bench.all_posts() == 1


async def test_generate_has_a_timeout_of_its_own(bench: Bench) -> None:
    (job_id,) = await bench.enqueue('[text="Slow." first=0.8]', endpoint="generate")
    settings = bench.settings(submit={"timeout": 0.3}, generate={"timeout": 10})
    assert await bench.once(settings) == 0
    assert (await bench.job(job_id)).result_text == "Slow."
