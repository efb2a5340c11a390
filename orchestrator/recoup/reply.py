"""One exchange with the server, kept as far as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import httpx

from orchestrator.recoup.transport import LOCATION


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `status` is None when no head came.

    `fault` is None exactly when the answer is complete; otherwise it says what happened, and
    `body` is empty; it is `too_long` if it was there, and more than the call can mean. `at` is
    the local time (UTC) of the head, or of the fault.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=httpx.Headers)
    body: bytes = b""
    fault: str | None = None
    too_long: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class BodyTooLongError(Exception):
    """The body exceeds what this call can mean."""


async def exchange(
    client: httpx.AsyncClient, request: httpx.Request, *, limit: int, scope: anyio.CancelScope
) -> Reply:
    """Send `request` and read the answer, at most `limit` bytes of body, until `scope` ends.

    The scope must be fresh; its deadline bounds the whole exchange. Only cancellation from
    outside the scope is raised: every failure is the reply's `fault`.
    """
    reply = Reply(status=None, fault="no answer was read")
    with scope:
        try:
            response = await client.send(request, stream=True)
            reply = _head(response, fault="the body was not read to its end")
            try:
                reply = await read_body(response, limit=limit)
            finally:
                await close(response)
        except Exception as exc:  # noqa: BLE001  # four libraries leak classes that mean the same
            too_long = isinstance(exc, BodyTooLongError)
            reply = _faulty(reply, described(exc), too_long=too_long)
    if scope.cancelled_caught:
        reply = _faulty(reply, "the answer did not come to its end in time")
    return reply


_NOTHING = httpx.ByteStream(b"")


async def close(response: httpx.Response) -> None:
    """Close a response, and part it from its stream.

    The two hold each other: they would stay, with all that they hold, until the collector of
    cycles looks.
    """
    try:
        await response.aclose()
    finally:
        response.stream = _NOTHING


async def read_body(response: httpx.Response, *, limit: int) -> Reply:
    """Return the complete reply. Raises BodyTooLongError above `limit` bytes, decoded."""
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > limit:
            raise BodyTooLongError(f"the body is longer than {limit} bytes")
        pieces.append(piece)
    return Reply(response.status_code, _headers(response), b"".join(pieces))


def described(error: BaseException) -> str:
    """Return one line on a transport's error, with the words of its first cause."""
    first = error
    for _ in range(10):
        cause = _cause(first)
        if cause is None:
            break
        first = cause
    words = " ".join((str(first) or str(error)).split())
    name = type(error).__name__
    return f"{name}: {words}" if words else name


def _cause(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    # httpcore cuts the chain of causes, but wraps the error that it maps.
    wrapped = error.args[0] if error.args else None
    return error.__cause__ or (wrapped if isinstance(wrapped, BaseException) else None)


def _head(response: httpx.Response, fault: str) -> Reply:
    return Reply(response.status_code, _headers(response), fault=fault)


def _headers(response: httpx.Response) -> httpx.Headers:
    """The headers as they came, a redirect's `Location` among them."""
    headers = response.headers.copy()
    location = response.extensions.get(LOCATION)
    if isinstance(location, str):
        headers["location"] = location
    return headers


def _faulty(reply: Reply, fault: str, *, too_long: bool = False) -> Reply:
    """Keep a complete reply: a fault of closing the connection takes nothing from it."""
    if reply.fault is None:
        return reply
    return Reply(reply.status, reply.headers, fault=fault, too_long=too_long, at=reply.at)
