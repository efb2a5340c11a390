"""Answers of a size that nobody expects: read, folded, kept exactly, or refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from orchestrator.devserver import runs
from orchestrator.devserver.script import Script, read_script
from orchestrator.recoup import EventParser, MessageFold, client
from orchestrator.recoup.resume import ResponseReader
from orchestrator.states import ErrorKind, State
from orchestrator.worker import holdings
from orchestrator.worker.waits import Backoff, Random

from .harness import Bench, eventually

HUGE = int(os.environ.get("TEST_HUGE_BYTES", "20000000"))
"""20 MB, to be quick; `TEST_HUGE_BYTES=100000000 pytest tests/worker/test_huge_answers.py` sends
the 100 MB that are promised, in about 8 s of processor time for each database."""

WORDS = "tool output "
PROMPT = '[steps=2 first=0.3 tool=odd tool_time=0.2 output=huge text="Done." tail=1]'


@pytest.fixture
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How long the output `huge` is; no prompt could hold it."""
    length: int = request.param

    def read(prompt: str) -> Script:
        script = read_script(prompt)
        huge = WORDS * (length // len(WORDS))
        return dataclasses.replace(script, output=huge) if script.output == "huge" else script

    monkeypatch.setattr(runs, "read_script", read)
    return length


def of_size(*sizes: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("size", sizes, indirect=True, ids=lambda size: f"{size:.0e}")


async def output_of(bench: Bench, job_id: int) -> Any:
    (message,) = [row.message for row in await bench.messages(job_id)]
    (call,) = [part for part in message["parts"] if part["type"] == "tool-odd"]
    return call["output"]


@of_size(HUGE)
async def test_a_huge_tool_output_is_kept_exactly(bench: Bench, size: int) -> None:
    """It comes in one chunk of the stream, is checkpointed, and comes again with the message."""
    prompt = PROMPT.replace("tail=1", "tail=inf")
    (job_id,) = await bench.enqueue(prompt)
    async with bench.working(bench.settings(follow={"mode": "stream"})):
        job = await bench.until_state(job_id, "running")
        run = bench.server.runs.get(job.run_id or "")
        assert run is not None

        async def saved() -> bool:
            (row,) = await bench.sql("SELECT sum(count) AS chunks FROM stream_checkpoints")
            return bool(row["chunks"] == len(run.plan.chunks))

        await eventually(saved, lambda: "the whole stream in checkpoints")
        bench.server.runs.settle(run, "completed")
        (job,) = await bench.until_settled(job_id)
    assert (job.state, job.result_text) == (State.COMPLETED, "Done.")
    assert await output_of(bench, job_id) == WORDS * (size // len(WORDS))
    assert [row.source for row in await bench.messages(job_id)] == ["server"]
    assert bench.posts(prompt) == 1


@pytest.mark.sqlite_only
@of_size(3_000_000)
@pytest.mark.parametrize("mode", ["stream", "poll"])
async def test_a_message_longer_than_what_is_read_of_an_answer(
    bench: Bench, size: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live bound is 100 MiB. The folded stream stands in; without one, the job says why."""
    monkeypatch.setattr(client, "_CALL_BODY", size // 2)
    monkeypatch.setattr("orchestrator.worker.collect.PATIENCE_S", 0.0)
    (job_id,) = await bench.enqueue(PROMPT)
    code = await bench.once(bench.settings(follow={"mode": mode}))
    job = await bench.job(job_id)
    if mode == "stream":
        assert (code, job.state, job.result_text) == (0, State.COMPLETED, "Done.")
        assert await output_of(bench, job_id) == WORDS * (size // len(WORDS))
        assert [row.source for row in await bench.messages(job_id)] == ["stream"]
    else:
        assert (code, job.state, job.error_kind) == (3, State.FAILED, ErrorKind.COLLECT_FAILED)
        assert f"the body is longer than {size // 2} bytes" in (job.error or "")
        assert job.run_id
        assert job.chat_id
    assert bench.posts(PROMPT) == 1


def at_once(*, first: float, most: float, rand: Random) -> Backoff:
    return Backoff(first=first / 100, most=most / 100, rand=rand)


@pytest.mark.sqlite_only
@of_size(3_000_000)
@pytest.mark.parametrize("mode", ["stream", "poll"])
async def test_what_the_database_cannot_hold_fails_its_own_job_only(
    bench: Bench, size: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite and PostgreSQL hold a value of about 1 GB; here it is half of what comes."""
    monkeypatch.setattr(holdings, "Backoff", at_once)

    @event.listens_for(bench.store._engine, "connect")
    def hold_little(connection: Any, _record: Any) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, size // 2)

    bench.store._engine.dispose()
    job_id, other = await bench.enqueue(PROMPT, '[text="Small."]')
    with capture_logs():
        assert await bench.once(bench.settings(follow={"mode": mode})) == 3
    job = await bench.job(job_id)
    assert (job.state, job.error_kind) == (State.FAILED, ErrorKind.INTERNAL)
    assert "string or blob too big" in (job.error or "")
    assert job.run_id
    assert job.chat_id
    assert bench.posts(PROMPT) == 1
    await bench.assert_completed(other, "Small.")


# --- a stream of a million chunks ---------------------------------------------------------------

CHUNKS = 1_000_000


def body() -> Iterator[bytes]:
    """The reads of a stream; each event is short, as a model's tokens are."""

    def framed(*chunks: dict[str, str]) -> bytes:
        return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)

    yield framed({"type": "start", "messageId": "m"}, {"type": "start-step"})
    yield framed({"type": "text-start", "id": "0"})
    tokens = [{"type": "text-delta", "id": "0", "delta": str(digit)} for digit in range(10)]
    thousand = framed(*tokens) * 100
    for _ in range(CHUNKS // 1000):
        yield thousand[:7_777]
        yield thousand[7_777:]
    yield framed({"type": "text-end", "id": "0"}, {"type": "finish-step"}, {"type": "finish"})


def test_a_stream_of_a_million_chunks_is_folded() -> None:
    """Takes 4 s of processor time: the cost must stay linear, or this would never end."""
    parser, fold = EventParser(), MessageFold()
    reader = ResponseReader(own_run=True, turn_open=False)
    count = 0
    for piece in body():
        for chunk in reader.feed(parser.feed(piece)):
            fold.feed(chunk)
            count += 1
    assert count == CHUNKS + 6
    assert fold.finished
    (text,) = [part["text"] for part in fold.message["parts"] if part["type"] == "text"]
    assert text == "0123456789" * (CHUNKS // 10)
