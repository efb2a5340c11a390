"""Time the two transports that can carry the status polls and streams.

Run `python benchmarks/transport.py [--requests 5000] [--streams 300]`. A raw server in a process
of its own answers small JSON over loopback; the client keeps 10 and then 100 requests in flight,
then opens idle streams. Printed: requests a second, CPU microseconds a request, and the seconds
that opening the streams takes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from typing import TYPE_CHECKING

import aiohttp
import anyio
import httpx
from httpx_aiohttp import AiohttpTransport

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_BODY = b'{"runId":"wrun_01HZX0000000000000000000","status":"running"}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b'e\r\ndata: {"a":1}\n\r\n'
)


class _Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pending = b""

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while b"\r\n\r\n" in self._pending:
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            self._transport.write(_STREAM if b"/stream" in head else _ANSWER)


def _serve(ready: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def _plain(connections: int) -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=connections))


def _aiohttp(connections: int) -> httpx.AsyncBaseTransport:
    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections))

    return AiohttpTransport(client=session)


async def _calls(client: httpx.AsyncClient, url: str, requests: int, in_flight: int) -> str:
    left = iter(range(requests))

    async def one_after_another() -> None:
        for _ in left:
            response = await client.get(url)
            assert response.json()["status"] == "running"

    began, cpu = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(one_after_another)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return f"{requests / took:7.0f} req/s {cpu / requests * 1e6:7.0f} us CPU/req"


async def _streams(client: httpx.AsyncClient, url: str, count: int) -> str:
    opened: list[float] = []
    all_open = anyio.Event()
    began = time.perf_counter()

    async def follow() -> None:
        async with client.stream("GET", f"{url}/stream") as response:
            async for _ in response.aiter_bytes():
                opened.append(time.perf_counter() - began)
                if len(opened) == count:
                    all_open.set()
                await all_open.wait()
                return

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(follow)
    return f"{max(opened):7.2f} s to open {count} streams"


async def _measure(port: int, requests: int, streams: int) -> None:
    url = f"http://127.0.0.1:{port}"
    for name, make in (("httpx", _plain), ("httpx-aiohttp", _aiohttp)):
        transport = make(streams + 100)
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=60) as client:
            await _calls(client, url, 200, 10)
            for in_flight in (10, 100):
                print(f"{name:14} C={in_flight:<4}", await _calls(client, url, requests, in_flight))
            print(f"{name:14}       ", await _streams(client, url, streams))


def main() -> None:
    """Start the server, measure both transports, print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=5000)
    options.add_argument("--streams", type=int, default=300)
    chosen = options.parse_args()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=_serve, args=(sender,), daemon=True)
    server.start()
    try:
        asyncio.run(_measure(receiver.recv(), chosen.requests, chosen.streams))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
