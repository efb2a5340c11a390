"""What tests of every folder share: a migrated database of their own, on each dialect."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import URL

from orchestrator.store import migrations
from orchestrator.store.engine import parse_url

from . import postgres


def pytest_collection_finish() -> None:
    """Let the collector of cycles pass over the tests themselves, which live to the end."""
    gc.freeze()


@pytest.fixture(autouse=True)
def plain_tracebacks() -> None:
    """Let a logged exception be shown as the program shows it.

    By default its locals are laid out as well, which keeps an event loop busy for seconds.
    """
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, migrated once and copied for each test."""
    path = tmp_path_factory.mktemp("migrated") / "jobs.db"
    migrations.upgrade(parse_url(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL that all tests of this process share."""
    with postgres.any_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: postgres.Server) -> Iterator[str]:
    """The name of an empty database, migrated once and copied for each test."""
    with postgres.migrated(postgres_server) as name:
        yield name


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    """The URL of a migrated, empty SQLite file."""
    path = tmp_path / "jobs.db"
    shutil.copy(migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def shared_database(postgres_server: postgres.Server, postgres_template: str) -> Iterator[URL]:
    """The one database that the tests of this process use in turn."""
    with postgres.database(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture
def postgres_url(shared_database: URL) -> str:
    """The URL of a migrated, empty PostgreSQL database; the schema must stay as it is."""
    postgres.empty(shared_database)
    return postgres.text_of(shared_database)


@pytest.fixture
def own_postgres_url(postgres_server: postgres.Server, postgres_template: str) -> Iterator[str]:
    """The URL of a PostgreSQL database that no other test uses: its schema may be changed."""
    with postgres.database(postgres_server, postgres_template) as url:
        yield postgres.text_of(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty database; what takes it must hold on every dialect."""
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def own_database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated, empty database whose schema the test may change."""
    name = {"sqlite": "sqlite_url", "postgresql": "own_postgres_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url
