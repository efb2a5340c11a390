"""The stream's connection over real sockets: heads, bytes, breaks, limits."""

from __future__ import annotations

import gc
import socket
from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator.recoup.answers import NoStream, StreamHead, Trouble, TroubleKind
from orchestrator.recoup.stream import OpenStream
from tests.remote.clients import recoup
from tests.remote.rawserver import BOUND_S, STREAM_HEAD, Peer, answer, piece, serving

if TYPE_CHECKING:
    from orchestrator.recoup.client import RecoupClient


async def test_bytes_come_as_they_arrive_and_end_cleanly() -> None:
    requests: list[bytes] = []
    got_first = anyio.Event()

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(STREAM_HEAD + piece(b'data: {"a":'))
        with anyio.fail_after(BOUND_S):
            await got_first.wait()
        await peer.send(piece("\u2028é\r".encode()) + piece(b"\n\xff") + piece(b""))

    async with serving(script) as server, recoup(server.url) as client:
        async with client.stream("c-1", 12) as opened:
            assert isinstance(opened, OpenStream)
            assert opened.head == StreamHead(run_id="wrun_01", tail_index=7)
            received = b""
            async for data in opened.reads():
                received += data
                got_first.set()
        assert opened.broken is None
    assert received == b'data: {"a":' + "\u2028é\r".encode() + b"\n\xff"
    assert requests[0].startswith(b"GET /api/chat/c-1/stream?startIndex=12 HTTP/1.1\r\n")
    assert b"accept-encoding: identity\r\n" in requests[0].lower()


@pytest.mark.parametrize(
    ("headers", "head"),
    [
        (b"", StreamHead(None, None)),
        (b"x-workflow-stream-tail-index: -1\r\n", StreamHead(None, -1)),
        (
            b"x-workflow-stream-tail-index: many\r\nx-workflow-run-id: a b\r\n",
            StreamHead(None, None),
        ),
    ],
)
async def test_head_without_usable_headers_is_still_a_stream(
    headers: bytes, head: StreamHead
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 X\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n")
        await peer.send(headers + b"content-length: 2\r\n\r\nok")

    async with (
        serving(script) as server,
        recoup(server.url) as client,
        client.stream("c", 0) as opened,
    ):
        assert isinstance(opened, OpenStream)
        assert opened.head == head
        assert [data async for data in opened.reads()] == [b"ok"]
        assert opened.broken is None


async def test_204_is_no_stream() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(204))

    async with (
        serving(script) as server,
        recoup(server.url) as client,
        client.stream("c", 0) as opened,
    ):
        assert opened == NoStream()


async def test_200_of_another_kind_is_unreadable() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(200, b"<html>sign in"))

    async with (
        serving(script) as server,
        recoup(server.url) as client,
        client.stream("c", 0) as opened,
    ):
        assert isinstance(opened, Trouble)
    assert opened.kind is TroubleKind.UNREADABLE
    assert "sign in" in opened.error


@pytest.mark.parametrize("ending", ["close", "reset", "nonsense"])
async def test_break_ends_the_reads_and_is_told(ending: str) -> None:
    received = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + piece(b"data: 1\n\n"))
        with anyio.fail_after(BOUND_S):
            await received.wait()
        if ending == "reset":
            await peer.reset()
        elif ending == "nonsense":
            await peer.send(b"this is no chunk size\r\n")

    # An unparsable chunk size is found only by the idle timeout.
    async with serving(script) as server, recoup(server.url, stream_idle_timeout=1.0) as client:
        async with client.stream("c", 0) as opened:
            assert isinstance(opened, OpenStream)
            got = b""
            async for data in opened.reads():
                got += data
                received.set()
        assert got == b"data: 1\n\n"
        assert opened.broken


async def test_silence_longer_than_the_idle_timeout_is_a_break() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + piece(b"data: 1\n\n"))
        await peer.until_left()

    async with serving(script) as server, recoup(server.url, stream_idle_timeout=0.3) as client:
        with anyio.fail_after(BOUND_S):
            async with client.stream("c", 0) as opened:
                assert isinstance(opened, OpenStream)
                assert [data async for data in opened.reads()] == [b"data: 1\n\n"]
            await server.left.wait()
        assert opened.broken


async def test_head_may_take_longer_than_a_call() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        # Some servers send the head with the first chunk, and a tool call may be running.
        with anyio.move_on_after(0.6):
            await anyio.sleep_forever()
        await peer.send(STREAM_HEAD + piece(b""))

    async with (
        serving(script) as server,
        recoup(server.url, call_timeout=0.1) as client,
        client.stream("c", 0) as opened,
    ):
        assert isinstance(opened, OpenStream)


@pytest.mark.parametrize("how", ["unread", "midway", "raise", "cancel"])
async def test_connection_is_closed_when_the_block_is_left(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + piece(b"data: 1\n\n"))
        await peer.until_left()

    class LeftError(Exception):
        pass

    async def follow(client: RecoupClient, scope: anyio.CancelScope) -> None:
        async with client.stream("c", 0) as opened:
            assert isinstance(opened, OpenStream)
            if how == "unread":
                return
            async for _ in opened.reads():
                if how == "midway":
                    return
                if how == "raise":
                    raise LeftError
                scope.cancel()

    async with serving(script) as server, recoup(server.url) as client:
        with anyio.CancelScope() as scope:
            if how == "raise":
                with pytest.raises(LeftError):
                    await follow(client, scope)
            else:
                await follow(client, scope)
        assert scope.cancelled_caught is (how == "cancel")
        with anyio.fail_after(BOUND_S):
            await server.left.wait()


async def test_more_than_a_hundred_streams_are_open_at_once() -> None:
    wanted = 130
    opened_now, all_open = [0], anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + piece(b"data: 1\n\n"))
        await all_open.wait()
        await peer.send(piece(b""))

    async with serving(script) as server, recoup(server.url, max_streams=wanted) as client:

        async def follow() -> None:
            async with client.stream("c", 0) as opened:
                assert isinstance(opened, OpenStream)
                async for _ in opened.reads():
                    opened_now[0] += 1
                    if opened_now[0] == wanted:
                        all_open.set()
                assert opened.broken is None

        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as tasks:
                for _ in range(wanted):
                    tasks.start_soon(follow)
    assert opened_now == [wanted]


async def test_stream_sockets_are_probed_while_they_are_silent() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        await peer.until_left()

    async with (
        serving(script) as server,
        recoup(server.url) as client,
        client.stream("c", 0) as opened,
    ):
        assert isinstance(opened, OpenStream)
        ours = [one for one in gc.get_objects() if _is_connected_to(one, server.port)]
        assert ours
        for one in ours:
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


def _is_connected_to(candidate: object, port: int) -> bool:
    if type(candidate) is not socket.socket or candidate.fileno() < 0:
        return False
    try:
        return bool(candidate.getpeername()[1] == port)
    except (OSError, IndexError):
        return False
