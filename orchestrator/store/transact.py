"""One transaction that writes, and what became of it where the answer to its COMMIT was lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import StoreUnavailable
from orchestrator.store import sqlite
from orchestrator.store.engine import out_of_reach, reaching

T = TypeVar("T")

LOOK_UP_S = 300.0
"""How long a transaction whose COMMIT had no answer is looked up."""

LOOK_EVERY_S = 1.0

_NUMBER = text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")
_STATUS = text("SELECT pg_xact_status(CAST(CAST(:number AS text) AS xid8))")
_NEVER_HEARD_OF = "22023"
"""The SQLSTATE for a number that this server has not given out yet."""


async def transact(engine: AsyncEngine, verb: Callable[[Connection], T]) -> T:
    """Run a verb in a transaction of its own, and return its result once it is durable.

    A COMMIT that a connection's end left without an answer is looked up under the transaction's
    number, which PostgreSQL remembers. A SQLite file has no such case: its COMMIT answers, or the
    process is gone. Raises what the verb raises, and StoreUnavailable: then nothing was written,
    or the text says that it is not known. The caller shields this from cancellation.
    """
    number: str | None = None
    lost: DBAPIError | None = None
    with reaching():
        async with engine.connect() as connection:
            await connection.execution_options(**{sqlite.WRITE: True})
            async with connection.begin() as transaction:
                result = await connection.run_sync(verb)
                if engine.dialect.name == "postgresql":
                    number = (await connection.execute(_NUMBER)).scalar_one()
                try:
                    await transaction.commit()
                except DBAPIError as error:
                    if number is None or not out_of_reach(error):
                        raise
                    lost = error
    if number is not None and lost is not None and not await _was_committed(engine, number):
        raise StoreUnavailable("the database went away before the COMMIT") from lost
    return result


async def _was_committed(engine: AsyncEngine, number: str) -> bool:
    """Ask, until the database is back, whether a transaction was committed.

    Raises StoreUnavailable after `LOOK_UP_S`, and where the server has forgotten.
    """
    status: str | None = "in progress"  # the server's end of it may live longer than ours
    with anyio.move_on_after(LOOK_UP_S):
        while status == "in progress":
            with suppress(StoreUnavailable), reaching():
                status = await _status(engine, number)
            if status == "in progress":
                await anyio.sleep(LOOK_EVERY_S)
    if status not in ("committed", "aborted"):
        raise StoreUnavailable("the answer to a COMMIT was lost; whether it stands is not known")
    return status == "committed"


async def _status(engine: AsyncEngine, number: str) -> str | None:
    """What the server says of a transaction; None where it has forgotten."""
    found: str | None = None
    with anyio.CancelScope(shield=True):
        async with engine.connect() as connection, connection.begin():
            try:
                row = await connection.execute(_STATUS, {"number": number})
                found = row.scalar_one()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _NEVER_HEARD_OF:
                    raise
                found = "aborted"  # a server that took over never received it
    return found
