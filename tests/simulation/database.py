"""One SQLite database in memory for all simulated workers, and the way each of them reaches it."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import anyio
from sqlalchemy import Connection, Engine, StaticPool, create_engine

from orchestrator.errors import StoreUnavailable
from orchestrator.store import migrations, sqlite
from orchestrator.store import store as real
from orchestrator.store.commit import GroupCommit, Write
from orchestrator.store.engine import parse_url, reaching

from .timeline import Loop
from .trace import Trace

T = TypeVar("T")
P = ParamSpec("P")

EPOCH = datetime(2026, 8, 1, tzinfo=UTC)
"""The moment at which every simulation begins."""

_WATCHED = {
    "jobs": """
        CREATE TRIGGER sim_jobs AFTER UPDATE ON jobs BEGIN
            INSERT INTO sim_changes (kind, job_id, was_state, state, was_lease, lease,
                was_worker, worker, was_sent, sent)
            VALUES ('job', OLD.id, OLD.state, NEW.state, OLD.lease, NEW.lease,
                OLD.worker_id, NEW.worker_id, OLD.sent_at, NEW.sent_at); END""",
    "workers": """
        CREATE TRIGGER sim_workers AFTER UPDATE ON workers BEGIN
            INSERT INTO sim_changes (kind, worker, was_state, state)
            VALUES ('worker', NEW.id, OLD.stopped_at, NEW.stopped_at); END""",
    "messages": """
        CREATE TRIGGER sim_messages AFTER INSERT ON messages BEGIN
            INSERT INTO sim_changes (kind, job_id) VALUES ('message', NEW.job_id); END""",
    "stream_checkpoints": """
        CREATE TRIGGER sim_chunks AFTER INSERT ON stream_checkpoints BEGIN
            INSERT INTO sim_changes (kind, job_id) VALUES ('chunks', NEW.job_id); END""",
}


class Change(NamedTuple):
    """One row that a transaction wrote; a job's fields before and after."""

    seq: int
    kind: str
    job_id: int | None
    was_state: str | None
    state: str | None
    was_lease: int | None
    lease: int | None
    was_worker: str | None
    worker: str | None
    was_sent: str | None
    sent: str | None


class Database:
    """The database, and its clock. Made once, and emptied for each simulation."""

    def __init__(self) -> None:
        self._template = _template()
        self._raw = sqlite3.connect(":memory:", check_same_thread=False)
        self._clock: Callable[[], float] = lambda: 0.0
        self.offset = 0.0
        """Seconds that the database's clock is ahead of the simulated time."""
        engine = self._engine()
        sqlite.prepare(engine, self.now)
        self._writing = engine.connect().execution_options(**{sqlite.WRITE: True})
        # Nothing comes between the statements of a read here: it needs no transaction.
        self._reading = self._engine().connect()

    def _engine(self) -> Engine:
        return create_engine(
            "sqlite://", creator=lambda: self._raw, poolclass=StaticPool, hide_parameters=True
        )

    def now(self) -> datetime:
        """The database's clock."""
        return EPOCH + timedelta(seconds=self._clock() + self.offset)

    def empty(self, clock: Callable[[], float]) -> None:
        """Begin with empty tables, and a clock of seconds since `EPOCH`."""
        self._template.backup(self._raw)
        self._clock, self.offset = clock, 0.0

    def read(self, verb: Callable[Concatenate[Connection, P], T], *a: P.args, **kw: P.kwargs) -> T:
        """Run a verb that reads."""
        with self._reading.begin():
            return verb(self._reading, *a, **kw)

    def write(self, verb: Callable[[Connection], T], fail: Callable[[], None] | None = None) -> T:
        """Run a verb that writes, in a transaction of its own; `fail` may raise before its end."""
        with self._writing.begin():
            result = verb(self._writing)
            if fail is not None:
                fail()
        return result

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, as the checks want them: past every layer of ours."""
        return self._raw.execute(query, values).fetchall()

    def changes(self) -> list[Change]:
        """What was written since the last call."""
        found = [Change(*row) for row in self.rows("SELECT * FROM sim_changes ORDER BY seq")]
        if found:
            self._raw.execute("DELETE FROM sim_changes")
        return found


def _template() -> sqlite3.Connection:
    """The migrated schema, with triggers that tell of each change."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        migrations.upgrade(parse_url(f"sqlite:///{path}"))
        connection = sqlite3.connect(path, isolation_level=None)
        columns = ", ".join(name for name in Change._fields if name != "seq")
        connection.execute(f"CREATE TABLE sim_changes (seq INTEGER PRIMARY KEY, {columns})")
        for trigger in _WATCHED.values():
            connection.execute(trigger)
        connection.execute("PRAGMA journal_mode = DELETE")  # memory has no write-ahead log
        template = sqlite3.connect(":memory:", check_same_thread=False)
        connection.backup(template)
        connection.close()
    return template


