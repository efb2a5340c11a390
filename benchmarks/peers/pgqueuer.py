"""PgQueuer, on asyncpg.

Written after its documentation: jobs enqueued by one call with lists, a worker with the largest
batch that its bound on concurrent tasks allows, all tables logged (its default), uvloop as its own
command line takes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg  # type: ignore[import-untyped]
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.common.life import Life
from benchmarks.peers import bench, peer
from benchmarks.peers.peer import Handler
from orchestrator.recoup.answers import Accepted

_ENTRYPOINT = "benchmark"
_STOP_S = 60.0


class OnPgQueuer:
    """PgQueuer as a peer."""

    finished = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"

    def __init__(
        self,
        pool: asyncpg.Pool,
        producer: asyncpg.Connection,
        consumer: asyncpg.Connection,
        handler: Handler,
        concurrency: int,
    ) -> None:
        self._pool = pool
        self._producer = producer
        self._consumer = consumer
        self._queries = Queries(AsyncpgDriver(producer))
        self._handler = handler
        self._concurrency = concurrency

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        """Enqueue by one call with lists."""
        count = len(numbers)
        await self._queries.enqueue(
            [_ENTRYPOINT] * count, [_payload(number) for number in numbers], [0] * count
        )

    async def enqueue(self, number: int) -> None:
        """Enqueue one job."""
        await self._queries.enqueue(_ENTRYPOINT, _payload(number))

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[Handler]:
        """Enqueue through a driver on the caller's own connection."""

        async def enqueue(number: int) -> None:
            async with self._producer.transaction():
                await self._producer.execute(peer.SAVE_ORDER, number, "an order")
                await self.enqueue(number)

        yield enqueue

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker on a connection of its own."""
        queue = PgQueuer(AsyncpgDriver(self._consumer))

        @queue.entrypoint(_ENTRYPOINT)
        async def work(job: Job) -> None:
            await self._handler(json.loads(job.payload or b"")["number"])

        running = asyncio.create_task(
            queue.run(
                dequeue_timeout=timedelta(seconds=1),
                # It wants room for two batches.
                batch_size=max(1, self._concurrency // 2),
                max_concurrent_tasks=self._concurrency,
            )
        )
        try:
            yield
        finally:
            queue.shutdown.set()
            async with asyncio.timeout(_STOP_S):
                await running

    async def save_ids(self, number: int, accepted: Accepted) -> None:
        """Keep a run's ids."""
        await self._pool.execute(peer.SAVE_IDS, *peer.ids_row(number, accepted))

    async def save_message(self, number: int, life: Life) -> None:
        """Keep a run's message."""
        await self._pool.execute(peer.SAVE_MESSAGE, *peer.message_row(number, life))


def _payload(number: int) -> bytes:
    return json.dumps(peer.payload(number)).encode()


@asynccontextmanager
async def opened(url: str, handler: Handler, concurrency: int) -> AsyncIterator[OnPgQueuer]:
    """Install its tables and open it."""
    async with (
        asyncpg.create_pool(url, min_size=2, max_size=peer.POOL + 2, reset=_as_it_is) as pool,
        pool.acquire() as producer,
        pool.acquire() as consumer,
    ):
        await Queries(AsyncpgDriver(producer)).install()
        yield OnPgQueuer(pool, producer, consumer, handler, concurrency)


async def _as_it_is(_connection: asyncpg.Connection) -> None:
    """Take a connection back without a round trip: nothing here changes its settings."""


if __name__ == "__main__":
    bench.main("pgqueuer", opened)
