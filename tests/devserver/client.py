from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from orchestrator.recoup.transport import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.testing import DevServer

BOUND_S = 10
"""How long a test waits for anything."""


@dataclass(frozen=True)
class Ids:
    run: str
    chat: str
    session: str


@dataclass(frozen=True)
class Answer:
    """One response of the stream route, read to its end."""

    status: int
    headers: httpx.Headers
    events: list[Any]
    done: bool
    broken: bool
    rest: bytes
    """What came after the last whole event."""

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


class Client:
    """A reader's view of the API: one connection for each request."""

    def __init__(self, server: DevServer, http: httpx.AsyncClient) -> None:
        self.server = server
        self.http = http

    async def start(self, prompt: str, **fields: Any) -> Ids:
        # Written with ASCII escapes, so that a prompt may hold lone surrogates.
        body = json.dumps({"prompt": prompt, **fields})
        answer = await self.http.post("/api/chat/runs", content=body)
        assert answer.status_code == 202, answer.text
        return ids_of(answer.json())

    async def status(self, ids: Ids) -> str:
        answer = await self.http.get(f"/api/chat/runs/{ids.run}")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["status"])

    async def chat(self, ids: Ids) -> dict[str, Any]:
        answer = await self.http.get(f"/api/sessions/{ids.session}/chats/{ids.chat}")
        assert answer.status_code == 200, answer.text
        chat: dict[str, Any] = answer.json()
        return chat

    async def message(self, ids: Ids) -> dict[str, Any]:
        (message,) = (await self.chat(ids))["messages"]
        assert isinstance(message, dict)
        return message

    async def stop(self, ids: Ids) -> httpx.Response:
        return await self.http.post(f"/api/chat/{ids.chat}/stop")

    async def stream(self, ids: Ids, start: int | str | None = None) -> Answer:
        params = {} if start is None else {"startIndex": start}
        raw, broken = b"", False
        async with self.http.stream("GET", f"/api/chat/{ids.chat}/stream", params=params) as answer:
            try:
                async for piece in answer.aiter_raw():
                    raw += piece
            except httpx.RemoteProtocolError:
                broken = True
        *frames, rest = raw.split(b"\n\n")
        events = [frame.removeprefix(b"data: ") for frame in frames]
        done = bool(events) and events[-1] == b"[DONE]"
        return Answer(
            answer.status_code,
            answer.headers,
            [json.loads(event) for event in (events[:-1] if done else events)],
            done,
            broken,
            rest,
        )

    async def ended(self, ids: Ids) -> str:
        """Wait for the end of a run, as the server itself knows it."""
        run = self.server.runs.get(ids.run)
        assert run is not None
        await until(lambda: run.over)
        return run.status

    async def written(self, ids: Ids, count: int) -> None:
        """Wait until a run has written `count` chunks."""
        run = self.server.runs.get(ids.run)
        assert run is not None
        await until(lambda: run.written >= count)


def ids_of(body: dict[str, str]) -> Ids:
    return Ids(body["runId"], body["chatId"], body["sessionId"])


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition, looking often, for ten seconds at most."""
    with anyio.fail_after(BOUND_S):
        while not true():  # noqa: ASYNC110 - what it looks at sets no event
            await anyio.sleep(0.002)


def open_client(server: DevServer, key: str | None = None) -> httpx.AsyncClient:
    return plain_client(
        base_url=server.url,
        headers={"x-api-key": key or server.key},
        limits=httpx.Limits(max_keepalive_connections=0),
    )


def plain_client(**options: Any) -> httpx.AsyncClient:
    """A client for http alone."""
    return httpx.AsyncClient(trust_env=False, verify=tls_context(), timeout=BOUND_S, **options)
