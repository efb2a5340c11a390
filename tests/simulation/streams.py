"""The two ends of a simulated connection: httpcore's stream, and an asyncio transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio
import httpcore

if TYPE_CHECKING:
    from .network import Connection, Item, Network
    from .timeline import Loop


class Backend(httpcore.AsyncNetworkBackend):
    """Opens a worker's connections on the simulated network."""

    def __init__(self, network: Network, process: Loop) -> None:
        self._network = network
        self._process = process

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - there is one server
        port: int,  # noqa: ARG002 - the same
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - there are no addresses
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - nor sockets
    ) -> httpcore.AsyncNetworkStream:
        how, seconds = self._network.attempt(self._process)
        try:
            with anyio.fail_after(timeout):
                await anyio.sleep(seconds)
                if how == "unanswered":
                    await anyio.sleep_forever()
        except TimeoutError as error:
            self._network.trace.count("connection unanswered")
            raise httpcore.ConnectTimeout("the connection was not answered") from error
        if how == "refused":
            self._network.trace.count("connection refused")
            raise httpcore.ConnectError("the connection was refused")
        return self._network.open(self._process)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class ClientStream(httpcore.AsyncNetworkStream):
    """A worker's end. It yields where anyio's socket stream yields."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._received = bytearray()
        self._ended = False
        self._reset = False
        self._closed = False
        self._news = asyncio.Event()

    def take(self, item: Item) -> None:
        """Take what has arrived."""
        if isinstance(item, bytes):
            self._received += item
        else:
            self._ended = True
            self._reset = self._reset or item.value == "reset"
        self._news.set()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await anyio.lowlevel.checkpoint()
        try:
            with anyio.fail_after(timeout):
                while not (self._received or self._ended or self._closed):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise httpcore.ReadTimeout("nothing came") from error
        if self._reset or self._closed:
            raise httpcore.ReadError("the connection was reset")
        data = bytes(self._received[:max_bytes])
        del self._received[:max_bytes]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the machine takes all at once
        if not buffer:
            return
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._reset or self._closed:
            raise httpcore.WriteError("the connection was reset")
        connection = self._connection
        connection.network.observer.sends(connection.process.name, connection.number, bytes(buffer))
        connection.to_server.send(bytes(buffer))
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._news.set()
            self._connection.client_closed()
        await anyio.lowlevel.checkpoint()

    def get_extra_info(self, info: str) -> Any:
        return self._ended if info == "is_readable" else None


class ServerTransport(asyncio.Transport):
    """The API's end, for aiohttp's protocol."""

    def __init__(self, connection: Connection, loop: Loop, factory: Callable[[], Any]) -> None:
        super().__init__()
        self.loop = loop
        self._connection = connection
        self._factory = factory
        self._protocol: Any = None
        self._closing = False
        self._paused = False
        self._waiting: list[Item] = []

    def begin(self) -> None:
        """Hand the connection to the server."""
        self._protocol = self._factory()
        self._protocol.connection_made(self)

    def take(self, item: Item) -> None:
        """Take what has arrived."""
        if self._closing:
            return
        if self._paused:
            self._waiting.append(item)
        elif isinstance(item, bytes):
            self._protocol.data_received(item)
        elif item.value == "closed":
            if not self._protocol.eof_received():
                self.close()
        else:
            self._lose(ConnectionResetError("the connection was reset"))

    # --- what aiohttp calls -------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if not self._closing:
            self._connection.to_client.send(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._connection.server_closed(reset=False)
            self._lose(None)

    def abort(self) -> None:
        if not self._closing:
            self._connection.server_closed(reset=True)
            self._lose(None)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            self.loop.call_soon(self.take, item)

    def get_write_buffer_size(self) -> int:
        return 0

    def _lose(self, error: Exception | None) -> None:
        self._closing = True
        self.loop.call_soon(self._protocol.connection_lost, error)