@dataclass(slots=True)
class Reach:
    """How workers reach the database now. `delay` is a range in seconds, one way; the others are
    probabilities of each call."""

    delay: tuple[float, float] = (0.0005, 0.003)
    lost_before: float = 0.0
    """The call fails, and nothing was done."""
    undone: float = 0.0
    """The call fails in the end, and what was done is rolled back."""
    lost_after: float = 0.0
    """The call fails, and all was done: a COMMIT without an answer."""
    down: bool = False


class SimStore(real.Store):
    """A worker's store: real verbs and real group commit, on the simulated way to the database.

    `apart`: heartbeats and long writes have transactions of their own, as on PostgreSQL.
    """

    def __init__(
        self,
        *,
        database: Database,
        reach: Reach,
        cut: set[str],
        process: Loop,
        apart: bool,
        random: Random,
        trace: Trace,
        on_commit: Callable[[str], None],
    ) -> None:
        self._database = database
        self._reach = reach
        self._cut = cut
        self._process = process
        self._apart = apart
        self._random = random
        self._trace = trace
        self._on_commit = on_commit
        self._commits = GroupCommit(run=self._run_batch)

    async def read(
        self, verb: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with anyio.CancelScope(shield=True):
            result = await self._call(lambda _fail: self._database.read(verb, *args, **kwargs))
        return result  # noqa: RET504 - the type checker thinks that the scope may swallow

    async def write_alone(self, verb: Callable[[Connection], T], *, urgent: bool = False) -> T:
        return await self._alone(verb) if self._apart else await self.write(verb, urgent=urgent)

    async def beat(self, verb: Callable[[Connection], T]) -> T:
        return await self._alone(verb) if self._apart else await self.write(verb, urgent=True)

    async def listen(self, on_change: Callable[[], None]) -> None:
        """Nothing tells of changes here: polling finds them."""

    async def _alone(self, verb: Callable[[Connection], T]) -> T:
        def commit(fail: Callable[[], None]) -> T:
            with reaching():
                result = self._database.write(verb, fail)
            self._on_commit(self._process.name)
            return result

        with anyio.CancelScope(shield=True):
            result = await self._call(commit)
        await anyio.lowlevel.checkpoint_if_cancelled()
        return result

    async def _run_batch(self, writes: Sequence[Write[object]]) -> None:
        def commit(fail: Callable[[], None]) -> None:
            with reaching():
                self._database.write(partial(real._run_all, writes=writes), fail)
            self._on_commit(self._process.name)

        await self._call(commit)

    async def _call(self, act: Callable[[Callable[[], None]], T]) -> T:
        """Go to the database and come back; either way may fail."""
        chance = self._random.random()
        await anyio.sleep(self._random.uniform(*self._reach.delay))
        if self._is_away():
            await anyio.sleep(self._random.choice((0.0, 0.1, 2.0)))
            raise self._unavailable("the database is away")
        if chance < self._reach.lost_before:
            raise self._unavailable("the connection broke before the transaction")
        result = act(self._undo)
        await anyio.sleep(self._random.uniform(*self._reach.delay))
        if self._is_away() or chance > 1 - self._reach.lost_after:
            raise self._unavailable("the connection broke after the transaction")
        return result

    def _undo(self) -> None:
        if self._random.random() < self._reach.undone:
            raise self._unavailable("the transaction was rolled back")

    def _is_away(self) -> bool:
        return self._reach.down or self._process.name in self._cut

    def _unavailable(self, why: str) -> StoreUnavailable:
        self._trace.count(why)
        self._trace.add(self._process.name, "store", failed=why)
        return StoreUnavailable(why)
