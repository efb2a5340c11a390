"""Connections of the pool that died while nobody used them are no failure of what comes next."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text

from orchestrator.errors import OrchestratorError
from orchestrator.request import job_values
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.store import Store
from orchestrator.store.verbs import look
from orchestrator.store.verbs.enqueue import enqueue_many

CUT = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def cut_all(url: str) -> None:
    with sync_engine(parse_url(url)).begin() as connection:
        assert connection.execute(CUT).all()


@pytest.mark.parametrize("prepared", [False, True], ids=["behind a pooler", "own connections"])
async def test_a_connection_that_was_ended_while_idle_is_replaced(
    postgres_url: str, prepared: bool
) -> None:
    def enqueue(connection: Connection) -> None:
        enqueue_many(connection, [job_values({"prompt": "x"})])

    async with Store.open(parse_url(postgres_url), prepared=prepared) as store:
        await store.write(enqueue)
        cut_all(postgres_url)
        await store.write(enqueue)
        cut_all(postgres_url)
        await store.write_alone(enqueue)
        cut_all(postgres_url)
        assert await store.read(look.count, look.Filter()) == 3


async def test_a_connection_of_ones_own_keeps_its_bounds(postgres_url: str) -> None:
    def bounds(connection: Connection) -> tuple[str, ...]:
        names = ("statement_timeout", "lock_timeout", "synchronous_commit", "jit")
        return tuple(connection.execute(text(f"SHOW {name}")).scalar_one() for name in names)

    async with Store.open(parse_url(postgres_url), prepared=True) as store:
        first = await store.read(bounds)
        assert first == ("1min", "30s", "on", "off")
        assert await store.write(bounds) == first


async def test_a_look_without_a_transaction_leaves_the_next_write_one(postgres_url: str) -> None:
    """On a connection of one's own a look is bounded by the session; what writes is all or none."""

    def refused(connection: Connection) -> None:
        enqueue_many(connection, [job_values({"prompt": "x"})])
        raise OrchestratorError("refused after its first statement")

    async with Store.open(parse_url(postgres_url), prepared=True) as store:
        for write in (store.write, store.write_alone):
            assert await store.read(look.count, look.Filter()) == 0
            with pytest.raises(OrchestratorError, match="refused"):
                await write(refused)
        assert await store.read(look.count, look.Filter()) == 0
