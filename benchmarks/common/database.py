"""A PostgreSQL that keeps its promises: fsync and synchronous_commit on, a fresh database a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import URL

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "200"}
"""What a server of our own is given beyond its defaults: the least that anybody would."""

_DURABLE = ("fsync", "synchronous_commit", "full_page_writes")


class NotDurableError(Exception):
    """The server would measure well and lose data."""


@dataclass(frozen=True, slots=True)
class Database:
    """A server, checked to be durable."""

    server: Any
    version: str

    @contextmanager
    def fresh(self) -> Iterator[URL]:
        """Make an empty database, dropped after the block."""
        from tests import postgres

        with postgres.database(self.server) as url:
            yield url


@contextmanager
def durable_server(named: str | None = None) -> Iterator[Database]:
    """Give the server of the URL `named`, or one of our own with fsync on.

    Raises NotDurableError if a setting is off that a crash would make felt.
    """
    from tests import postgres  # the server of the test package, which carries the binaries

    if named is not None:
        yield _checked(postgres.Named(named))
        return
    with postgres.own_server() as server:
        with psycopg.connect(plain(server.url), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET fsync")
            for name, value in SETTINGS.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        server.stop()
        server.start()
        yield _checked(server)


def _checked(server: Any) -> Database:
    with psycopg.connect(plain(server.url), autocommit=True) as connection:
        for name in _DURABLE:
            if _shown(connection, name) != "on":
                raise NotDurableError(f"{name} is {_shown(connection, name)}: write {name} = on")
        return Database(server, _shown(connection, "server_version"))


def _shown(connection: psycopg.Connection[Any], name: str) -> str:
    row = connection.execute(f"SHOW {name}".encode()).fetchone()
    assert row is not None
    return str(row[0])


def plain(url: URL) -> str:
    """The URL as the drivers' own libraries take it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@dataclass(frozen=True, slots=True)
class Written:
    """How much the whole server had written at one moment."""

    transactions: int
    wal_bytes: int

    def since(self, before: Written, jobs: int) -> dict[str, float]:
        """What each job wrote since `before`: transactions that changed something, and log."""
        return {
            "commits_per_job": round((self.transactions - before.transactions) / jobs, 3),
            "wal_bytes_per_job": round((self.wal_bytes - before.wal_bytes) / jobs),
        }


_WRITTEN = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
"""


def written(url: str) -> Written:
    """Ask how much was written so far.

    The next transaction id counts only transactions that wrote, and is exact at once, where the
    server's own statistics lag by seconds.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(_WRITTEN).fetchone()
    assert row is not None
    return Written(*row)


def analyze(url: str) -> None:
    """Give the planner statistics of what was just enqueued, as autovacuum would in time."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
