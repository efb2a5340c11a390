"""The store: runs verbs on a database, reads and durable writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, Self, TypeVar

import anyio
from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import OrchestratorError
from orchestrator.store import migrations, sqlite
from orchestrator.store.commit import GroupCommit, Write
from orchestrator.store.engine import async_engine, reaching

T = TypeVar("T")
P = ParamSpec("P")
Verb = Callable[Concatenate[Connection, P], T]


class Store:
    """One database, for one process. Use `Store.open`."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        self._engine = engine
        self._commits = GroupCommit(run=self._run_batch)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: URL, *, now: sqlite.Now = sqlite.system_now) -> AsyncIterator[Self]:
        """Open the database of a parsed URL and close it at the end of the block.

        Raises NotFound where there is no file, SchemaMismatch for a schema that is not ours, and
        StoreUnavailable where the database cannot be reached. Never creates or changes anything.
        """
        migrations.require_file(url)
        engine = async_engine(url, now=now)
        try:
            store = cls(engine=engine)
            await store.read(migrations.require_current)
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await engine.dispose()

    async def read(self, verb: Verb[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb that only reads. Raises StoreUnavailable where the database is out of reach.

        A cancelled caller is let go after the statement, never inside it.
        """
        with anyio.CancelScope(shield=True):
            with reaching():
                async with self._engine.connect() as connection, connection.begin():
                    result = await connection.run_sync(verb, *args, **kwargs)
        return result

    async def write(
        self,
        verb: Callable[[Connection], T],
        *,
        order: int = 0,
        urgent: bool = False,
    ) -> T:
        """Run a verb that writes, and return its result once it is durable.

        `order` is the id of the job that it touches; urgent writes go first. Writes of many
        callers share a transaction. Raises what the verb raises (LeaseLost above all), and
        StoreUnavailable where the database is out of reach: nothing was written then, or it is
        not known.
        """
        return await self._commits.write(verb, order=order, urgent=urgent)

    async def _run_batch(self, writes: Sequence[Write[object]]) -> None:
        """Run the writes in one transaction; a verb's own refusal undoes only that verb."""
        with reaching():
            async with self._engine.connect() as connection:
                await connection.execution_options(**{sqlite.WRITE: True})
                async with connection.begin():
                    await connection.run_sync(_run_all, writes)


def _run_all(connection: Connection, writes: Sequence[Write[object]]) -> None:
    for entry in writes:
        entry.result, entry.error = None, None
        if len(writes) == 1:
            entry.result = entry.verb(connection)
            continue
        try:
            with connection.begin_nested():
                entry.result = entry.verb(connection)
        except OrchestratorError as error:
            entry.error = error
