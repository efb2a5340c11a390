"""The store: runs verbs on a database, reads and durable writes, and says when to look again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Concatenate, ParamSpec, Self, TypeVar

import anyio
from sqlalchemy import URL, Connection, Engine

from orchestrator.errors import OrchestratorError, StoreUnavailable
from orchestrator.store import migrations, sqlite, wake
from orchestrator.store.commit import GroupCommit, Joint, Write
from orchestrator.store.engine import (
    POOL_SIZE,
    begin,
    on_live_connection,
    pooled_engine,
    reaching,
)
from orchestrator.store.threads import Threads
from orchestrator.store.transact import transact
from orchestrator.store.wake import Listen

T = TypeVar("T")
P = ParamSpec("P")
Verb = Callable[Concatenate[Connection, P], T]


class Store:
    """One database, for one process. Use `Store.open`."""

    def __init__(
        self,
        *,
        engine: Engine,
        reading: Engine | None = None,
        beats: Engine | None = None,
        listen: Listen | None = None,
    ) -> None:
        self._engine = engine
        self._reading = reading or engine
        self._threads = Threads(POOL_SIZE)
        self._beating = Threads(1)
        self._beats = beats
        self._listen = listen
        self._commits = GroupCommit(run=self._run_batch)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: URL,
        *,
        listen_url: URL | None = None,
        prepared: bool = False,
        now: sqlite.Now = sqlite.system_now,
    ) -> AsyncIterator[Self]:
        """Open the database of a parsed URL and close it at the end of the block.

        `listen_url` reaches the same PostgreSQL past a transaction pooler, for what needs a
        connection of its own; `prepared` lets PostgreSQL keep prepared statements, which a pooler
        before it would mix up. Raises NotFound where there is no file, SchemaMismatch for a schema
        that is not ours, and StoreUnavailable where the database cannot be reached. Never creates
        or changes anything.
        """
        migrations.require_file(url)
        direct = listen_url or url
        engine = pooled_engine(url, now=now, prepared=prepared)
        reading = beats = None
        if engine.dialect.name == "postgresql":
            past_pooler = prepared or listen_url is not None
            beats = pooled_engine(direct, size=1, prepared=past_pooler)
            if prepared:
                # What bounds a transaction is set for the session: a look needs none of its own.
                reading = engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            store = cls(engine=engine, reading=reading, beats=beats, listen=wake.listener(direct))
            await store.read(migrations.require_current)
            yield store
        finally:
            engine.dispose()
            if beats is not None:
                beats.dispose()

    async def read(self, verb: Verb[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb that only reads. Raises StoreUnavailable where the database is out of reach.

        A cancelled caller is let go after the statement, never inside it.
        """
        return await self._threads.run(self._read, lambda at: verb(at, *args, **kwargs))

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

    async def write_alone(self, verb: Callable[[Connection], T], *, urgent: bool = False) -> T:
        """Run a verb that touches many rows, and return its result once it is durable.

        On PostgreSQL it has a transaction of its own: others need not wait for the locks that it
        collects. A SQLite file has one writer at a time, so there it shares. Raises as `write`.
        """
        if self._engine.dialect.name == "sqlite":
            return await self.write(verb, urgent=urgent)
        return await self._run_alone(self._threads, self._engine, verb)

    async def beat(self, verb: Callable[[Connection], T]) -> T:
        """Run a heartbeat's verb ahead of all other work, and return its result once it is durable.

        On PostgreSQL it has a connection of its own, which no pool can run out of. Raises as
        `write`.
        """
        if self._beats is None:
            return await self.write(verb, urgent=True)
        return await self._run_alone(self._beating, self._beats, verb)

    async def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` whenever jobs may have become due, until cancelled.

        A hint, that may come late, twice or for nothing: polling stands behind it. Returns at
        once where there is nothing to listen to.
        """
        if self._listen is not None:
            await self._listen(on_change)

    def _read(self, verb: Callable[[Connection], T]) -> T:
        with reaching():
            return on_live_connection(partial(self._read_once, verb))

    def _read_once(self, verb: Callable[[Connection], T]) -> T:
        connection, transaction = begin(self._reading, writes=False)
        with connection, transaction:
            return verb(connection)

    async def _run_alone(
        self, threads: Threads, engine: Engine, verb: Callable[[Connection], T]
    ) -> T:
        with anyio.CancelScope(shield=True):
            result = await transact(threads, engine, verb)
        await anyio.lowlevel.checkpoint_if_cancelled()
        return result

    async def _run_batch(self, writes: Sequence[Write[object]]) -> None:
        """Run the writes in one transaction; a verb's own refusal undoes only that verb."""
        try:
            await transact(self._threads, self._engine, partial(_run_all, writes=writes))
        except StoreUnavailable:
            raise
        except OrchestratorError:
            if len(writes) == 1:
                raise
            # Seldom enough that a savepoint around each verb would cost more than this.
            await transact(self._threads, self._engine, partial(_run_apart, writes=writes))


def _run_all(connection: Connection, writes: Sequence[Write[object]]) -> None:
    for alike in _by_verb(writes):
        _run_alike(connection, alike)


def _run_apart(connection: Connection, writes: Sequence[Write[object]]) -> None:
    """Run what one verb can do jointly behind a savepoint; where that is refused, each alone."""
    for alike in _by_verb(writes):
        try:
            with connection.begin_nested():
                _run_alike(connection, alike)
        except OrchestratorError:
            for entry in alike:
                _run_one(connection, entry)


def _by_verb(writes: Sequence[Write[object]]) -> list[list[Write[object]]]:
    """Put together what one verb can do jointly, in the order in which each verb is first met."""
    groups: dict[object, list[Write[object]]] = {}
    for entry in writes:
        key = entry.verb.verb if isinstance(entry.verb, Joint) else entry
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _run_alike(connection: Connection, alike: Sequence[Write[object]]) -> None:
    """Run the items of one verb at once, or the one verb that nothing is joint with."""
    verb = alike[0].verb
    if isinstance(verb, Joint):
        items = [entry.verb.item for entry in alike if isinstance(entry.verb, Joint)]
        results = verb.verb(connection, items)
    else:
        results = [verb(connection)]
    for entry, result in zip(alike, results, strict=True):
        entry.result, entry.error = result, None


def _run_one(connection: Connection, entry: Write[object]) -> None:
    entry.result, entry.error = None, None
    try:
        with connection.begin_nested():
            entry.result = entry.verb(connection)
    except OrchestratorError as error:
        entry.error = error
