from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from orchestrator.store.engine import parse_url, sync_engine

from .desk import Desk


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    yield from open_desk(database_url)


@pytest.fixture
def sqlite_desk(sqlite_url: str) -> Iterator[Desk]:
    yield from open_desk(sqlite_url)


@pytest.fixture
def postgres_desk(postgres_url: str) -> Iterator[Desk]:
    yield from open_desk(postgres_url)


def open_desk(url: str) -> Iterator[Desk]:
    engine = sync_engine(parse_url(url))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

    yield Desk(engine)
    engine.dispose()
