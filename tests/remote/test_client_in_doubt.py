"""Submissions whose answer was lost, over real sockets: in doubt, or saved by a `Location`."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from orchestrator.recoup.answers import Accepted, NoAnswer
from tests.remote.clients import Mark, recoup
from tests.remote.rawserver import BOUND_S, Peer, always, answer, serving

BODY = {"prompt": "hello \ud83d"}
IDS = {"runId": "wrun_01", "chatId": "c-1", "sessionId": "s-1"}
LOCATION = "location: /api/chat/runs/wrun_01"


@pytest.fixture
def mark() -> Mark:
    return Mark()


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("read", ["none", "head", "all"])
@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 2", b"HTTP/1.1 202 Accepted\r\nlocation: /"])
async def test_connection_lost_after_the_mark_is_in_doubt(
    mark: Mark, ending: str, read: str, half: bytes
) -> None:
    async def script(peer: Peer) -> None:
        if read != "none":
            await (peer.head() if read == "head" else peer.request())
        await peer.send(half)
        if ending == "reset":
            await peer.reset()

    async with serving(script) as server, recoup(server.url) as client:
        # Large enough that it cannot fit into the socket's buffers when nobody reads.
        body = {"prompt": "x" * (20_000_000 if read == "head" else 10)}
        result = await client.start_run(body, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status is None
    assert result.error
    assert mark.calls == 1


async def test_silent_server_is_in_doubt_after_the_timeout(mark: Mark) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.until_left()

    async with serving(script) as server, recoup(server.url, submit_timeout=0.2) as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status is None


@pytest.mark.parametrize("head", [answer(202, b"", length=999), b"HTTP/1.1 202 X\r\nx-slow: "])
async def test_trickling_answer_does_not_hold_the_call(
    mark: Mark, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.recoup.submit._LAST_BYTES_S", 0.2)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        with anyio.move_on_after(BOUND_S) as never:
            while not never.cancel_called:
                await peer.send(b" ")
                with anyio.move_on_after(0.05):
                    await anyio.sleep_forever()

    async with serving(script) as server, recoup(server.url, submit_timeout=0.3) as client:
        with anyio.fail_after(3):
            result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert "in time" in result.error


@pytest.mark.parametrize("status", [400, 404, 429, 500, 502, 503])
async def test_error_whose_body_broke_is_in_doubt(mark: Mark, status: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(status, b'{"status":"err', "retry-after: 1", length=500))

    async with serving(script) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status == status


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        {},
        {"runId": "../stop", "chatId": "c", "sessionId": "s"},
        {"runId": 7, "chatId": "c", "sessionId": "s"},
    ],
)
async def test_202_that_names_no_run_is_in_doubt(mark: Mark, body: Any) -> None:
    reply = answer(202, body, "location: /api/chat/runs/%2e%2e%2fstop")
    async with serving(always(reply)) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status == 202


async def test_answer_of_absurd_length_is_in_doubt(mark: Mark) -> None:
    reply = answer(202, json.dumps(IDS).encode() + b" " * (2 << 20))
    async with serving(always(reply)) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status == 202
    assert "longer than" in result.error


@pytest.mark.parametrize("status", [200, 201, 204, 206])
async def test_other_success_is_in_doubt(mark: Mark, status: int) -> None:
    body: Any = b"" if status == 204 else IDS
    async with serving(always(answer(status, body))) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status == status


# --- 202 whose body is of no use --------------------------------------------------------------


@pytest.mark.parametrize(
    "location", [LOCATION, "Location: https://api.example.com/api/chat/runs/wrun_01"]
)
@pytest.mark.parametrize("ending", ["close", "reset", "silence", "not json", "too long"])
async def test_202_whose_body_broke_has_the_run_of_its_location(
    mark: Mark, location: str, ending: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if ending == "not json":
            await peer.send(answer(202, b"<html>", location))
        elif ending == "too long":
            await peer.send(answer(202, b" " * (2 << 20), location))
        else:
            await peer.send(answer(202, b'{"runId":"wr', location, length=100))
        if ending == "reset":
            await peer.reset()
        if ending == "silence":
            await peer.until_left()

    async with serving(script) as server, recoup(server.url, submit_timeout=0.5) as client:
        assert await client.start_run(BODY, mark=mark) == Accepted("wrun_01", None, None)
