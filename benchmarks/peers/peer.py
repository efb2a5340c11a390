"""What the benchmarks ask of a peer, and the tables in which its jobs keep what they learned."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

from benchmarks.common.life import Life, prompt
from orchestrator.message import whole_text
from orchestrator.recoup.answers import Accepted

Handler: TypeAlias = Callable[[int], Awaitable[None]]
"""The body of a job; it gets the job's number."""

TABLES = """
CREATE TABLE runs (
    job integer PRIMARY KEY,
    run_id text NOT NULL,
    chat_id text NOT NULL,
    session_id text NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE messages (
    job integer PRIMARY KEY,
    message_id text NOT NULL,
    role text NOT NULL,
    text text NOT NULL,
    message json NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE orders (number integer PRIMARY KEY, note text NOT NULL);
"""
"""Of whoever uses the peer: what a life leaves behind, and a row of a caller's own."""

SAVE_IDS = "INSERT INTO runs (job, run_id, chat_id, session_id) VALUES ($1, $2, $3, $4)"
SAVE_MESSAGE = (
    "INSERT INTO messages (job, message_id, role, text, message) VALUES ($1, $2, $3, $4, $5)"
)
SAVE_ORDER = "INSERT INTO orders (number, note) VALUES ($1, $2)"

POOL = 20
"""Connections for the jobs' own writes: more than two cores can keep busy."""


class Peer(Protocol):
    """A job queue on an empty database, opened with the handler of its jobs."""

    finished: str
    """Counts the jobs that the tables show as done."""

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        """Enqueue jobs by the peer's own bulk call."""

    async def enqueue(self, number: int) -> None:
        """Enqueue one job."""

    def joining(self) -> AbstractAsyncContextManager[Handler]:
        """Give a call that writes a row of the caller's and enqueues, in one transaction."""

    def working(self) -> AbstractAsyncContextManager[None]:
        """Run one worker for the block."""

    async def save_ids(self, number: int, accepted: Accepted) -> None:
        """Keep a run's ids, durably, as soon as they are known."""

    async def save_message(self, number: int, life: Life) -> None:
        """Keep a run's message, durably."""


Opener: TypeAlias = Callable[[str, Handler, int], AbstractAsyncContextManager[Peer]]
"""Opens a peer: URL of a database that has `TABLES`, handler, jobs at once."""


def payload(number: int) -> dict[str, Any]:
    """What a job carries: its number, and the prompt of a life."""
    return {"number": number, "prompt": prompt(number)}


def ids_row(number: int, accepted: Accepted) -> tuple[object, ...]:
    """The values of `SAVE_IDS`."""
    return number, accepted.run_id, accepted.chat_id, accepted.session_id


def message_row(number: int, life: Life) -> tuple[object, ...]:
    """The values of `SAVE_MESSAGE`."""
    text, whole = whole_text(life.message), json.dumps(life.message)
    return number, life.message["id"], life.message["role"], text, whole
