"""The client over real TLS and through real proxies."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from orchestrator.recoup.answers import Accepted, NotSent, RunState
from orchestrator.recoup.transport import tls_context
from tests.remote.clients import Mark, recoup
from tests.remote.rawserver import Peer, always, answer, serving

if TYPE_CHECKING:
    from pathlib import Path


BODY = {"prompt": "hello \ud83d"}
IDS = {"runId": "wrun_01", "chatId": "c-1", "sessionId": "s-1"}
ACCEPTED = Accepted("wrun_01", "c-1", "s-1")


@pytest.fixture
def mark() -> Mark:
    return Mark()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody trusts yet, and a server's context with it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=t "
        "-addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [openssl, *make.split(), "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.parametrize(
    ("base_url", "proxy", "trusts"),
    [
        ("https://api.example.com", None, True),
        ("https://api.example.com", "http://127.0.0.1:1", True),
        ("http://127.0.0.1:1", "HTTPS://proxy.example.com", True),
        ("http://127.0.0.1:1", "http://127.0.0.1:2", False),
        ("http://127.0.0.1:1", None, False),
    ],
)
def test_roots_are_read_where_there_is_tls(base_url: str, proxy: str | None, trusts: bool) -> None:
    context = tls_context(base_url, proxy)
    assert (context.cert_store_stats()["x509_ca"] > 0) == trusts
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_untrusted_certificate_was_not_sent(
    mark: Mark, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    _, context = certificate
    async with (
        serving(always(answer(202, IDS)), tls=context) as server,
        recoup(f"https://127.0.0.1:{server.port}") as client,
    ):
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NotSent)
    assert "certificate" in result.error.lower()
    assert mark.calls == 0


async def test_mark_is_for_the_request_and_not_for_the_tunnel_to_it(
    mark: Mark,
    certificate: tuple[Path, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cert, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    marks_at_connect: list[int] = []
    tunnelled: list[bytes] = []

    async def script(peer: Peer) -> None:
        started = (await peer.request()).startswith(b"POST")
        await peer.send(
            answer(202, IDS) if started else answer(200, {"runId": "wrun_01", "status": "running"})
        )

    async with serving(script, tls=context) as server:

        async def proxy(peer: Peer) -> None:
            tunnelled.append(await peer.head())
            marks_at_connect.append(mark.calls)
            await peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
            await peer.tunnel(server.port)

        async with serving(proxy) as through:
            url = f"https://127.0.0.1:{server.port}"
            async with recoup(url, proxy=through.url) as client:
                assert await client.start_run(BODY, mark=mark) == ACCEPTED
                assert isinstance(await client.run_status("wrun_01"), RunState)
    assert marks_at_connect == [0, 1]
    assert mark.calls == 1
    for request in tunnelled:
        assert request.startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
        assert b"x-api-key" not in request.lower()


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_proxy_that_refuses_the_tunnel_sent_nothing(mark: Mark, status: int) -> None:
    async with (
        serving(always(answer(status, b"<html>"))) as proxy,
        recoup("https://127.0.0.1:1", proxy=proxy.url) as client,
    ):
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NotSent)
    assert str(status) in result.error
    assert mark.calls == 0


async def test_silent_proxy_sent_nothing_and_does_not_hold_the_call(
    mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.recoup.submit.CONNECT_S", 0.1)

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.until_left()

    async with (
        serving(script) as proxy,
        recoup("https://127.0.0.1:1", proxy=proxy.url) as client,
    ):
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NotSent)
    assert mark.calls == 0
