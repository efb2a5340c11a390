"""A COMMIT whose answer is lost is looked up; a proxy before a real server loses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream
from sqlalchemy import Connection, text

from orchestrator.errors import StoreUnavailable
from orchestrator.request import job_values
from orchestrator.store import transact
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs.enqueue import enqueue_many

from ..postgres import text_of

SIMPLE_COMMIT = b"COMMIT\x00"


class Proxy:
    """Passes bytes between clients and a server, and cuts a connection at its COMMIT when told.

    `cut` is "before" (the server never sees it), "after" (the answer is thrown away), or None.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self.cut: str | None = None
        self.cuts = 0
        self._deaf = False

    async def serve(self, client: ByteStream) -> None:
        async with (
            client,
            await anyio.connect_unix(self._server) as server,
            anyio.create_task_group() as both,
        ):
            both.start_soon(self._answers, server, client, both.cancel_scope)
            await self._requests(client, server)
            both.cancel_scope.cancel()

    async def _requests(self, client: ByteStream, server: ByteStream) -> None:
        try:
            async for data in client:
                at = self.cut if SIMPLE_COMMIT in data else None
                if at is not None:
                    self.cut = None
                    self.cuts += 1
                if at == "before":
                    return
                if at == "after":
                    self._deaf = True
                await server.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    async def _answers(
        self, server: ByteStream, client: ByteStream, scope: anyio.CancelScope
    ) -> None:
        try:
            async for data in server:
                if self._deaf:
                    self._deaf = False
                    break
                await client.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def through_a_proxy(url: str, folder: Path) -> AsyncIterator[tuple[Proxy, Store]]:
    parsed = parse_url(url)
    socket = Path(str(parsed.query["host"])) / ".s.PGSQL.5432"
    proxy = Proxy(socket)
    listener = await anyio.create_unix_listener(folder / ".s.PGSQL.5432")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        mine = parse_url(text_of(parsed.update_query_dict({"host": str(folder)})))
        async with Store.open(mine) as store:
            yield proxy, store
        tasks.cancel_scope.cancel()


def enqueue(connection: Connection) -> int:
    return enqueue_many(connection, [job_values({"prompt": "x"})])[0].id


def count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())


@pytest.fixture(autouse=True)
def look_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transact, "LOOK_EVERY_S", 0.02)


@pytest.fixture
def socket_folder(tmp_path: Path, postgres_url: str) -> Path:
    if "host=" not in postgres_url:
        pytest.skip("the proxy speaks to a server on a Unix socket")
    return tmp_path


async def test_a_commit_that_stands_is_found(postgres_url: str, socket_folder: Path) -> None:
    async with through_a_proxy(postgres_url, socket_folder) as (proxy, store):
        proxy.cut = "after"
        job_id = await store.write(enqueue)
        assert proxy.cuts == 1
        assert await store.read(count) == 1
        proxy.cut = "after"
        assert await store.write_alone(enqueue) == job_id + 1
        assert proxy.cuts == 2


async def test_a_commit_that_never_arrived_is_known_to_be_undone(
    postgres_url: str, socket_folder: Path
) -> None:
    async with through_a_proxy(postgres_url, socket_folder) as (proxy, store):
        proxy.cut = "before"
        with pytest.raises(StoreUnavailable, match="before the COMMIT"):
            await store.write(enqueue)
        assert proxy.cuts == 1
        assert await store.read(count) == 0
        await store.write(enqueue)
        assert await store.read(count) == 1


async def test_each_caller_of_a_batch_gets_its_answer(
    postgres_url: str, socket_folder: Path
) -> None:
    async with through_a_proxy(postgres_url, socket_folder) as (proxy, store):
        proxy.cut = "after"
        ids: list[int] = []

        async def one() -> None:
            ids.append(await store.write(enqueue))

        async with anyio.create_task_group() as callers:
            for _ in range(5):
                callers.start_soon(one)
        assert proxy.cuts == 1
        assert len(set(ids)) == 5 == await store.read(count)
