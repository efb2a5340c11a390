"""A POST that may start a run: one fresh connection, and a mark before the first byte.

Whether something was sent is read only from the mark, never from an exception's class: the
classes of the transports do not tell.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio
import httpx

from orchestrator.recoup.reply import Reply, exchange
from orchestrator.recoup.transport import CONNECT_S, timeouts

Mark: TypeAlias = "Callable[[], Awaitable[bool]]"
"""Records durably that the request is about to go out; False means: do not send."""

Around: TypeAlias = "AbstractContextManager[object]"
"""Entered when a request's head is out, and left when its body is: somebody may watch."""

_HEAD_GOES_OUT = "http11.send_request_headers.started"
_LAST_BYTES_S = 10.0  # past the read timeout, for an answer that has begun to arrive
_CONNECT_STEPS = 3  # proxy, its tunnel, and the server's TLS each have their own timeout


@dataclass(frozen=True, slots=True)
class Sending:
    """How far a submission came.

    `marked` is what the mark answered, None when it was not reached. `reply` speaks for the
    server only when `marked` is True; otherwise its fault says why nothing was sent.
    """

    marked: bool | None
    reply: Reply


async def submit(
    client: httpx.AsyncClient,
    *,
    url: str,
    headers: Mapping[str, str],
    content: bytes,
    mark: Mark,
    answer_s: float,
    limit: int,
    around: Around,
) -> Sending:
    """POST `content`, calling `mark` when the connection stands, before the first byte.

    `client` opens a connection for each request. `answer_s` bounds each wait for the answer in
    seconds, and with some grace all of it; `limit` bounds its body in bytes. The mark runs
    shielded from every cancellation, so it must bound itself. `around` is entered when the head
    is out and left when the body is.

    Raises what the mark raises, after the connection is closed; then nothing was sent. If we
    crash here before the mark is durable, nothing was sent; after it, that is unknown.
    """
    scope = anyio.CancelScope(deadline=anyio.current_time() + _CONNECT_STEPS * CONNECT_S)
    marking = _Marking(mark, scope=scope, answer_s=answer_s + _LAST_BYTES_S, around=around)
    request = client.build_request(
        "POST",
        url,
        headers={**headers, "content-length": str(len(content))},
        content=marking.released(content),
        timeout=timeouts(answer_s),
        extensions={"trace": marking.trace},
    )
    reply = await exchange(client, request, limit=limit, scope=scope)
    if marking.error is not None:
        raise marking.error
    return Sending(marking.answer, reply)


class _WithheldError(Exception):
    """Ends the exchange before its first byte."""


class _Marking:
    """Calls the mark at the one moment that counts, and holds the request back without it."""

    def __init__(
        self,
        mark: Mark,
        *,
        scope: anyio.CancelScope,
        answer_s: float,
        around: Around,
    ) -> None:
        self._mark = mark
        self._scope = scope
        self._answer_s = answer_s
        self._around = around
        self.answer: bool | None = None
        self.error: Exception | None = None

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Follow httpcore's events; raises _WithheldError to stop the request."""
        # A tunnel through a proxy begins with a CONNECT, which is not the request.
        if event != _HEAD_GOES_OUT or info["request"].method == b"CONNECT":
            return
        # The time that the mark takes is not the server's.
        self._scope.deadline = math.inf
        try:
            with anyio.CancelScope(shield=True):
                self.answer = bool(await self._mark())
        except Exception as exc:  # noqa: BLE001  # kept whole, and raised again by submit
            self.error = exc
            raise _WithheldError("the mark failed") from None
        self._scope.deadline = anyio.current_time() + self._answer_s
        if not self.answer:
            raise _WithheldError("the mark said not to send")

    async def released(self, content: bytes) -> AsyncIterator[bytes]:
        """Yield the body, but never without a mark, whatever a version of httpcore traces."""
        if not self.answer:
            raise _WithheldError("the connection did not announce the request, so it was held back")
        with self._around:
            yield content
