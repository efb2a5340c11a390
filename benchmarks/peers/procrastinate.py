"""procrastinate, on psycopg.

Written after its documentation: one `batch_defer_async`, one worker with the wanted concurrency and
notifications, a pool of our making that leaves out the check of each connection it lends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import procrastinate
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg_pool import AsyncConnectionPool

from benchmarks.common.life import Life
from benchmarks.peers import bench, peer
from benchmarks.peers.peer import Handler
from orchestrator.recoup.answers import Accepted


class OnProcrastinate:
    """procrastinate as a peer."""

    finished = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"

    def __init__(
        self,
        url: str,
        app: procrastinate.App,
        own: AsyncConnectionPool[AsyncConnection],
        handler: Handler,
        concurrency: int,
    ) -> None:
        self._app = app
        self._own = own
        self._url = url
        self._concurrency = concurrency

        @app.task(name="benchmark", queue="default")
        async def work(number: int, prompt: str) -> None:  # noqa: ARG001  # part of the payload
            await handler(number)

        self._task: Any = work

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        """Defer by one call."""
        await self._task.batch_defer_async(*(peer.payload(number) for number in numbers))

    async def enqueue(self, number: int) -> None:
        """Defer one job."""
        await self._task.defer_async(**peer.payload(number))

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[Handler]:
        """Defer on the caller's own connection."""
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            raw = AsyncRawCursor(connection)

            async def enqueue(number: int) -> None:
                async with connection.transaction():
                    await raw.execute(peer.SAVE_ORDER, (number, "an order"))
                    task = self._task.configure(connection=connection)
                    await task.defer_async(**peer.payload(number))

            yield enqueue

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker."""
        running = asyncio.create_task(
            self._app.run_worker_async(
                concurrency=self._concurrency, wait=True, install_signal_handlers=False
            )
        )
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def save_ids(self, number: int, accepted: Accepted) -> None:
        """Keep a run's ids."""
        async with self._own.connection() as connection:
            await connection.execute(peer.SAVE_IDS, peer.ids_row(number, accepted))

    async def save_message(self, number: int, life: Life) -> None:
        """Keep a run's message."""
        async with self._own.connection() as connection:
            await connection.execute(peer.SAVE_MESSAGE, peer.message_row(number, life))


def _unchecked(**options: Any) -> AsyncConnectionPool[AsyncConnection]:
    """A pool that lends its connections without asking the server first."""
    return AsyncConnectionPool(**{**options, "check": None})


@asynccontextmanager
async def opened(url: str, handler: Handler, concurrency: int) -> AsyncIterator[OnProcrastinate]:
    """Install its tables and open it."""
    connector = procrastinate.PsycopgConnector(
        conninfo=url, pool_factory=_unchecked, min_size=4, max_size=peer.POOL
    )
    app = procrastinate.App(connector=connector)
    own = AsyncConnectionPool(
        url,
        min_size=2,
        max_size=peer.POOL,
        open=False,
        kwargs={"autocommit": True, "cursor_factory": AsyncRawCursor},
    )
    async with app.open_async(), own:
        await app.schema_manager.apply_schema_async()
        yield OnProcrastinate(url, app, own, handler, concurrency)


if __name__ == "__main__":
    bench.main("procrastinate", opened)
