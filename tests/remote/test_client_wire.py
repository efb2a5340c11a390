"""Reads and stops whose connection fails, over real sockets."""

from __future__ import annotations

import anyio
import pytest

from orchestrator.recoup.answers import (
    RunState,
    Stopped,
    Trouble,
    TroubleKind,
)
from tests.remote.clients import recoup
from tests.remote.rawserver import BOUND_S, Peer, always, answer, serving

RUNNING = {"runId": "wrun_01", "status": "running"}


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"HTTP/1.1 20",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 abc X\r\n\r\n",
        answer(200, b'{"runId":"wr', length=99),
        answer(404, b'{"status":"err', length=99),
        answer(200, b"junk", "content-encoding: gzip", "content-type: application/json"),
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 X\r\nx: " + b"y" * 200_000,
    ],
)
async def test_broken_answer_is_unreachable(ending: str, half: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(half)
        if ending == "reset":
            await peer.reset()

    async with serving(script) as server, recoup(server.url) as client:
        for result in (await client.run_status("wrun_01"), await client.stop("c")):
            assert isinstance(result, Trouble)
            assert result.kind is TroubleKind.UNREACHABLE
            assert result.error


@pytest.mark.parametrize("url", ["https://no-such-host.invalid", "http://127.0.0.1:{port}"])
async def test_host_that_cannot_be_had_is_unreachable(unused_tcp_port: int, url: str) -> None:
    async with (
        recoup(url.format(port=unused_tcp_port)) as client,
        client.stream("c", 0) as opened,
    ):
        results = [await client.run_status("wrun_01"), await client.stop("c"), opened]
    for result in results:
        assert isinstance(result, Trouble)
        assert result.kind is TroubleKind.UNREACHABLE
        assert result.status is None


async def test_refused_tls_is_unreachable() -> None:
    async def script(peer: Peer) -> None:
        await peer.some(1)
        await peer.send(b"HTTP/1.1 400 this is not TLS\r\n\r\n")

    async with serving(script) as server, recoup(f"https://127.0.0.1:{server.port}") as client:
        result = await client.check_key()
    assert isinstance(result, Trouble)
    assert result.kind is TroubleKind.UNREACHABLE


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_proxy_that_refuses_the_tunnel_is_unreachable(status: int) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.head())
        await peer.send(answer(status, b"<html>"))

    async with serving(script) as proxy:
        through = f"http://user:secret@127.0.0.1:{proxy.port}"
        async with recoup("https://127.0.0.1:1", proxy=through) as client:
            results = [await client.check_key(), await client.stop("c")]
    for result in results:
        assert isinstance(result, Trouble)
        assert result.kind is TroubleKind.UNREACHABLE
        assert str(status) in result.error
        assert "secret" not in repr(result)
    for request in requests:
        assert request.startswith(b"CONNECT 127.0.0.1:1 ")
        assert b"proxy-authorization: basic dxnlcjpzzwnyzxq=" in request.lower()
        assert b"x-api-key" not in request


@pytest.mark.parametrize("head", [b"", answer(200, b"", length=99)])
async def test_silent_server_is_unreachable_after_the_timeout(head: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        await peer.until_left()

    async with serving(script) as server, recoup(server.url, call_timeout=0.2) as client:
        with anyio.fail_after(3):
            result = await client.run_status("wrun_01")
    assert isinstance(result, Trouble)
    assert result.kind is TroubleKind.UNREACHABLE


async def test_trickling_answer_does_not_hold_the_call() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(200, b"", length=10_000))
        with anyio.move_on_after(BOUND_S) as never:
            while not never.cancel_called:
                await peer.send(b" ")
                with anyio.move_on_after(0.05):
                    await anyio.sleep_forever()

    async with serving(script) as server, recoup(server.url, call_timeout=0.2) as client:
        with anyio.fail_after(3):
            result = await client.run_status("wrun_01")
    assert isinstance(result, Trouble)
    assert result.kind is TroubleKind.UNREACHABLE
    assert result.status == 200
    assert "in time" in result.error


@pytest.mark.parametrize("reset", [True, False])
async def test_kept_connection_that_the_server_closes_costs_no_read(reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(200, RUNNING))
        await peer.request()
        if reset:
            await peer.reset()

    async with serving(script) as server, recoup(server.url) as client:
        for _ in range(3):
            assert isinstance(await client.run_status("wrun_01"), RunState)
        assert len(server.peers) == 3


async def test_reads_share_a_connection_and_stops_do_not() -> None:
    async with (
        serving(always(answer(200, RUNNING | {"stopped": True}))) as server,
        recoup(server.url) as client,
    ):
        for _ in range(3):
            assert isinstance(await client.run_status("wrun_01"), RunState)
        assert len(server.peers) == 1
        for _ in range(2):
            assert await client.stop("c") == Stopped(stopped=True)
        assert len(server.peers) == 3


async def test_cancelled_call_is_cancelled() -> None:
    arrived = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.until_left()

    async with serving(script) as server, recoup(server.url) as client:
        async with anyio.create_task_group() as tasks:

            async def poll() -> None:
                await client.run_status("wrun_01")
                pytest.fail("a cancelled call returned")

            tasks.start_soon(poll)
            with anyio.fail_after(BOUND_S):
                await arrived.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(BOUND_S):
            await server.left.wait()
