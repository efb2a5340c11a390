"""Wake-ups: how a worker hears that jobs may have become due, beside polling.

PostgreSQL has NOTIFY; in a SQLite file, a counter tells that somebody else has committed.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeAlias

import anyio
import structlog
from sqlalchemy import URL, Connection, func, select

from orchestrator.store import postgres, sqlite

Listen: TypeAlias = "Callable[[Callable[[], None]], Awaitable[None]]"

CHANNEL = "orchestrator_jobs"

LOOK_EVERY_S = 0.15
"""How often a SQLite file is asked whether somebody has committed: one read of shared memory."""

RECONNECT_FIRST_S, RECONNECT_MOST_S = 0.5, 10.0

ALIVE_EVERY_S = 30.0
"""How often a silent connection to PostgreSQL is tried: one that is cut off hears nothing."""

_log = structlog.get_logger("orchestrator.store")


def announce(connection: Connection) -> None:
    """Tell the listening workers, once this transaction is committed, that jobs may be due.

    On PostgreSQL that is one NOTIFY a transaction; a SQLite file's own counter says it.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(CHANNEL, "")))


def listener(url: URL) -> Listen:
    """Return what listens at a database's URL; on PostgreSQL it must not lead to a pooler."""
    path = sqlite.path_of(url) if url.get_backend_name() == "sqlite" else None
    if path is not None:
        return partial(_watch_file, path)
    return partial(_hear_notifications, url)


async def _watch_file(path: Path, on_change: Callable[[], None]) -> None:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        seen = _commits_of_others(connection)
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            now = _commits_of_others(connection)
            if now != seen:
                seen = now
                on_change()


def _commits_of_others(connection: sqlite3.Connection) -> int | None:
    """SQLite's counter of commits by other connections; None while the file cannot be read."""
    try:
        return int(connection.execute("PRAGMA data_version").fetchone()[0])
    except sqlite3.DatabaseError:
        return None  # a claim meets the same trouble, and says so


async def _hear_notifications(url: URL, on_change: Callable[[], None]) -> None:
    """Listen on a connection of its own; after each gap, whatever was missed is looked for."""
    import psycopg  # only who uses PostgreSQL has it

    target = {**url.translate_connect_args(username="user", database="dbname"), **url.query}
    failures = 0
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                autocommit=True, **target, **postgres.connect_args(url)
            )
            async with connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                failures = 0
                on_change()
                while True:
                    async for _ in connection.notifies(timeout=ALIVE_EVERY_S, stop_after=1):
                        on_change()
                    await connection.execute("SELECT 1")
        except psycopg.Error as error:
            failures += 1
            _log.warning("store.not_listening", error=str(error).splitlines()[0], tries=failures)
        wait_s = min(RECONNECT_MOST_S, RECONNECT_FIRST_S * 2 ** min(failures, 10))
        await anyio.sleep(wait_s * (0.5 + 0.5 * random.random()))  # noqa: S311 - spreads reconnects
