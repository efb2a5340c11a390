"""Group commit: the writes of many jobs share a transaction.

Each caller waits for its own durable answer and may assume only its own guard. There is no
background task: the first caller to find nobody committing leads, and hands the lead to a waiting
one when its batch is done. A caller's cancellation never reaches a statement; its write still runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import anyio
from sqlalchemy import Connection

from orchestrator.errors import StoreUnavailable
from orchestrator.store.ended import Ended

T = TypeVar("T")
ItemT = TypeVar("ItemT")

MAX_BATCH = 256
"""Writes that share one transaction at most: it bounds what a failing one makes us repeat."""


ROUNDS_TO_GATHER = 2
"""Rounds of the event loop that a batch waits for others to join it."""


@dataclass(frozen=True, slots=True)
class Joint(Generic[ItemT, T]):
    """One item for a verb that takes those of many callers at once; by itself, a verb like any.

    The verb gives each item its result, in order. If it raises, nothing that it did may stand,
    and each item is tried alone.
    """

    verb: Callable[[Connection, Sequence[ItemT]], list[T]]
    item: ItemT

    def __call__(self, connection: Connection) -> T:
        """Run the verb for this item alone."""
        return self.verb(connection, [self.item])[0]


@dataclass(slots=True, eq=False)
class Write(Ended[T]):
    """A verb that waits to be run, and then its result or its error.

    `order` is the job's id: rows are touched in that order, so that two batches cannot deadlock.
    """

    verb: Callable[[Connection], T]
    urgent: bool
    order: int
    settled: asyncio.Future[None]
    """Done once there is a result, an error, or the lead to take."""
    leads: bool = False
    abandoned: bool = False
    """Its caller was cancelled past every shield; the write still runs."""

    def wake(self) -> None:
        """Let its caller look again; one that asyncio cancelled does not wait any more."""
        if not self.settled.done():
            self.settled.set_result(None)


class RunBatch(Protocol):
    """Run the verbs in one durable transaction and set each write's result or error.

    Raises if the transaction as a whole failed; then nothing of it stands.
    """

    def __call__(  # noqa: D102 - the class says it
        self, writes: Sequence[Write[object]], /
    ) -> Awaitable[None]: ...


class GroupCommit:
    """Collects writes while a transaction is under way, and commits them together."""

    def __init__(self, *, run: RunBatch) -> None:
        self._run = run
        self._waiting: list[Write[object]] = []
        self._busy = False
        self._leading: asyncio.Future[None] | None = None

    async def write(
        self, verb: Callable[[Connection], T], *, urgent: bool = False, order: int = 0
    ) -> T:
        """Run `verb` in a shared transaction and return its result once that is durable.

        Urgent writes (marks, ids, beats) go before the others. Raises what the verb raised, or
        what the database said when its transaction failed. The wait is bounded by the database's
        own timeouts.
        """
        entry: Write[T] = Write(verb, urgent, order, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)  # type: ignore[arg-type] # results are checked by the caller
        with anyio.CancelScope(shield=True):
            entry.leads = not self._busy
            if not entry.leads:
                await self._wait(entry)
            if entry.leads:
                await self._lead_on(entry)
        await anyio.lowlevel.checkpoint_if_cancelled()
        return entry.result_or_raise()

    async def _wait(self, entry: Write[T]) -> None:
        try:
            await entry.settled
        except asyncio.CancelledError:
            entry.abandoned = True
            if entry.leads:
                self._hand_over()
            raise

    async def _lead_on(self, entry: Write[T]) -> None:
        """Lead in a task of its own: asyncio's own cancellation knows no shield.

        `asyncio.wait_for` and its like cancel a caller in the middle of a batch; the others in it
        wait for its end all the same.
        """
        self._busy = True
        self._leading = asyncio.ensure_future(self._lead(entry))
        await asyncio.shield(self._leading)

    async def _lead(self, own: Write[Any]) -> None:
        """Commit batches until our own write is among them, then hand the lead over."""
        while own in self._waiting:
            # Whoever is about to write anyway may come along: idle, this costs nothing.
            for _ in range(ROUNDS_TO_GATHER):
                await anyio.lowlevel.checkpoint()
            await self._commit(self._take())
        self._hand_over()

    def _hand_over(self) -> None:
        """Let the first who still waits lead; writes that nobody waits for are led for."""
        self._busy = bool(self._waiting)
        waiting = (entry for entry in self._waiting if not entry.abandoned)
        successor = next(waiting, None)
        if successor is not None:
            successor.leads = True
            successor.wake()
        elif self._waiting:
            self._leading = asyncio.ensure_future(self._lead(self._waiting[-1]))

    def _take(self) -> list[Write[object]]:
        self._waiting.sort(key=lambda entry: not entry.urgent)
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        return sorted(batch, key=lambda entry: entry.order)

    async def _commit(self, batch: list[Write[object]]) -> None:
        try:
            try:
                await self._run(batch)
            except StoreUnavailable:
                raise
            except Exception:
                if len(batch) == 1:
                    raise
                # One bad write must not fail the others: each runs again alone.
                for entry in batch:
                    await self._commit([entry])
                return
        except Exception as error:  # noqa: BLE001 - each waiting caller raises it
            for entry in batch:
                entry.error = error
        for entry in batch:
            entry.wake()
