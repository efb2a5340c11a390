"""Wake-ups: a worker that listens hears of jobs from other connections at once."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, text

from orchestrator.request import job_values
from orchestrator.store import wake
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import people
from orchestrator.store.verbs.enqueue import enqueue_many

BOUND_S = 10.0


class Ear:
    """Counts what it hears."""

    def __init__(self) -> None:
        self.heard = 0
        self._again = anyio.Event()

    def __call__(self) -> None:
        self.heard += 1
        self._again.set()

    async def hears(self, after: int) -> None:
        with anyio.fail_after(BOUND_S):
            while self.heard <= after:
                self._again = anyio.Event()
                await self._again.wait()


def enqueue(connection: Connection) -> None:
    enqueue_many(connection, [job_values({"prompt": "x"})])


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[Store, Ear]]:
    ear = Ear()
    async with Store.open(parse_url(url)) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.listen, ear)
        if url.startswith("postgresql"):
            await ear.hears(after=0)  # a connection that was just made looks for what it missed
        else:
            await anyio.wait_all_tasks_blocked()
        yield store, ear
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(enqueue, id="enqueue"),
        pytest.param(lambda connection: people.resume(connection, "default"), id="resume"),
        pytest.param(lambda connection: people.limit_queue(connection, "q", 3), id="limit"),
    ],
)
async def test_another_connection_wakes_the_listener(
    database_url: str, act: Callable[[Connection], Any]
) -> None:
    await hears_of(act, database_url)


async def hears_of(act: Callable[[Connection], Any], url: str) -> None:
    async with listening(url) as (_, ear), Store.open(parse_url(url)) as other:
        before = ear.heard
        await other.write(act)
        await ear.hears(after=before)


async def test_a_file_is_looked_at_where_the_system_tells_nothing(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncinotify", None)
    await hears_of(enqueue, sqlite_url)


async def test_a_file_that_changes_without_a_word_is_looked_at_all_the_same(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        """Never tells of anything, as where the file is shared between virtual machines."""

        def __enter__(self) -> Silent:
            return self

        def __exit__(self, *error: object) -> None: ...

        def add_watch(self, *what: object) -> None: ...

        async def get(self) -> None:
            await anyio.sleep_forever()

    monkeypatch.setattr("asyncinotify.Inotify", Silent)
    await hears_of(enqueue, sqlite_url)


async def test_a_transaction_that_is_rolled_back_wakes_nobody(postgres_url: str) -> None:
    async with listening(postgres_url) as (store, ear):
        before = ear.heard

        def fail(connection: Connection) -> None:
            enqueue(connection)
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await store.write(fail)
        await store.write(enqueue)
        await ear.hears(after=before)
        assert ear.heard == before + 1


async def test_a_bulk_of_jobs_is_one_notification(postgres_url: str) -> None:
    async with listening(postgres_url) as (store, ear):
        before = ear.heard
        rows = [job_values({"prompt": "x"})] * 50

        def twice(connection: Connection) -> None:
            enqueue_many(connection, rows)
            enqueue_many(connection, rows)

        await store.write(twice)
        await ear.hears(after=before)
        assert ear.heard == before + 1


async def test_a_listener_that_was_cut_off_listens_again_and_looks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake, "RECONNECT_FIRST_S", 0.05)
    async with listening(postgres_url) as (store, ear):
        before = ear.heard
        cut = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        await store.write(lambda connection: connection.execute(cut).all())
        await ear.hears(after=before)  # it looks for what it missed
        again = ear.heard
        await store.write(enqueue)
        await ear.hears(after=again)
