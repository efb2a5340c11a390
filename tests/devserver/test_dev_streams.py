from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator.devserver.answers import Refused
from orchestrator.devserver.streams import start_index
from orchestrator.testing import DevServer, Pace, Timing

from .client import Client, open_client, until

if TYPE_CHECKING:
    from .client import Answer, Ids

CANCELLED = {"type": "tool-output-error", "errorText": "Cancelled"}


def truth(client: Client, ids: Ids) -> list[dict[str, Any]]:
    run = client.server.runs.get(ids.run)
    assert run is not None
    return list(run.chunks)


async def follow(client: Client, ids: Ids) -> list[Answer]:
    """Resume as the protocol says until the run's own `finish` was seen."""
    answers: list[Answer] = []
    seen = 0
    for _ in range(len(truth(client, ids))):
        answers.append(await client.stream(ids, seen))
        pairs = zip(answers[-1].events, truth(client, ids)[seen:], strict=False)
        seen += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if "finish" in answers[-1].types:
            return answers
    raise AssertionError("the responses bring no finish")


async def test_a_stream_gives_every_chunk_then_done(client: Client) -> None:
    ids = await client.start("all [steps=3 tool=search reasoning sources files commit first=0.3]")
    answer = await client.stream(ids)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-workflow-run-id"] == ids.run
    assert int(answer.headers["x-workflow-stream-tail-index"]) < len(answer.events)
    assert answer.events == truth(client, ids)
    assert (answer.done, answer.rest) == (True, b"")
    assert answer.types[-3:] == ["finish", "data-commit", "data-commit"]
    assert await client.status(ids) == "completed"


async def test_a_prefix_and_the_rest_make_the_whole(client: Client) -> None:
    ids = await client.start("resumed [steps=2 first=0.3]")
    whole = await client.stream(ids)
    again = await client.start("resumed [steps=2 tail=60]")
    await client.written(again, len(whole.events))
    stored = truth(client, again)
    for start in (0, 1, 5, len(stored) - 1):
        client.server.faults.add("cut", chunks=len(stored) - start, times=1)
        answer = await client.stream(again, start)
        assert answer.events == stored[start:]
        assert answer.headers["x-workflow-stream-tail-index"] == str(len(stored) - 1)


@pytest.mark.parametrize(
    ("text", "index"),
    [(None, 0), ("0", 0), ("7", 7), ("1e1", 10), (" 3 ", 3), ("0x10", 16), ("2.0", 2), ("+4", 4)],
)
def test_start_index_is_read_as_javascript_reads_numbers(text: str | None, index: int) -> None:
    assert start_index(text) == index


@pytest.mark.parametrize("text", ["", " ", "-1", "1.5", "x", "1_0", "NaN", "Infinity", "1e400"])
async def test_a_bad_start_index_is_400(client: Client, text: str) -> None:
    with pytest.raises(Refused):
        start_index(text)
    ids = await client.start("x")
    answer = await client.http.get(f"/api/chat/{ids.chat}/stream", params={"startIndex": text})
    assert answer.status_code == 400
    assert answer.json()["missing_fields"] == ["startIndex"]


async def test_two_readers_get_the_same_chunks(client: Client) -> None:
    ids = await client.start("shared [tokens=60 first=0.3]")
    answers: list[Answer] = []

    async def read() -> None:
        answers.append(await client.stream(ids))

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        readers.start_soon(read)
    assert answers[0].events == answers[1].events == truth(client, ids)
    assert client.server.stats.max_open_streams == 2
    assert client.server.stats.open_streams == 0


async def test_after_the_end_there_is_nothing_to_stream(client: Client) -> None:
    ids = await client.start("over")
    await client.ended(ids)
    answer = await client.stream(ids)
    assert (answer.status, answer.events, answer.done) == (204, [], False)


