"""Engines for the plain URLs that users write; the drivers are our choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, RootTransaction, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, QueuePool

from orchestrator.errors import ConfigError, StoreDamaged, StoreUnavailable
from orchestrator.store import postgres, sqlite
from orchestrator.store.types import read_json, write_json

T = TypeVar("T")

_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}

_POSTGRES: dict[str, Any] = {
    "isolation_level": postgres.ISOLATION,
    "json_serializer": write_json,
    "json_deserializer": read_json,
}

POOL_SIZE = 8
POOL_TIMEOUT_S = 60.0
"""How long a caller waits for a connection of the pool."""

# Errors of a statement quote its parameters by default: prompts, which no log may hold; hence
# `hide_parameters` in each engine below.


def parse_url(url: str) -> URL:
    """Return the URL of a supported database.

    Raises ConfigError if it is none; the text never shows a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number is a bare ValueError
        raise ConfigError(
            "database.url: this is not a database URL; write sqlite:///jobs.db "
            "or postgresql://user@host/name"
        ) from None
    backend = parsed.get_backend_name()
    if backend not in _DRIVERS:
        raise ConfigError(
            f"database.url: {backend!r} is not supported; use sqlite:///… or postgresql://…"
        )
    if backend == "sqlite" and sqlite.path_of(parsed) is None:
        raise ConfigError(
            "database.url: a database in memory would be lost with the process; name a file, "
            "for example sqlite:///jobs.db"
        )
    if backend == "postgresql":
        postgres.require_driver()
    return parsed


def pooled_engine(
    url: URL, *, now: sqlite.Now = sqlite.system_now, size: int = POOL_SIZE, prepared: bool = False
) -> Engine:
    """Make the engine of a store, for use from several threads. Dispose it in a `finally`.

    `size` bounds its connections; `prepared` lets PostgreSQL keep prepared statements and settings
    of a connection, which must not be where a transaction pooler stands before it.
    """
    pool = {
        "poolclass": QueuePool,
        "pool_size": size,
        "max_overflow": 0,
        "pool_timeout": POOL_TIMEOUT_S,
        "pool_use_lifo": True,  # the one used last has the statements prepared
    }
    return _engine(url, pool, now=now, prepared=prepared)


def sync_engine(url: URL, *, now: sqlite.Now = sqlite.system_now, bounded: bool = True) -> Engine:
    """Make an engine for migrations and the sync twin; it keeps no connection open.

    Without `bounded`, PostgreSQL may take its time for a statement, as migrations do.
    """
    return _engine(url, {"poolclass": NullPool}, now=now, bounded=bounded)


def _engine(
    url: URL,
    pool: dict[str, Any],
    *,
    now: sqlite.Now,
    prepared: bool = False,
    bounded: bool = True,
) -> Engine:
    backend = url.get_backend_name()
    target = url.set(drivername=_DRIVERS[backend])
    if backend == "sqlite":
        # A connection serves one thread at a time, and not always the same one.
        own = {"check_same_thread": False}
        engine = create_engine(target, **pool, hide_parameters=True, connect_args=own)
        sqlite.prepare(engine, now)
        return engine
    engine = create_engine(
        target,
        **pool,
        **_POSTGRES,
        hide_parameters=True,
        connect_args=postgres.connect_args(url, prepared=prepared),
    )
    if bounded:
        postgres.prepare(engine, own_session=prepared)
    return engine


def begin(engine: Engine, *, writes: bool) -> tuple[Connection, RootTransaction]:
    """Begin a transaction on a connection of the pool; the caller closes the connection."""
    connection = engine.connect().execution_options(**{sqlite.WRITE: writes})
    try:
        return connection, connection.begin()
    except BaseException:
        connection.close()
        raise


def on_live_connection(run: Callable[[], T]) -> T:
    """Run a transaction, and once more if its connection turns out to be dead.

    A server ends idle connections, or was started again: the first statement on such a one tells.
    Nothing stands of a transaction whose connection was lost before its COMMIT; `run` must not
    raise what a lost COMMIT says.
    """
    try:
        return run()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    return run()


@contextmanager
def reaching() -> Iterator[None]:
    """Turn what a database out of reach raises in the block into StoreUnavailable.

    A statement that the database refuses raises as it did: asking again would not help.
    """
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if not out_of_reach(error):
            raise
        origin = error.orig if isinstance(error, DBAPIError) else None
        words = next(iter(str(origin or error).splitlines()), type(error).__name__)
        if sqlite.is_damage(getattr(origin, "sqlite_errorcode", 0)):
            raise StoreDamaged(f"the database refuses: {words}") from error
        raise StoreUnavailable(f"the database cannot be used now: {words}") from error


def out_of_reach(error: DBAPIError | PoolTimeout) -> bool:
    """True for an error of the database or of the way to it, not of a statement."""
    if isinstance(error, PoolTimeout) or error.connection_invalidated:
        return True
    lost = isinstance(error, OperationalError | InterfaceError)
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return sqlite.is_passing(code)
    state: str | None = getattr(error.orig, "sqlstate", None)
    return postgres.is_passing(state) if state is not None else lost
