"""The control routes under `/_dev/`: what the Python objects offer, for other processes."""

from __future__ import annotations

import json
from typing import Any, Protocol

import anyio
from aiohttp import web

from orchestrator.devserver.answers import answer
from orchestrator.devserver.faults import PRESETS, Fault, Faults
from orchestrator.devserver.keys import Keys
from orchestrator.devserver.record import Record
from orchestrator.devserver.runs import FINAL, Run, Runs


class Door(Protocol):
    """What lets connections in."""

    async def refuse(self) -> None:
        """Let none in, and break those that are in."""

    async def accept(self) -> None:
        """Let them in again."""


class Control:
    """The handlers; they need no key, are not recorded and are exposed to no fault."""

    def __init__(
        self, *, runs: Runs, faults: Faults, record: Record, keys: Keys, door: Door
    ) -> None:
        self._runs = runs
        self._faults = faults
        self._record = record
        self._keys = keys
        self._door = door

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.add_routes(
            [
                web.get("/_dev/stats", self.stats),
                web.get("/_dev/faults", self.faults),
                web.post("/_dev/faults", self.add_fault),
                web.delete("/_dev/faults", self.clear_faults),
                web.delete("/_dev/faults/{number}", self.remove_fault),
                web.post("/_dev/keys", self.change_keys),
                web.post("/_dev/refuse", self.refuse),
                web.get("/_dev/runs", self.runs),
                web.get("/_dev/runs/{runId}", self.run),
                web.post("/_dev/runs/{runId}/release", self.release),
                web.post("/_dev/runs/{runId}/settle", self.settle),
            ]
        )

    async def stats(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp calls it so
        """Everything that the server has seen."""
        return answer(self._record.as_json())

    async def faults(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp calls it so
        """The faults that are on, and the names of the presets."""
        return answer({"faults": self._faults.listed(), "presets": sorted(PRESETS)})

    async def add_fault(self, request: web.Request) -> web.Response:
        """Switch on `{"preset": name, ...fields}` or `{"kind": kind, ...fields}`; 201 `{id}`."""
        given = await _object(request)
        preset = given.pop("preset", None)
        try:
            number = (
                self._faults.add(Fault(**given))
                if preset is None
                else self._faults.add(preset, **given)
            )
        except (TypeError, ValueError, KeyError) as wrong:
            raise web.HTTPBadRequest(text=f"no such fault: {wrong}") from wrong
        return answer({"id": number}, status=201)

    async def clear_faults(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp calls it so
        """Switch all faults off."""
        self._faults.clear()
        return web.Response(status=204)

    async def remove_fault(self, request: web.Request) -> web.Response:
        """Switch one fault off."""
        number = request.match_info["number"]
        if not number.isdecimal():
            raise web.HTTPBadRequest(text=f"not the number of a fault: {number}")
        self._faults.remove(int(number))
        return web.Response(status=204)

    async def change_keys(self, request: web.Request) -> web.Response:
        """Make keys valid or invalid: `{"allow": [key, ...], "revoke": [key, ...]}`."""
        given = await _object(request)
        for key in given.get("allow", []):
            self._keys.allow(key)
        for key in given.get("revoke", []):
            self._keys.revoke(key)
        return web.Response(status=204)

    async def refuse(self, request: web.Request) -> web.Response:
        """Refuse connections for `{"seconds": s}`; answers when they are let in again."""
        seconds = float((await _object(request))["seconds"])
        await self._door.refuse()
        try:
            await anyio.sleep(seconds)
        finally:
            await self._door.accept()
        return web.Response(status=204)

    async def runs(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp calls it so
        """All runs, without their chunks."""
        return answer({"runs": [_summary(run) for run in self._runs]})

    async def run(self, request: web.Request) -> web.Response:
        """One run with its chunks and its message: the truth to compare a result with."""
        run = self._run(request)
        return answer({**_summary(run), "chunks": list(run.chunks), "message": run.message})

    async def release(self, request: web.Request) -> web.Response:
        """Let a run go on that pauses, even for ever."""
        run = self._run(request)
        self._runs.release(run)
        return answer(_summary(run))

    async def settle(self, request: web.Request) -> web.Response:
        """End a run from outside: `{"status": "completed" | "failed" | "cancelled"}`."""
        status = (await _object(request)).get("status")
        if status not in FINAL:
            raise web.HTTPBadRequest(text=f"not a final status: {status}")
        run = self._run(request)
        self._runs.settle(run, status)
        return answer(_summary(run))

    def _run(self, request: web.Request) -> Run:
        run = self._runs.get(request.match_info["runId"])
        if run is None:
            raise web.HTTPNotFound
        return run


async def _object(request: web.Request) -> dict[str, Any]:
    try:
        given = await request.json()
    except json.JSONDecodeError as wrong:
        raise web.HTTPBadRequest(text=f"not JSON: {wrong}") from wrong
    if not isinstance(given, dict):
        raise web.HTTPBadRequest(text="not a JSON object")
    return given


def _summary(run: Run) -> dict[str, Any]:
    order = run.order
    return {
        "runId": order.run_id,
        "chatId": order.chat_id,
        "sessionId": order.session_id,
        "prompt": order.prompt,
        "model": order.model,
        "status": run.status,
        "activeStream": run.in_slot,
        "written": run.written,
        "createdAt": order.created_at,
    }