async def test_a_cancelled_run_closes_its_open_calls(client: Client) -> None:
    ids = await client.start("stop [steps=2 tools=2 tool_time=60]")
    answers: list[Answer] = []

    async def read() -> None:
        answers.append(await client.stream(ids))

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        await until(lambda: truth(client, ids)[-1:] != [] and _waits(client, ids))
        await client.stop(ids)
    (answer,) = answers
    stored = truth(client, ids)
    calls = [chunk["toolCallId"] for chunk in stored if chunk["type"] == "tool-input-available"]
    assert answer.events == [*stored, *({**CANCELLED, "toolCallId": call} for call in calls)]
    assert len(calls) == 2
    assert answer.done
    assert "finish" not in answer.types


def _waits(client: Client, ids: Ids) -> bool:
    available = [c for c in truth(client, ids) if c["type"] == "tool-input-available"]
    return len(available) == 2 and client.server.stats.open_streams == 1


async def test_a_failed_run_streams_its_attempts_and_finish(client: Client) -> None:
    ids = await client.start("x [steps=2 fail=2 first=0.3]")
    answer = await client.stream(ids)
    assert answer.events == truth(client, ids)
    assert answer.types[-1] == "finish"
    assert await client.ended(ids) == "failed"


async def test_the_watch_ends_a_slow_replay_when_the_run_is_over() -> None:
    timing = Timing(pace=Pace(chunk=0.0), watch=0.1)
    async with DevServer(timing=timing) as server, open_client(server) as http:
        client = Client(server, http)
        ids = await client.start("x [tokens=500 tail=0.5]")
        server.faults.add("cut", kind="slow", delay=0.01)
        answer = await client.stream(ids)
        stored = truth(client, ids)
        assert answer.done
        assert 0 < len(answer.events) < len(stored)
        assert answer.events == stored[: len(answer.events)]


async def test_a_hundred_streams_at_once(client: Client) -> None:
    counts: list[int] = []

    async def one(number: int) -> None:
        ids = await client.start(f"{number} [tokens=30 delay=0.01 first=2]")
        answer = await client.stream(ids)
        assert answer.done
        # A server this busy may find that a run is over before it has delivered the last chunks.
        assert answer.events == truth(client, ids)[: len(answer.events)]
        counts.append(len(answer.events))

    async with anyio.create_task_group() as readers:
        for number in range(100):
            readers.start_soon(one, number)
    assert len(counts) == 100
    assert min(counts) > 20
    assert client.server.stats.max_open_streams > 50


async def test_cuts_then_resumption_give_the_whole_with_false_ends_between(
    client: Client,
) -> None:
    client.server.faults.add("cut", chunks=7, after=1)
    ids = await client.start("x [steps=3 tail=60]")
    run = client.server.runs.get(ids.run)
    assert run is not None
    stored = list(run.plan.chunks)
    await client.written(ids, len(stored))
    answers = await follow(client, ids)
    assert len(answers) > len(stored) // 8
    made_up = 0
    at = 0
    for answer in answers:
        assert answer.done
        real = min(7, len(stored) - at)
        assert answer.events[:real] == stored[at : at + real]
        made_up += len(answer.events) - real
        at += real
    assert at == len(stored)
    assert made_up > 0


async def test_a_call_cut_in_its_input_is_made_available_before_it_is_cancelled(
    client: Client,
) -> None:
    ids = await client.start("x [steps=2 tail=60]")
    run = client.server.runs.get(ids.run)
    assert run is not None
    kinds = [chunk["type"] for chunk in run.plan.chunks]
    opened = kinds.index("tool-input-start")
    call = run.plan.chunks[opened]
    client.server.faults.add("cut", chunks=opened + 2)
    answer = await client.stream(ids)
    assert answer.events[opened + 2 :] == [
        {
            "type": "tool-input-available",
            "toolCallId": call["toolCallId"],
            "toolName": "bash",
            "input": {},
        },
        {**CANCELLED, "toolCallId": call["toolCallId"]},
    ]
    # A call that was opened in an earlier response gets no made-up end.
    client.server.faults.clear()
    client.server.faults.add("cut", chunks=1)
    later = await client.stream(ids, opened + 1)
    assert later.events == [run.plan.chunks[opened + 1]]
