"""One connection to a run's chunk stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeAlias

import anyio
import httpx

from orchestrator.recoup.answers import NoStream, StreamHead, Trouble, TroubleKind
from orchestrator.recoup.ids import is_id
from orchestrator.recoup.reading import trouble_of, unreadable
from orchestrator.recoup.reply import Reply, close, described, read_body
from orchestrator.recoup.transport import CONNECT_S

_ERROR_BODY = 1 << 20
_CLOSE_S = 5.0


class OpenStream:
    """A 200 of the stream route, read once, by one task."""

    def __init__(self, response: httpx.Response, *, idle_s: float) -> None:
        self._response = response
        self._idle_s = idle_s
        self._reading: AsyncGenerator[bytes, None] | None = None
        self.head: StreamHead = _head(response)
        self.broken: str | None = None
        """After the reads: what broke the connection, or None when the body ended cleanly."""

    def reads(self) -> AsyncIterator[bytes]:
        """Return the body's bytes as they arrive, until it ends or breaks.

        Transport errors and the idle timeout end the iteration and set `broken`.
        """
        self._reading = self._read()
        return self._reading

    async def aclose(self) -> None:
        """Close the connection; closing one that still delivers may cancel the run."""
        if self._reading is not None:
            await self._reading.aclose()
        await close(self._response)

    async def _read(self) -> AsyncGenerator[bytes, None]:
        pieces = self._response.aiter_bytes()
        while (piece := await self._next(pieces)) is not None:
            yield piece

    async def _next(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        try:
            # The transport's own read timeout is not enough: aiohttp drops it, and reports
            # nothing, after a chunk size that it cannot parse.
            with anyio.fail_after(self._idle_s):
                return await anext(pieces, None)
        except TimeoutError:
            self.broken = f"nothing arrived for {self._idle_s:g} s"
        except Exception as exc:  # noqa: BLE001  # the transports leak many classes, each a break
            self.broken = described(exc)
        return None


Opened: TypeAlias = OpenStream | NoStream | Trouble


@contextlib.asynccontextmanager
async def open_stream(
    client: httpx.AsyncClient, request: httpx.Request, *, idle_s: float, answer_s: float
) -> AsyncIterator[Opened]:
    """Send `request` and give what came; the connection is closed at the end of the block.

    `idle_s` (seconds) bounds the wait for the head and each wait for bytes, `answer_s` the body
    of an answer that is no stream.
    """
    response: httpx.Response | None = None
    try:
        try:
            with anyio.fail_after(CONNECT_S + idle_s):
                response = await client.send(request, stream=True)
            opened = await _opened(response, idle_s=idle_s, answer_s=answer_s)
        except Exception as exc:  # noqa: BLE001  # as above: no class says more than "no answer"
            opened = Trouble(TroubleKind.UNREACHABLE, described(exc))
    except BaseException:
        await _close(response)
        raise
    try:
        yield opened
    finally:
        await _close(opened if isinstance(opened, OpenStream) else response)


async def _close(connection: OpenStream | httpx.Response | None) -> None:
    # Bounded and shielded, so that a cancelled reader leaves no connection behind. A fault of
    # closing is a connection that is gone, which is what was wanted.
    with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(Exception):
        if isinstance(connection, OpenStream):
            await connection.aclose()
        elif connection is not None:
            await close(connection)


async def _opened(response: httpx.Response, *, idle_s: float, answer_s: float) -> Opened:
    if response.status_code == 204:
        return NoStream()
    if response.status_code == 200:
        kind = response.headers.get("content-type", "")
        if kind.split(";")[0].strip().lower() == "text/event-stream":
            return OpenStream(response, idle_s=idle_s)
    reply = Reply(response.status_code, response.headers, fault="the body did not come in time")
    with anyio.move_on_after(answer_s):
        reply = await read_body(response, limit=_ERROR_BODY)
    if response.status_code == 200 and reply.fault is None:
        return unreadable(reply, "is not an event stream")
    return trouble_of(reply)


def _head(response: httpx.Response) -> StreamHead:
    run_id = response.headers.get("x-workflow-run-id")
    tail = response.headers.get("x-workflow-stream-tail-index", "")
    return StreamHead(
        run_id=run_id if is_id(run_id) else None,
        tail_index=int(tail) if re.fullmatch(r"-1|[0-9]{1,15}", tail) else None,
    )
