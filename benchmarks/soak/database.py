"""The database as the harness needs it: plain reads, and stopping the server."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

import anyio
import psycopg
from psycopg.rows import dict_row
from sqlalchemy import URL

from benchmarks.soak.journal import Deed, Journal


class Stoppable(Protocol):
    """A database server that the harness may stop."""

    def stop(self, mode: str = ...) -> None:
        """End it; `immediate` is a crash."""

    def start(self) -> None:
        """Start it again."""


def plain(url: URL) -> str:
    """The URL as the driver's own library takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


class Books:
    """Reads of the job tables on a connection of its own each time."""

    def __init__(self, url: URL) -> None:
        self._url = plain(url)

    async def ask(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]] | None:
        """Return the rows of one query; None while the database is away."""
        try:
            async with await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, connect_timeout=5, row_factory=dict_row
            ) as connection:
                cursor = await connection.execute(query.encode(), values)
                return await cursor.fetchall()
        except psycopg.OperationalError:
            return None


async def restarts(
    server: Stoppable, journal: Journal, chance: Random, every_s: float, dead_after_s: float
) -> None:
    """Stop the database and start it again at random, until cancelled; it is up at the end."""
    while True:
        await anyio.sleep(chance.expovariate(1 / every_s))
        mode = chance.choice(("fast", "immediate"))
        away_s = chance.uniform(0.2, 4.0)
        if chance.random() < 0.2:
            away_s = dead_after_s + chance.uniform(2.0, 6.0)
        with anyio.CancelScope(shield=True):
            act = journal.begin(Deed.NO_DATABASE, detail=f"{mode}, {away_s:.1f} s")
            await anyio.to_thread.run_sync(server.stop, mode)
            await anyio.sleep(away_s)
            await anyio.to_thread.run_sync(server.start)
            journal.end(act)
