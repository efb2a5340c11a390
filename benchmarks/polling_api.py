"""An API in virtual time, whose runs last as long as they are told to; for `benchmarks.polling`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Self

import anyio
import httpx

from benchmarks.stub_answers import chat_id, message_id, run_id, run_number, session_id
from orchestrator.recoup.answers import (
    Accepted,
    NoStream,
    NotSent,
    RunState,
    RunStatus,
    SessionChat,
)
from orchestrator.recoup.stream import OpenStream

WAY_S = 0.05
"""How long a request takes to the API, and its answer back."""

CHUNK_EVERY_S = 5.0
STREAM_LIMIT_S = 123.0
"""How long one response of the stream lasts at most, as measured at the live service."""

_DONE = [
    {"type": "text-end", "id": "0"},
    {"type": "finish-step"},
    {"type": "finish", "finishReason": "stop"},
]


class Api:
    """Stands in for the worker's client; counts what was asked."""

    def __init__(self, now: Callable[[], float], lengths: Sequence[float]) -> None:
        self.counts: Counter[str] = Counter()
        self._now = now
        self._lengths = list(lengths)
        self._began: dict[int, float] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    def ends(self) -> dict[str, float]:
        """When each run ended, by its id."""
        return {run_id(number): self._end(number) for number in self._began}

    def _end(self, number: int) -> float:
        return self._began[number] + self._lengths[number]

    def _over(self, number: int) -> bool:
        return self._now() >= self._end(number)

    # --- the calls ----------------------------------------------------------------------------

    async def start_run(
        self,
        body: dict[str, Any],
        *,
        mark: Callable[[], Coroutine[Any, Any, bool]],
        around: AbstractContextManager[object],
    ) -> Accepted | NotSent:
        """Start the run that the prompt names by its number."""
        if not await mark():
            return NotSent("the mark said not to send", refused_by_mark=True)
        with around:
            return await self.begin(int(body["prompt"]))

    async def begin(self, number: int) -> Accepted:
        """Start a run."""
        await anyio.sleep(WAY_S)
        self._began[number] = self._now()
        await anyio.sleep(WAY_S)
        return Accepted(run_id(number), chat_id(number), session_id(number))

    async def run_status(self, run: str) -> RunState:
        """Say whether the run is over."""
        self.counts["status"] += 1
        await anyio.sleep(WAY_S)
        over = self._over(run_number(run.encode()))
        await anyio.sleep(WAY_S)
        return RunState(run, RunStatus.COMPLETED if over else RunStatus.RUNNING)

    async def session_chat(self, session: str, chat: str) -> SessionChat:
        """The chat, which holds the message once the run is over."""
        self.counts["chat"] += 1
        number = run_number(chat.encode())
        await anyio.sleep(WAY_S)
        over = self._over(number)
        await anyio.sleep(WAY_S)
        chunks = (self._end(number) - self._began[number]) // CHUNK_EVERY_S
        message = {
            "id": message_id(number),
            "role": "assistant",
            "parts": [
                {"type": "step-start"},
                {"type": "text", "text": "word " * int(chunks), "state": "done"},
            ],
            "metadata": {"lastStepFinishReason": "stop"},
        }
        active = None if over else run_id(number)
        return SessionChat(
            chat, session, None, active, None, None, not over, (message,) if over else ()
        )

    @asynccontextmanager
    async def stream(self, chat: str, start: int) -> AsyncIterator[OpenStream | NoStream]:
        """Open the run's stream at a chunk."""
        self.counts["stream"] += 1
        number = run_number(chat.encode())
        await anyio.sleep(2 * WAY_S)
        if self._over(number):
            yield NoStream()
            return
        head = {"content-type": "text/event-stream", "x-workflow-run-id": run_id(number)}
        response = httpx.Response(200, headers=head, content=self._chunks(number, start))
        opened = OpenStream(response, idle_s=3600.0)
        try:
            yield opened
        finally:
            await opened.aclose()

    async def _chunks(self, number: int, start: int) -> AsyncIterator[bytes]:
        until = self._now() + STREAM_LIMIT_S
        for index, (at, chunk) in enumerate(self._timed(number)):
            if index < start:
                continue
            if at > until:
                await anyio.sleep(until - self._now())
                return
            await anyio.sleep(max(0.0, at - self._now()))
            yield b"data: %b\n\n" % json.dumps(chunk).encode()
        yield b"data: [DONE]\n\n"

    def _timed(self, number: int) -> list[tuple[float, dict[str, Any]]]:
        """The run's chunks, each with its time."""
        began, end = self._began[number], self._end(number)
        first = [
            {"type": "start", "messageId": message_id(number)},
            {"type": "start-step"},
            {"type": "text-start", "id": "0"},
        ]
        deltas = range(1, int((end - began) // CHUNK_EVERY_S) + 1)
        return [
            *((began, chunk) for chunk in first),
            *(
                (began + each * CHUNK_EVERY_S, {"type": "text-delta", "id": "0", "delta": "word "})
                for each in deltas
            ),
            *((end, chunk) for chunk in _DONE),
        ]
