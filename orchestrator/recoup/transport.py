"""The HTTP clients under `RecoupClient`: connections, limits, timeouts and TLS.

POSTs that may start a run use plain httpx, whose `trace` extension tells the moment before the
first byte goes out, with a fresh connection each. Reads and streams use httpx over aiohttp,
which stays fast with hundreds of requests in flight, where httpx's own pool does not.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Sequence

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from orchestrator.version import __version__

_HOST = re.compile(r"[\w.:-]+")

CONNECT_S = 15.0
"""Seconds for one step towards a connection: name, TCP, TLS, or a place in the pool."""

_IDLE_CONNECTION_S = 15.0
_KEEP_ALIVE: tuple[tuple[str, int], ...] = (
    # A silent tool call is minutes of a silent connection: probes keep NATs from forgetting it
    # and find a dead peer in about two minutes.
    ("TCP_KEEPIDLE", 45),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 5),
)


def checked_base_url(base_url: str) -> str:
    """Return `base_url` without a trailing slash.

    Raises ValueError when it is not an absolute https URL (http only on loopback), or when it
    holds a user name, a query or a fragment.
    """
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        # Here and next the value is left out: a password may be part of it.
        raise ValueError("base_url: is not a URL: write an https URL") from None
    if url.userinfo:
        raise ValueError("base_url: holds a user name: the key is all that the API takes")
    if url.scheme not in ("https", "http") or not _HOST.fullmatch(url.host):
        raise ValueError(f"base_url: {base_url!r}: write an https URL with a host")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ValueError(
            f"base_url: {base_url!r}: the key would travel in the clear; use https "
            "(http is for loopback addresses only)"
        )
    if url.query or url.fragment or base_url.rstrip().endswith(("?", "#")):
        raise ValueError(f"base_url: {base_url!r}: leave out the query and the fragment")
    return str(url).rstrip("/")


def checked_proxy(proxy: str | None, tls: ssl.SSLContext | None = None) -> httpx.Proxy | None:
    """Return the proxy of an http or https URL, or None for None.

    Raises ValueError for any other URL; the text leaves the value out, since it may hold a
    password.
    """
    if proxy is None:
        return None
    try:
        url = httpx.URL(proxy)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("proxy: write the URL of an http or https proxy: http://host:port")
    # The transports agree on a header; on credentials in the URL they do not.
    user = f"{url.username}:{url.password}".encode()
    basic = {"proxy-authorization": f"Basic {b64encode(user).decode()}"}
    return httpx.Proxy(
        url.copy_with(username="", password=""),
        ssl_context=tls if url.scheme == "https" else None,
        headers=basic if url.userinfo else None,
    )


def tls_context(*urls: str | None) -> ssl.SSLContext:
    """Return a context that verifies servers, by certifi's roots or those of SSL_CERT_FILE.

    A company whose proxy re-signs TLS names its root there; no other variable is read. Where none
    of `urls` is reached over TLS, it trusts nobody: to read the roots takes 20 ms.
    """
    if any(httpx.URL(url).scheme == "https" for url in urls if url is not None):
        return httpx.create_ssl_context(trust_env=True)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def fresh_connections(*, tls: ssl.SSLContext, proxy: str | None) -> httpx.AsyncClient:
    """Return a client that opens a connection for each request and closes it afterwards.

    A kept connection that the server is just closing cannot be told from a lost answer.
    """
    transport = httpx.AsyncHTTPTransport(
        verify=tls,
        trust_env=False,
        http1=True,
        http2=False,
        retries=0,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        proxy=checked_proxy(proxy, tls),
        socket_options=_socket_options(),
    )
    return _client(transport)


def pooled_connections(*, tls: ssl.SSLContext, proxy: str | None, limit: int) -> httpx.AsyncClient:
    """Return a client for GETs with at most `limit` connections, kept for some seconds.

    A GET that meets a connection which the server has just closed is sent again at once.
    """

    def session() -> aiohttp.ClientSession:
        # The limit goes to the connector: httpx's own setting never reaches it, and aiohttp's
        # default would let the 101st stream wait.
        connector = aiohttp.TCPConnector(
            limit=limit,
            ssl=tls,
            keepalive_timeout=_IDLE_CONNECTION_S,
            socket_factory=_kept_alive_socket,
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    return _client(
        AiohttpTransport(
            verify=tls, trust_env=False, client=session, proxy=checked_proxy(proxy, tls)
        )
    )


def timeouts(read_s: float) -> httpx.Timeout:
    """Return explicit timeouts in seconds: `read_s` between two reads, and for a write."""
    return httpx.Timeout(connect=CONNECT_S, read=read_s, write=read_s, pool=CONNECT_S)


LOCATION = "orchestrator_location"
"""Extension of a response: its `Location`, which is not among the headers of a redirect."""


async def _keep_location_unread(response: httpx.Response) -> None:
    """Take `Location` out of a redirect's headers before httpx parses it.

    httpx reads it even where it follows no redirect, and raises for one that is no URL: the
    answer, which says plainly that no run was started, would then count as lost.
    """
    if response.has_redirect_location:
        response.extensions = {**response.extensions, LOCATION: response.headers.pop("location")}


def _client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        event_hooks={"response": [_keep_location_unread]},
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=timeouts(CONNECT_S),
        headers={"user-agent": f"recoup-orchestrator/{__version__}"},
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _socket_options() -> Sequence[tuple[int, int, int]]:
    # The names differ by platform; one that is missing leaves the system's own interval.
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *(
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in _KEEP_ALIVE
            if hasattr(socket, name)
        ),
    ]


def _kept_alive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in _socket_options():
        made.setsockopt(level, option, value)
    return made
