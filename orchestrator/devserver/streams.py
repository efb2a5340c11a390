"""The stream route: durable chunks from an index on, live, until the run or the response ends."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import anyio
from aiohttp import web

from orchestrator.devserver.answers import CORS, Refused
from orchestrator.devserver.bodies import is_uuid
from orchestrator.devserver.faults import Fault, Faults, Kind
from orchestrator.devserver.keys import Keys
from orchestrator.devserver.record import Call, Record
from orchestrator.devserver.runs import Run, Runs
from orchestrator.devserver.surroundings import Surroundings
from orchestrator.devserver.timing import Timing
from orchestrator.devserver.wire import DONE, Chunk, frame

_LOOK_S: Final = 0.02
"""How soon the server notices that a reader left."""

_AT_ONCE: Final = 64
"""Chunks that are written together when many are there."""

_HEADERS: Final = {
    **CORS,
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "Connection": "keep-alive",
    "X-Accel-Buffering": "no",
    "x-vercel-ai-ui-message-stream": "v1",
}

_DECIMAL: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PREFIXED: Final = re.compile(r"0([xX][0-9a-fA-F]+|[oO][0-7]+|[bB][01]+)", re.ASCII)


def start_index(text: str | None) -> int:
    """Read `startIndex` as JavaScript's `Number` does; None means from the start.

    Raises `Refused` with 400 for what is not an integer of at least zero.
    """
    if text is None:
        return 0
    number = text.strip()
    if _PREFIXED.fullmatch(number):
        return int(number, 0)
    value = float(number) if _DECIMAL.fullmatch(number) else math.nan
    if not (math.isfinite(value) and value >= 0 and value.is_integer()):
        raise Refused(
            400, "startIndex must be an integer of at least 0", missing_fields=["startIndex"]
        )
    return int(value)


@dataclass(slots=True)
class _Calls:
    """The tool calls that were opened in one response and have no result there."""

    open: dict[str, tuple[str, bool]] = field(default_factory=dict)
    finished: bool = False

    def see(self, chunk: Chunk) -> None:
        kind = chunk["type"]
        if kind == "finish":
            self.finished = True
        elif kind == "tool-input-start":
            self.open[chunk["toolCallId"]] = (chunk["toolName"], True)
        elif kind == "tool-input-available":
            self.open[chunk["toolCallId"]] = (chunk["toolName"], False)
        elif kind.startswith("tool-output-"):
            self.open.pop(chunk["toolCallId"], None)

    def made_up_ends(self) -> Iterator[Chunk]:
        """Give the chunks that close the calls; none of them is stored."""
        if self.finished:
            return
        for call, (name, streaming) in self.open.items():
            if streaming:
                yield {
                    "type": "tool-input-available",
                    "toolCallId": call,
                    "toolName": name,
                    "input": {},
                }
            yield {"type": "tool-output-error", "toolCallId": call, "errorText": "Cancelled"}


@dataclass(slots=True)
class _Reader:
    """One response under way."""

    request: web.Request
    response: web.StreamResponse
    call: Call
    run: Run
    index: int
    """Index of the next chunk."""
    began: float
    calls: _Calls
    slow: float
    """Pause before each chunk."""
    ends_as: Kind
    """CUT or DROP, where `ends_at` or `ends_before` comes before the end of the run."""
    ends_at: float
    """A time of the loop's clock."""
    ends_before: float
    """An index."""

    @property
    def gone(self) -> bool:
        transport = self.request.transport
        return transport is None or transport.is_closing()


