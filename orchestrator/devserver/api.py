"""The other routes of the API, check by check in its own order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
from aiohttp import web

from orchestrator.devserver.answers import Refused, answer
from orchestrator.devserver.bodies import Body, is_uuid, read_body
from orchestrator.devserver.faults import Faults, Kind
from orchestrator.devserver.keys import Keys
from orchestrator.devserver.plan import plan_run
from orchestrator.devserver.record import Call, Record, Stop
from orchestrator.devserver.runs import TITLE, Run, Runs
from orchestrator.devserver.script import read_script
from orchestrator.devserver.surroundings import Surroundings
from orchestrator.devserver.timing import Timing
from orchestrator.devserver.wire import Json


@dataclass(slots=True)
class _Room:
    """A room of the older endpoint, with its memories."""

    account_id: str
    rows: list[Json]


class Api:
    """The handlers. `find_run` makes the checks of the routes under a chat."""

    def __init__(
        self,
        *,
        runs: Runs,
        faults: Faults,
        record: Record,
        keys: Keys,
        timing: Timing,
        find_run: Callable[[web.Request], Run],
        surroundings: Surroundings,
    ) -> None:
        self._runs = runs
        self._faults = faults
        self._record = record
        self._keys = keys
        self._timing = timing
        self._find_run = find_run
        self._surroundings = surroundings
        self._rooms: dict[str, _Room] = {}

    # --- runs -------------------------------------------------------------------------------

    async def start(self, request: web.Request, call: Call) -> web.StreamResponse:
        """POST /api/chat/runs."""
        body = read_body(await request.read())
        account = self._caller(request, body)
        await anyio.sleep(self._timing.provision + read_script(body.prompt).provision)
        run = self._runs.start(
            account_id=account,
            artist_id=body.artist_id,
            model=body.model,
            prompt=body.prompt,
            acceptable=body.acceptable and not body.model.startswith("unknown/"),
        )
        self._record.runs_by_prompt[body.prompt] += 1
        call.run_id = run.order.run_id
        ids = {
            "runId": run.order.run_id,
            "chatId": run.order.chat_id,
            "sessionId": run.order.session_id,
        }
        location = {"Location": f"/api/chat/runs/{run.order.run_id}"}
        return answer(ids, status=202, headers=location)

    async def status(self, request: web.Request, call: Call) -> web.StreamResponse:  # noqa: ARG002 - one shape for all handlers
        """GET /api/chat/runs/{runId}: any valid key may ask."""
        self._keys.account(request)
        run = self._runs.get(request.match_info["runId"])
        if run is None:
            raise Refused(404, "Run not found")
        return answer({"runId": run.order.run_id, "status": run.status})

    async def stop(self, request: web.Request, call: Call) -> web.StreamResponse:
        """POST /api/chat/{chatId}/stop: waits for the end of the run."""
        run = self._find_run(request)
        stopped = run.in_slot
        if stopped:
            self._runs.cancel(run)
            with anyio.move_on_after(self._timing.stop_limit):
                while not run.over:
                    await run.changed.wait()
            if not run.over:
                raise Refused(504, "The run is not over yet")
            self._runs.leave_slot(run)
        self._record.stops.append(Stop(call.at, run.order.chat_id, call.run_id, stopped))
        return answer({"success": True, "stopped": stopped})

    # --- chats ------------------------------------------------------------------------------

    async def chat(self, request: web.Request, call: Call) -> web.StreamResponse:  # noqa: ARG002 - one shape for all handlers
        """GET /api/sessions/{sessionId}/chats/{chatId}."""
        account = self._keys.account(request)
        session_id = request.match_info["sessionId"]
        if not is_uuid(session_id):
            return web.Response(status=500, text="Internal Server Error")
        run = self._runs.of_session(session_id)
        if run is None:
            raise Refused(404, "Session not found")
        if run.order.account_id != account:
            raise Refused(403, "Forbidden")
        if run.order.chat_id != request.match_info["chatId"]:
            raise Refused(404, "Chat not found")
        return answer(
            {"chat": _chat(run), "isStreaming": run.in_slot, "messages": self._messages(run)}
        )

    async def chats(self, request: web.Request, call: Call) -> web.StreamResponse:  # noqa: ARG002 - one shape for all handlers
        """GET /api/chats: those with a message, newest first."""
        account = self._keys.own_account(request)
        artist = request.query.get("artist_account_id")
        found = [
            run
            for run in self._runs
            if run.message is not None
            and run.order.account_id == account
            and artist in (None, run.order.artist_id)
        ]
        found.sort(key=lambda run: run.updated_at, reverse=True)
        return answer({"status": "success", "chats": [_row(run) for run in found]})

    async def room(self, request: web.Request, call: Call) -> web.StreamResponse:  # noqa: ARG002 - one shape for all handlers
        """GET /api/chats/{id}/messages: rooms of the older endpoint, never a run's chat."""
        account = self._keys.account(request)
        room_id = request.match_info["roomId"]
        if not is_uuid(room_id):
            raise Refused(400, "id must be a valid UUID", missing_fields=["id"])
        room = self._rooms.get(room_id)
        if room is None:
            raise Refused(404, "Chat room not found")
        if room.account_id != account:
            raise Refused(403, "Access denied to this chat")
        return answer({"data": room.rows})

    # --- the older, synchronous endpoint ------------------------------------------------------

    async def generate(self, request: web.Request, call: Call) -> web.StreamResponse:
        """POST /api/chat/generate: holds the connection for the whole generation."""
        body = read_body(await request.read(), room=True)
        account = self._caller(request, body)
        self._record.runs_by_prompt[body.prompt] += 1
        message_id = self._surroundings.message_id()
        script = read_script(body.prompt)
        plan = plan_run(script, message_id=message_id, model=body.model, pace=self._timing.pace)
        duration = sum(beat.after for beat in plan.beats)
        await (anyio.sleep(duration) if math.isfinite(duration) else anyio.sleep_forever())
        message = next((beat.message for beat in reversed(plan.beats) if beat.message), None)
        if plan.beats[-1].status == "failed" or message is None:
            raise Refused(500, "Internal server error")
        room_id = body.room_id or self._surroundings.uuid()
        room = self._rooms.setdefault(room_id, _Room(account, []))
        for content in ({"role": "user", "content": body.prompt}, message):
            room.rows.append(self._memory(room_id, content, call.at))
        return answer(_generated(message, script.finish))

    # --- helpers ------------------------------------------------------------------------------

    def _caller(self, request: web.Request, body: Body) -> str:
        account = self._keys.account(request)
        if body.account_id not in (None, account):
            raise Refused(403, "Access denied to specified account_id")
        if body.organization_id is not None:
            raise Refused(403, "Access denied to specified organization_id")
        return account

    def _messages(self, run: Run) -> list[Json]:
        about = run.order.prompt
        if self._faults.take(Kind.NO_MESSAGES, route="chat", prompt=about):
            return []
        message = run.message
        if self._faults.take(Kind.MISSING_STEP, route="chat", prompt=about):
            message = _without_last_step(run)
        return [] if message is None else [message]

    def _memory(self, room_id: str, content: Json, at: float) -> Json:
        return {
            "id": self._surroundings.uuid(),
            "room_id": room_id,
            "content": content,
            "updated_at": _time(max(at, self._surroundings.now())),
        }


