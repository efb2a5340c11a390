"""One transaction that writes, and what became of it where the answer to its COMMIT was lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import anyio
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import StoreUnavailable
from orchestrator.store import stamp
from orchestrator.store.engine import begin, on_live_connection, out_of_reach, reaching
from orchestrator.store.threads import Threads

T = TypeVar("T")

LOOK_UP_S = 300.0
"""How long a transaction whose COMMIT had no answer is looked up."""

LOOK_EVERY_S = 1.0

_STATUS = text("SELECT pg_xact_status(CAST(CAST(:number AS text) AS xid8))")
_NEVER_HEARD_OF = "22023"
"""The SQLSTATE for a number that this server has not given out yet."""


@dataclass(frozen=True, slots=True)
class _Unanswered(Generic[T]):
    """A transaction whose COMMIT went out and had no answer."""

    result: T
    number: str
    error: DBAPIError


async def transact(threads: Threads, engine: Engine, verb: Callable[[Connection], T]) -> T:
    """Run a verb in a transaction of its own, and return its result once it is durable.

    A COMMIT that a connection's end left without an answer is looked up under the transaction's
    number, which PostgreSQL remembers. A SQLite file has no such case: its COMMIT answers, or the
    process is gone. Raises what the verb raises, and StoreUnavailable: then nothing was written,
    or the text says that it is not known. The caller shields this from cancellation.
    """
    done = await threads.run(_run, engine, verb)
    if isinstance(done, _Unanswered):
        if not await _was_committed(threads, engine, done.number):
            raise StoreUnavailable("the database went away before the COMMIT") from done.error
        return done.result
    return done


def _run(engine: Engine, verb: Callable[[Connection], T]) -> T | _Unanswered[T]:
    with reaching():
        return on_live_connection(partial(_run_once, engine, verb))


def _run_once(engine: Engine, verb: Callable[[Connection], T]) -> T | _Unanswered[T]:
    number: str | None = None
    connection, transaction = begin(engine, writes=True)
    with connection, transaction:
        result = verb(connection)
        if engine.dialect.name == "postgresql":
            number = stamp.number(connection)
        try:
            transaction.commit()
        except DBAPIError as error:
            if number is None or not out_of_reach(error):
                raise  # without a number, nothing was written
            return _Unanswered(result, number, error)
    return result


async def _was_committed(threads: Threads, engine: Engine, number: str) -> bool:
    """Ask, until the database is back, whether a transaction was committed.

    Raises StoreUnavailable after `LOOK_UP_S`, and where the server has forgotten.
    """
    status: str | None = "in progress"  # the server's end of it may live longer than ours
    with anyio.move_on_after(LOOK_UP_S):
        while status == "in progress":
            with suppress(StoreUnavailable):
                status = await threads.run(_status, engine, number)
            if status == "in progress":
                await anyio.sleep(LOOK_EVERY_S)
    if status not in ("committed", "aborted"):
        raise StoreUnavailable("the answer to a COMMIT was lost; whether it stands is not known")
    return status == "committed"


def _status(engine: Engine, number: str) -> str | None:
    """What the server says of a transaction; None where it has forgotten."""
    found: str | None = None
    with reaching(), engine.begin() as connection:
        try:
            found = connection.execute(_STATUS, {"number": number}).scalar_one()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _NEVER_HEARD_OF:
                raise
            found = "aborted"  # a server that took over never received it
    return found
