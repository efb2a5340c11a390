"""What only SQLite needs: pragmas, the way a transaction begins, the clock function."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from tenacity import Retrying, retry_if_exception, stop_after_delay
from tenacity.wait import wait_random

from orchestrator.errors import ConfigError

WRITE = "orchestrator_write"
"""Execution option: this connection's transactions write, so they begin IMMEDIATE."""

BUSY_TIMEOUT_S = 30.0
"""How long a statement waits for another program's lock on the file."""

Now = Callable[[], datetime]
"""An aware clock; the real one is `datetime.now(UTC)`."""


def path_of(url: URL) -> Path | None:
    """The file that a SQLite URL names, or None for a database in memory."""
    name = url.database
    return None if not name or name == ":memory:" else Path(name)


def system_now() -> datetime:
    """The machine's clock, in UTC."""
    return datetime.now(UTC)


def register_clock(dbapi_connection: Any, now: Now = system_now) -> None:
    """Give a connection the SQL function that our statements ask for the time."""

    def orchestrator_now(offset_s: float) -> str:
        return (now() + timedelta(seconds=offset_s)).strftime("%Y-%m-%d %H:%M:%S.%f")

    dbapi_connection.create_function("orchestrator_now", 1, orchestrator_now)


def _decoded(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")


def _switching() -> Retrying:
    """Wait as a statement would: that a file is locked, the switch to its log says at once."""
    return Retrying(
        retry=retry_if_exception(_is_locked),
        wait=wait_random(0.005, 0.05),
        stop=stop_after_delay(BUSY_TIMEOUT_S),
        reraise=True,
    )


def _is_locked(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def prepare(engine: Engine, now: Now) -> None:
    """Register what each new connection and each transaction of `engine` needs.

    `engine` is a sync engine, or the sync side of an async one.
    """

    @event.listens_for(engine, "connect")
    def on_connect(dbapi_connection: Any, _record: Any) -> None:
        # The driver's own transactions begin deferred and late; ours begin where SQLAlchemy says.
        dbapi_connection.isolation_level = None
        # Any program may have written bytes that are no UTF-8: a row must still be read, so that
        # a worker can reject it, instead of failing every query that meets it.
        driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        driver.text_factory = _decoded
        register_clock(dbapi_connection, now)
        cursor = dbapi_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        _switching()(cursor.execute, "PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later gets SQLITE_BUSY at once, timeout or not.
        immediate = connection.get_execution_options().get(WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN DEFERRED")


OLDEST = (3, 37, 0)
"""The first SQLite with STRICT tables."""


def check_place(path: Path) -> None:
    """Refuse a file that cannot be made: its folder must exist, and SQLite be recent enough.

    Raises ConfigError with what is wrong and the remedy.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise ConfigError(
            f"database.url: this Python comes with SQLite {sqlite3.sqlite_version}; "
            f"{'.'.join(map(str, OLDEST))} or later is needed"
        )
    parent = path.parent
    if not parent.is_dir():
        raise ConfigError(
            f"database.url: {str(path)!r}: the folder {str(parent)!r} does not exist; "
            "create it or name another file"
        )


_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)


def is_passing(code: int) -> bool:
    """True for an error of the file, not of the statement, by SQLite's (extended) result code.

    What a worker then knows it keeps, and tries to write again: a person may free the disk, set
    the rights, or put the file back.
    """
    return code & 0xFF in _PASSING


def is_damage(code: int) -> bool:
    """True for an error that says that the file is no database, or a broken one."""
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
