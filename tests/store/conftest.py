from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from sqlalchemy import Engine, event

from orchestrator.store.engine import parse_url, pooled_engine

from .desk import Desk

CONNECTIONS = 32
"""As many as any test uses at once."""


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
    engine = engine_of(url)
    yield Desk(engine)
    engine.dispose()


@lru_cache(maxsize=2)
def engine_of(url: str) -> Engine:
    """The engine of a database, kept for those who use the same one in turn.

    To compile the statements anew, on connections that have seen nothing yet, took most of a test.
    """
    engine = pooled_engine(parse_url(url), size=CONNECTIONS)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

    return engine
