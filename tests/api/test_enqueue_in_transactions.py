"""`connection=`: the job lives and dies with the caller's own transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from orchestrator import DuplicateKey, NotFound, Orchestrator, SchemaMismatch, sync
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url


@pytest.fixture
def database_url(own_database_url: str) -> str:
    """The caller has a table of their own in the same database."""
    return own_database_url


@pytest.fixture
async def theirs(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The caller's own engine: nothing of ours is registered on it."""
    engine = create_async_engine(database_url.replace("sqlite:", "sqlite+aiosqlite:"))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (name TEXT)"))
    yield engine
    await engine.dispose()


@pytest.fixture
def theirs_blocking(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (name TEXT)"))
    yield engine
    engine.dispose()


@pytest.fixture
async def orc(database_url: str) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(database_url) as orc:
        yield orc


ORDER = text("INSERT INTO orders VALUES ('one')")


async def both(orc: Orchestrator) -> tuple[int, int]:
    """How many orders and how many jobs there are."""
    (row,) = await orc.sql(
        "SELECT (SELECT count(*) FROM orders) AS orders, (SELECT count(*) FROM jobs) AS jobs"
    )
    return row["orders"], row["jobs"]


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
async def test_async(
    orc: Orchestrator,
    theirs: AsyncEngine,
    kind: type[AsyncConnection | AsyncSession],
    commits: bool,
) -> None:
    caller = AsyncSession(theirs) if kind is AsyncSession else theirs.connect()
    async with caller as mine:
        await mine.execute(ORDER)
        handle = await orc.enqueue("x", connection=mine)
        assert handle.created
        assert await both(orc) == (0, 0), "nothing is seen before the commit"
        await (mine.commit() if commits else mine.rollback())
    assert await both(orc) == ((1, 1) if commits else (0, 0))
    if commits:
        assert (await handle.get()).prompt == "x"
    else:
        with pytest.raises(NotFound):
            await handle.get()


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("session", [True, False])
@pytest.mark.parametrize("twin", [True, False])
async def test_blocking(
    orc: Orchestrator,
    theirs_blocking: Engine,
    database_url: str,
    session: bool,
    commits: bool,
    twin: bool,
) -> None:
    with Session(theirs_blocking) if session else theirs_blocking.connect() as mine:
        mine.execute(ORDER)
        if twin:
            created = sync.Orchestrator(database_url).enqueue("x", connection=mine).created
        else:
            created = (await orc.enqueue("x", connection=mine)).created
        assert created
        _ = mine.commit() if commits else mine.rollback()
    assert await both(orc) == ((1, 1) if commits else (0, 0))


FIRST = {
    "one job": [{"prompt": "a"}],
    "two jobs": [{"prompt": "a"}, {"prompt": "b"}],
    "a key": [{"prompt": "a", "unique_key": "k"}],
}
"""What a caller may write before anything else in its transaction."""


@pytest.mark.parametrize("jobs", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("blocking", [True, False])
async def test_jobs_that_are_the_first_write_of_a_transaction(
    orc: Orchestrator,
    theirs: AsyncEngine,
    database_url: str,
    jobs: list[dict[str, str]],
    blocking: bool,
) -> None:
    """A driver may not have begun the transaction before; nothing may be committed by itself."""
    theirs_blocking = create_engine(database_url, poolclass=NullPool)
    if blocking:
        with theirs_blocking.connect() as mine:
            await orc.enqueue_many(jobs, connection=mine)
            assert await both(orc) == (0, 0), "nothing is seen before the commit"
            mine.rollback()
    else:
        async with theirs.connect() as mine_too:
            await orc.enqueue_many(jobs, connection=mine_too)
            assert await both(orc) == (0, 0), "nothing is seen before the commit"
            await mine_too.rollback()
    assert await both(orc) == (0, 0)
    with theirs_blocking.begin() as mine:
        handles = await orc.enqueue_many(jobs, connection=mine)
    assert await both(orc) == (0, len(jobs))
    assert [len(await handle.events()) for handle in handles] == [1] * len(jobs)


async def test_a_caller_in_autocommit_mode_gets_all_or_nothing(
    orc: Orchestrator, theirs_blocking: Engine
) -> None:
    with theirs_blocking.execution_options(isolation_level="AUTOCOMMIT").connect() as mine:
        handles = await orc.enqueue_many(FIRST["two jobs"], connection=mine)
        assert await both(orc) == (0, 2)
        await orc.enqueue("k", unique_key="k", connection=mine)
        with pytest.raises(DuplicateKey):
            await orc.enqueue("other", unique_key="k", connection=mine)
        assert await both(orc) == (0, 3)
    assert [len(await handle.events()) for handle in handles] == [1, 1]


async def test_an_event_comes_with_the_job(orc: Orchestrator, theirs: AsyncEngine) -> None:
    async with theirs.begin() as mine:
        handles = await orc.enqueue_many([{"prompt": "a"}, {"prompt": "b"}], connection=mine)
    for handle in handles:
        assert [event.event for event in await handle.events()] == ["job.enqueued"]


async def test_every_connection_of_an_engine_will_do(database_url: str) -> None:
    """What is known of the engine after its first call does not hold for a new connection."""
    engine = create_engine(database_url, poolclass=NullPool)
    async with Orchestrator(database_url) as orc:
        for _ in range(2):
            with engine.begin() as mine:
                handles = [await orc.enqueue("x", connection=mine) for _ in range(2)]
            assert [(await handle.get()).prompt for handle in handles] == ["x", "x"]


async def test_a_schema_that_was_refused_is_looked_at_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    engine = create_engine(url)
    with engine.begin() as mine, pytest.raises(SchemaMismatch):
        sync.Orchestrator(url).enqueue("x", connection=mine)
    migrations.upgrade(parse_url(url))
    with engine.begin() as mine:
        assert sync.Orchestrator(url).enqueue("x", connection=mine).created
    engine.dispose()


async def test_nothing_of_the_callers_is_committed_or_closed(
    orc: Orchestrator, theirs: AsyncEngine
) -> None:
    ended: list[str] = []
    for name in ("commit", "rollback"):
        event.listen(theirs.sync_engine, name, lambda *_, name=name: ended.append(name))
    async with theirs.connect() as mine, mine.begin():
        await orc.enqueue("x", connection=mine)
        assert ended == []
        assert mine.in_transaction()


async def test_a_schema_that_is_not_ours_is_refused(orc: Orchestrator, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/other.db")
    async with engine.connect() as mine:
        with pytest.raises(SchemaMismatch, match="no tables of the orchestrator"):
            await orc.enqueue("x", connection=mine)
    await engine.dispose()


async def test_a_newer_schema_is_refused(orc: Orchestrator, theirs: AsyncEngine) -> None:
    assert migrations.head() != "9999"
    async with theirs.connect() as mine:
        await mine.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SchemaMismatch, match="newer"):
            await orc.enqueue("x", connection=mine)
