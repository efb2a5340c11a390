"""What stands before every route of the API: the record, the faults, the error envelope."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import anyio
from aiohttp import web

from orchestrator.devserver.answers import CORS, Refused, answer, not_found_page
from orchestrator.devserver.bodies import submitted_text
from orchestrator.devserver.faults import Fault, Faults, Kind
from orchestrator.devserver.record import Call, Record
from orchestrator.devserver.runs import Runs

Handler: TypeAlias = Callable[[web.Request, Call], Awaitable[web.StreamResponse]]
_Plain: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_INSTEAD: Final = (Kind.ANSWER, Kind.CLOSE, Kind.RESET, Kind.BREAK_BODY)
_SUBMISSIONS: Final = frozenset({"start", "generate"})


class Front:
    """Wraps the handlers of the API's routes."""

    def __init__(
        self, *, runs: Runs, faults: Faults, record: Record, now: Callable[[], float]
    ) -> None:
        self._runs = runs
        self._faults = faults
        self._record = record
        self._now = now

    def route(self, name: str, handler: Handler) -> _Plain:
        """Give the handler of the route `name`, recorded and exposed to the faults."""

        async def handle(request: web.Request) -> web.StreamResponse:
            call = Call(
                at=self._now(),
                route=name,
                method=request.method,
                path=request.path,
                start_index=request.query.get("startIndex"),
            )
            self._record.began(call)
            try:
                await self._identify(request, call)
                response = await self._answer(request, call, handler)
            except web.HTTPException as refused:
                call.status = refused.status
                raise
            else:
                if request.transport is not None and not request.transport.is_closing():
                    call.status = response.status
                return response
            finally:
                self._record.ended(call)

        return handle

    async def _identify(self, request: web.Request, call: Call) -> None:
        """Find the prompt and the run that a request is about."""
        if call.route in _SUBMISSIONS:
            call.prompt = submitted_text(await request.read())
            self._record.posted(call.prompt, call.at)
            return
        names = request.match_info
        run = self._runs.get(names.get("runId", "")) or self._runs.of_chat(names.get("chatId", ""))
        if run is not None:
            call.prompt, call.run_id = run.order.prompt, run.order.run_id

    async def _answer(
        self, request: web.Request, call: Call, handler: Handler
    ) -> web.StreamResponse:
        fault = await self._strike(call, "before")
        if fault is not None:
            return await _instead(request, fault, None)
        try:
            response = await handler(request, call)
        except Refused as refused:
            response = refused.answer()
        fault = await self._strike(call, "after")
        return response if fault is None else await _instead(request, fault, response)

    async def _strike(self, call: Call, when: str) -> Fault | None:
        take = partial(self._faults.take, route=call.route, prompt=call.prompt, when=when)
        slow = take(Kind.DELAY)
        if slow is not None:
            call.faults.append(slow.kind)
            await anyio.sleep(slow.delay)
        fault = take(*_INSTEAD)
        if fault is not None:
            call.faults.append(fault.kind)
        return fault


@web.middleware
async def platform(request: web.Request, handler: _Plain) -> web.StreamResponse:
    """Answer what no route takes as the platform does.

    OPTIONS gets 200 everywhere, an unknown path a page, a wrong method an empty body.
    """
    if request.method == "OPTIONS":
        return web.Response(status=200, headers=CORS)
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return not_found_page()
    except web.HTTPMethodNotAllowed as refused:
        return web.Response(status=405, headers={**CORS, "Allow": refused.headers["Allow"]})


async def _instead(
    request: web.Request, fault: Fault, response: web.StreamResponse | None
) -> web.StreamResponse:
    """Give what the fault gives in place of `response` (None: nothing was worked out)."""
    if fault.kind is Kind.ANSWER:
        return _faulty_answer(fault)
    if fault.kind is Kind.BREAK_BODY and isinstance(response, web.Response):
        return await _half(request, response)
    _hang_up(request, reset=fault.kind is Kind.RESET)
    return web.Response(status=500)


def _faulty_answer(fault: Fault) -> web.Response:
    if fault.body is None:
        envelope = {"status": "error", fault.key: fault.error}
        return answer(envelope, status=fault.status, headers=fault.headers)
    return web.Response(status=fault.status, body=fault.body.encode(), headers=fault.headers)


async def _half(request: web.Request, response: web.Response) -> web.StreamResponse:
    body = (response.text or "").encode()
    head = {name: text for name, text in response.headers.items() if name != "Content-Length"}
    broken = web.StreamResponse(status=response.status, headers=head)
    broken.content_length = len(body)
    await broken.prepare(request)
    await broken.write(body[: len(body) // 2])
    _hang_up(request, reset=False)
    return broken


def _hang_up(request: web.Request, *, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        # Lingering for no time makes the kernel send RST in place of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
