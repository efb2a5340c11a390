from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from orchestrator.store.engine import parse_url, sync_engine

from .desk import Desk


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    engine = sync_engine(parse_url(database_url))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")

    yield Desk(engine)
    engine.dispose()