class Streams:
    """Answers the stream route; a timer, and no task, watches for readers that leave."""

    def __init__(
        self,
        *,
        runs: Runs,
        faults: Faults,
        record: Record,
        keys: Keys,
        timing: Timing,
        surroundings: Surroundings,
    ) -> None:
        self._runs = runs
        self._faults = faults
        self._record = record
        self._keys = keys
        self._timing = timing
        self._surroundings = surroundings
        self._readers: list[_Reader] = []
        self._timer: asyncio.TimerHandle | None = None

    async def stream(self, request: web.Request, call: Call) -> web.StreamResponse:
        """GET /api/chat/{chatId}/stream."""
        run = self.chat_run(request)
        start = start_index(request.query.get("startIndex"))
        if run.over:
            self._runs.leave_slot(run)
        about = run.order.prompt
        if not run.in_slot or self._faults.take(Kind.NO_STREAM, route="stream", prompt=about):
            if self._faults.take(Kind.LONE_FINISH, route="stream", prompt=about):
                return await self._lone_finish(request)
            return web.Response(status=204, headers=CORS)
        return await self._follow(request, call, run, start)

    def chat_run(self, request: web.Request) -> Run:
        """Make the checks that the stream and the stop route share; raises `Refused`."""
        account = self._keys.own_account(request)
        chat_id = request.match_info["chatId"]
        if not is_uuid(chat_id):
            raise Refused(400, "chatId must be a valid UUID", missing_fields=["chatId"])
        run = self._runs.of_chat(chat_id)
        if run is None:
            raise Refused(404, "Chat not found")
        if run.order.account_id != account:
            raise Refused(403, "Forbidden")
        return run

    def drop_all(self) -> None:
        """Break every open stream, as a server that goes down does; no run is cancelled."""
        readers, self._readers = self._readers, []
        for reader in readers:
            if reader.request.transport is not None:
                reader.request.transport.abort()
            reader.run.notify()

    # --- one response -----------------------------------------------------------------------

    async def _lone_finish(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        await response.write(frame({"type": "finish"}) + DONE)
        return response

    async def _follow(
        self, request: web.Request, call: Call, run: Run, start: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_HEADERS, **self._named(run)})
        reader = self._reader(request, response, call, run, start)
        self._watch(reader)
        self._record.stream_opened()
        try:
            await response.prepare(request)
            await self._send(reader)
        except ConnectionError:
            pass  # the reader left while we wrote; what follows is the same as when it is found
        finally:
            self._record.stream_closed()
            dropped = reader not in self._readers
            if not dropped:
                self._readers.remove(reader)
        if reader.gone and not dropped:
            self._left(reader)
        return response

    def _named(self, run: Run) -> dict[str, str]:
        about = run.order.prompt
        other = self._faults.take(Kind.OTHER_RUN, route="stream", prompt=about)
        name = self._surroundings.run_id() if other else run.order.run_id
        headers = {"x-workflow-run-id": name}
        if not self._faults.take(Kind.NO_TAIL, route="stream", prompt=about):
            headers["x-workflow-stream-tail-index"] = str(run.written - 1)
        return headers

    def _reader(
        self,
        request: web.Request,
        response: web.StreamResponse,
        call: Call,
        run: Run,
        start: int,
    ) -> _Reader:
        about = run.order.prompt
        end = self._faults.take(Kind.CUT, Kind.DROP, route="stream", prompt=about)
        slow = self._faults.take(Kind.SLOW, route="stream", prompt=about)
        call.faults.extend(fault.kind for fault in (end, slow) if fault is not None)
        now = asyncio.get_running_loop().time()
        limit = self._timing.stream_limit if end is None or end.after is None else end.after
        return _Reader(
            request=request,
            response=response,
            call=call,
            run=run,
            index=start,
            began=now,
            calls=_Calls(),
            slow=slow.delay if slow is not None else 0.0,
            ends_as=end.kind if end is not None else Kind.CUT,
            ends_at=now + limit,
            ends_before=_last_index(end, start),
        )

    async def _send(self, reader: _Reader) -> None:
        """Send until the run is over and all is sent, or the response ends before."""
        loop = asyncio.get_running_loop()
        run = reader.run
        while not reader.gone:
            changed = run.changed
            if loop.time() >= reader.ends_at or reader.index >= reader.ends_before:
                await self._end(reader, reader.ends_as)
                return
            if reader.index < run.written and not self._given_up(reader, loop.time()):
                await self._send_some(reader)
            elif run.over:
                await self._end(reader, Kind.CUT)
                return
            else:
                with anyio.move_on_after(reader.ends_at - loop.time()):
                    await changed.wait()

    async def _send_some(self, reader: _Reader) -> None:
        count = 1 if reader.slow else _AT_ONCE
        upto = int(min(reader.run.written, reader.index + count, reader.ends_before))
        chunks = reader.run.plan.chunks[reader.index : upto]
        if reader.slow:
            await anyio.sleep(reader.slow)
        await reader.response.write(b"".join(map(frame, chunks)))
        for chunk in chunks:
            reader.calls.see(chunk)
        reader.index = upto
        reader.call.sent += len(chunks)

    def _given_up(self, reader: _Reader, now: float) -> bool:
        """Tell whether the watch has seen the end of the run: the rest is not delivered then."""
        ended, watch = reader.run.ended_at, self._timing.watch
        if ended is None:
            return False
        looks = math.ceil((ended - reader.began) / watch)
        return now >= reader.began + looks * watch

    async def _end(self, reader: _Reader, how: Kind) -> None:
        if how is Kind.DROP:
            await self._drop(reader)
            return
        ends = b"".join(map(frame, reader.calls.made_up_ends()))
        await reader.response.write(ends + DONE)
        await reader.response.write_eof()

    async def _drop(self, reader: _Reader) -> None:
        if reader.index < reader.run.written:
            whole = frame(reader.run.plan.chunks[reader.index])
            await reader.response.write(whole[: len(whole) // 2])
        if reader.request.transport is not None:
            reader.request.transport.close()

    # --- readers that leave -----------------------------------------------------------------

    def _left(self, reader: _Reader) -> None:
        reader.call.faults.append("left")
        prompt = reader.run.order.prompt
        if self._faults.take(Kind.CANCEL_ON_LEAVE, route="stream", prompt=prompt):
            self._runs.cancel(reader.run)

    def _watch(self, reader: _Reader) -> None:
        self._readers.append(reader)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """Wake the streams whose readers have left, and look again while any is open."""
        self._timer = None
        for reader in self._readers:
            if reader.gone:
                reader.run.notify()
        if self._readers:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)


def _last_index(end: Fault | None, start: int) -> float:
    return math.inf if end is None or end.chunks is None else start + end.chunks
