"""What the nights of a session share: the process that forks workers, and empty databases."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from sqlalchemy import URL

from orchestrator.testing import DevServer

from .. import postgres
from .crew import CrewNight
from .forks import Zygote

AT_A_TIME = 8
"""Nights that go on side by side in one test: each mostly waits."""


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


class Rooms:
    """Empty, migrated databases for nights that go on side by side."""

    def __init__(self, folder: Path, migrated_file: Path, databases: list[URL]) -> None:
        self.folder = folder
        self._migrated_file = migrated_file
        self._free = list(databases)
        self._places = anyio.Semaphore(AT_A_TIME)

    @asynccontextmanager
    async def room(self, dialect: str, name: str) -> AsyncIterator[tuple[Path, str]]:
        """Wait for a place; gives a folder of its own and the URL of an empty database."""
        async with self._places:
            folder = self.folder / f"{dialect} {name}"
            folder.mkdir()
            if dialect == "sqlite":
                shutil.copy(self._migrated_file, folder / "jobs.db")
                yield folder, f"sqlite:///{folder / 'jobs.db'}"
                return
            database = self._free.pop()
            try:
                postgres.empty(database)
                yield folder, postgres.text_of(database)
            finally:
                self._free.append(database)


@pytest.fixture(scope="session")
def postgres_rooms(postgres_server: postgres.Server, postgres_template: str) -> Iterator[list[URL]]:
    with ExitStack() as made:
        yield [
            made.enter_context(postgres.database(postgres_server, postgres_template))
            for _ in range(AT_A_TIME)
        ]


@pytest.fixture
def files(tmp_path: Path, migrated_file: Path) -> Rooms:
    """Rooms of SQLite alone."""
    return Rooms(tmp_path, migrated_file, [])


@pytest.fixture
def rooms(tmp_path: Path, migrated_file: Path, postgres_rooms: list[URL]) -> Rooms:
    """Rooms of either dialect."""
    return Rooms(tmp_path, migrated_file, postgres_rooms)


@pytest.fixture
async def server() -> AsyncIterator[DevServer]:
    async with DevServer() as running:
        yield running


@pytest.fixture
def night(tmp_path: Path, server: DevServer, sqlite_url: str, zygote: Zygote) -> CrewNight:
    """A night that polls its runs, beside a server that a test sets faults on."""
    return CrewNight(tmp_path, server, sqlite_url, zygote)


@pytest.fixture(params=["poll", "stream"])
def either_night(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: DevServer,
    sqlite_url: str,
    zygote: Zygote,
) -> CrewNight:
    """The same, and one that streams its runs."""
    return CrewNight(tmp_path, server, sqlite_url, zygote, FOLLOW__MODE=request.param)
