"""Wake-ups: how a worker hears that jobs may have become due, beside polling.

PostgreSQL has NOTIFY; in a SQLite file, a counter tells that somebody else has committed.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio
import structlog
from sqlalchemy import URL, Connection, func, select

from orchestrator.store import postgres, sqlite

if TYPE_CHECKING:
    from psycopg import AsyncConnection

Listen: TypeAlias = "Callable[[Callable[[], None]], Awaitable[None]]"

CHANNEL = "orchestrator_jobs"

LOOK_EVERY_S = 0.15
"""How often at most a SQLite file that is written to is asked whether somebody has committed."""

LOOK_FIRST_S, LOOK_MOST_S = 0.0005, 1.0
"""How soon after a write to its log a SQLite file is asked, and how rarely without one: a file
that is shared between virtual machines changes without a word."""

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
    """Look at the file's counter whenever its log was written to, and now and then in any case.

    The log is written to before a commit is whole, so a look may come too soon: after one that
    finds nothing, the next waits twice as long.
    """
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        seen = _commits_of_others(connection)
        with _writes_to(Path(f"{path}-wal")) as written:
            wait_s = LOOK_FIRST_S
            while True:
                told = await written(wait_s)
                wait_s = LOOK_FIRST_S if told else min(2 * wait_s, LOOK_MOST_S)
                now = _commits_of_others(connection)
                if now != seen:
                    seen = now
                    on_change()
                    await anyio.sleep(LOOK_EVERY_S)
                elif told:
                    await anyio.sleep(LOOK_FIRST_S)  # a long transaction tells of each of its pages


@contextmanager
def _writes_to(log: Path) -> Iterator[Callable[[float], Awaitable[bool]]]:
    """Give what waits for a write to a file, for some seconds, and tells whether there was one.

    Where the system does not tell of writes, it waits `LOOK_EVERY_S` and knows of none.
    """
    with ExitStack() as watching:
        try:
            import asyncinotify  # there is one on Linux only

            inotify = watching.enter_context(asyncinotify.Inotify())
            inotify.add_watch(log, asyncinotify.Mask.MODIFY)
        except (ImportError, OSError) as error:
            _log.debug("store.looks_regularly", every_s=LOOK_EVERY_S, reason=str(error))
            yield _unheard
            return

        async def written(seconds: float) -> bool:
            with anyio.move_on_after(seconds):
                await inotify.get()
                return True
            return False

        yield written


async def _unheard(_seconds: float) -> bool:
    await anyio.sleep(LOOK_EVERY_S)
    return False


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
            try:
                await connection.execute(f"LISTEN {CHANNEL}")
                failures = 0
                on_change()
                await _pass_on(connection, on_change)
            finally:
                await connection.close()  # its own block would wait for a rollback first
        except psycopg.Error as error:
            failures += 1
            _log.warning("store.not_listening", error=str(error).splitlines()[0], tries=failures)
        wait_s = min(RECONNECT_MOST_S, RECONNECT_FIRST_S * 2 ** min(failures, 10))
        await anyio.sleep(wait_s * (0.5 + 0.5 * random.random()))  # noqa: S311 - spreads reconnects


async def _pass_on(connection: AsyncConnection, on_change: Callable[[], None]) -> None:
    """Pass on what a connection hears, until it is lost or this is cancelled."""
    while True:
        if [heard async for heard in connection.notifies(timeout=0)]:
            on_change()
        # The driver's own wait would look ten times a second.
        with anyio.move_on_after(ALIVE_EVERY_S) as patience:
            await anyio.wait_readable(connection.fileno())
        if patience.cancelled_caught:
            await connection.execute("SELECT 1")