def _time(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _chat(run: Run) -> Json:
    order = run.order
    return {
        "id": order.chat_id,
        "sessionId": order.session_id,
        "title": TITLE,
        "modelId": order.model,
        "activeStreamId": order.run_id if run.in_slot else None,
        "lastAssistantMessageAt": None if run.message is None else _time(run.updated_at),
        "createdAt": _time(order.created_at),
        "updatedAt": _time(run.updated_at),
    }


def _row(run: Run) -> Json:
    return {
        "id": run.order.chat_id,
        "title": TITLE,
        "accountId": run.order.account_id,
        "sessionId": run.order.session_id,
        "updatedAt": _time(run.updated_at),
        "artistId": run.order.artist_id,
    }


def _without_last_step(run: Run) -> Json | None:
    """Give the message as it was stored before its last model call."""
    played = run.plan.beats[: run.position]
    stored = [beat.message for beat in played if beat.message is not None]
    steps = max(map(_steps, stored), default=0)
    return next((message for message in reversed(stored) if _steps(message) < steps), None)


def _steps(message: Json) -> int:
    return sum(part["type"] == "step-start" for part in message["parts"])


def _generated(message: Json, finish: str) -> Json:
    parts = message["parts"]
    last = max(index for index, part in enumerate(parts) if part["type"] == "step-start")
    texts = [part["text"] for part in parts[last:] if part["type"] == "text"]
    thoughts = [part["text"] for part in parts if part["type"] == "reasoning"]
    usage = message.get("metadata", {}).get("totalMessageUsage", {})
    counts = {name: count for name, count in usage.items() if isinstance(count, int)}
    return {
        "text": [{"type": "text", "text": text} for text in texts],
        "reasoningText": "".join(thoughts) or None,
        "sources": [part for part in parts if part["type"] == "source-url"],
        "finishReason": finish,
        "usage": {"reasoningTokens": 0, "cachedInputTokens": 0, **counts},
        "response": {"messages": [message], "headers": {}, "body": {}},
    }
