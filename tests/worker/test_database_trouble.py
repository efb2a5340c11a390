"""The database is there and cannot be used: its connections are taken, its file refuses writes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager

import anyio
import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.store import engine, sqlite

from .harness import Bench, eventually

LONGER_THAN_A_WRITER_WAITS_S = 1.0
LIVE = '[provision=0.3 first=0.3 text="Done {0}."]'


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute's wait for a connection, and half a minute's for a lock, are a moment here."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.2)


@asynccontextmanager
async def no_connection_left(bench: Bench) -> AsyncIterator[None]:
    """Take all connections of the pool for the length of the block."""
    with ExitStack() as taken:

        async def another() -> bool:
            with contextlib.suppress(PoolTimeout):
                taken.enter_context(bench.store._engine.connect())
                return True
            return False

        for _ in range(engine.POOL_SIZE):
            await eventually(another, lambda: "a free connection")
        yield


@asynccontextmanager
async def only_reads(bench: Bench) -> AsyncIterator[None]:
    """Let SQLite refuse each write as it does where the file may only be read."""
    only = [True]

    def tell(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if only[0] else 'OFF'}")

    event.listen(bench.store._engine, "begin", tell)
    yield
    only[0] = False


@asynccontextmanager
async def locked_by_another(bench: Bench) -> AsyncIterator[None]:
    """Hold the lock that writers need, from a program that knows nothing of us."""
    with contextlib.closing(sqlite3.connect(bench.url.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()


Trouble = Callable[[Bench], AbstractAsyncContextManager[None]]


async def live_through(bench: Bench, trouble: Trouble) -> None:
    """Let answers come, and runs end, while the trouble lasts; then all of it must be known."""
    ids = await bench.enqueue(*(LIVE.format(number) for number in range(4)))

    async def sent() -> bool:
        return bench.all_posts() == 4

    async def answered_and_over() -> bool:
        there = list(bench.server.runs)
        return len(there) == 4 and all(run.over for run in there)

    async with bench.working():
        await eventually(sent, lambda: "4 POSTs")
        async with trouble(bench):
            await eventually(answered_and_over, lambda: "4 runs that are over")
            await anyio.sleep(LONGER_THAN_A_WRITER_WAITS_S)
        for number, job_id in enumerate(ids):
            await bench.until_settled(job_id)
            await bench.assert_completed(job_id, f"Done {number}.")
    assert bench.all_posts() == 4
    assert await bench.sql("SELECT id FROM job_events WHERE event = 'run.adopted'") == []


async def test_a_pool_that_is_used_up_is_waited_for(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    await live_through(bench, no_connection_left)
    assert "QueuePool limit" in capsys.readouterr().out


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (only_reads, "attempt to write a readonly database"),
        (locked_by_another, "database is locked"),
    ],
    ids=["only reads", "locked for longer than a writer waits"],
)
async def test_a_file_that_cannot_be_written_for_a_while(
    bench: Bench, capsys: pytest.CaptureFixture[str], trouble: Trouble, words: str
) -> None:
    await live_through(bench, trouble)
    assert words in capsys.readouterr().out
