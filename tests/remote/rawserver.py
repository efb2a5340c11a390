"""A server on loopback whose every byte, close and reset a test decides."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import ByteStream

BOUND_S = 10.0
"""No wait of a script is longer; a test that reaches it fails."""


class Peer:
    """The server's side of one connection."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._unread = b""
        self.port: int = stream.extra(SocketAttribute.remote_port)  # noqa: S610  # anyio's, not an ORM's

    async def head(self) -> bytes:
        """Read through the blank line of a request."""
        while b"\r\n\r\n" not in self._unread:
            self._unread += await self._stream.receive()
        head, self._unread = self._unread.split(b"\r\n\r\n", 1)
        return head + b"\r\n\r\n"

    async def request(self) -> bytes:
        """Read a whole request with a content-length."""
        head = await self.head()
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ),
            0,
        )
        while len(self._unread) < length:
            self._unread += await self._stream.receive()
        body, self._unread = self._unread[:length], self._unread[length:]
        return head + body

    async def some(self, count: int) -> bytes:
        """Read at least `count` bytes."""
        while len(self._unread) < count:
            self._unread += await self._stream.receive()
        return self._unread

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def until_left(self) -> None:
        """Return when the client has closed or reset the connection."""
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await self._stream.receive()

    async def reset(self) -> None:
        """Close with a reset instead of an orderly end."""
        raw: socket.socket = self._stream.extra(SocketAttribute.raw_socket)  # noqa: S610  # anyio's, not an ORM's
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._stream.aclose()

    async def tunnel(self, port: int) -> None:
        """Pass bytes to and from `port` until either side ends."""
        far = await anyio.connect_tcp("127.0.0.1", port)
        async with far, anyio.create_task_group() as tasks:

            async def pump(source: ByteStream, target: ByteStream) -> None:
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        await target.send(await source.receive())
                tasks.cancel_scope.cancel()

            tasks.start_soon(pump, self._stream, far)
            tasks.start_soon(pump, far, self._stream)


Script: TypeAlias = "Callable[[Peer], Awaitable[None]]"


@dataclass
class RawServer:
    """Where the server listens, and every connection it has seen."""

    port: int
    peers: list[Peer] = field(default_factory=list)
    left: anyio.Event = field(default_factory=anyio.Event)
    """Set when a script has come to its end by itself."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve `script` for each connection, over TLS when there is a context."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = RawServer(port=listener.extra(SocketAttribute.local_port))  # noqa: S610  # anyio's, not an ORM's

    async def handle(stream: ByteStream) -> None:
        async with stream:
            peer = Peer(stream)
            server.peers.append(peer)
            # A client may leave at any moment; the tests look at the client's side.
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                with anyio.fail_after(BOUND_S):
                    await script(peer)
                server.left.set()

    accepting = TLSListener(listener, tls, standard_compatible=False) if tls else listener
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(accepting.serve, handle)
        yield server
        tasks.cancel_scope.cancel()


def answer(
    status: int,
    body: bytes | dict[str, Any] | list[Any] = b"",
    *headers: str,
    length: int | None = None,
) -> bytes:
    """Return the bytes of an answer; a dict or list goes out as JSON."""
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", *headers]
    if not any(line.lower().startswith("content-type") for line in headers):
        lines.append(f"content-type: {kind}")
    if status != 204:
        lines.append(f"content-length: {len(content) if length is None else length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def always(reply: bytes) -> Script:
    """Answer every request of a connection with `reply`."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(reply)

    return script


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"x-workflow-run-id: wrun_01\r\nx-workflow-stream-tail-index: 7\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def piece(data: bytes) -> bytes:
    """Return one piece of a chunked body; empty data ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
