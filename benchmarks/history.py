"""What settled jobs cost those that come after them: `python -m benchmarks.history`.

Databases with 0, 1 and 5 million settled jobs and the dead rows of many jobs just gone through,
and beside them a fresh one. Claims and enqueues go through all of them in turn, one after another,
on SQLite (`synchronous=FULL`) and on PostgreSQL (fsync on); the medians are compared with those of
the fresh database. PostgreSQL's autovacuum is off meanwhile, so that no dead row is cleared away.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, Connection

from benchmarks.common.database import durable_server
from benchmarks.common.history import churn, fill
from benchmarks.common.life import prompt
from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured, delays, quantile
from benchmarks.common.results import add_save, save, table
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs.claim import claim
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.crew import ensure_gate
from orchestrator.store.verbs.enqueue import enqueue_many

FRESH = "fresh"
_WHO = Claimant("bench", "https://api.example", "k1")
_QUEUES = ("default", "bulk", "nightly")
_WAITING = 1_000
_WARM = 10


@dataclass(slots=True)
class Place:
    """One database, and what the acts took on it: seconds of the wall, and of this process."""

    name: str
    store: Store
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def _enqueue(number: int, connection: Connection) -> None:
    enqueue_many(connection, [_row(each, uuid4().hex) for each in range(number)])


def _enqueue_in_order(number: int, connection: Connection) -> None:
    """With keys that go up, behind all those of before: they share pages of their index."""
    at = time.time_ns()
    enqueue_many(connection, [_row(each, f"up {at} {each:03}") for each in range(number)])


def _row(number: int, key: str) -> dict[str, Any]:
    return {
        "prompt": prompt(number),
        "queue": _QUEUES[number % len(_QUEUES)],
        "unique_key": key,
        "batch": "of today",
    }


def _claim(number: int, connection: Connection) -> None:
    taken = claim(connection, _WHO, number)
    assert len(taken) == number, f"{len(taken)} of {number} jobs were claimed"


ACTS: dict[str, Callable[[Connection], None]] = {
    "enqueue 1": partial(_enqueue, 1),
    "claim 1": partial(_claim, 1),
    "enqueue 100": partial(_enqueue, 100),
    "enqueue 100, keys that go up": partial(_enqueue_in_order, 100),
    "claim 8": partial(_claim, 8),
}


async def in_turn(places: Sequence[Place], rounds: int) -> None:
    """Do each act at each place once a round; every other round goes the other way about."""
    for place in places:
        await place.store.write_alone(partial(ensure_gate, who=_WHO))
        await place.store.write_alone(partial(_enqueue, _WAITING))
    for number in range(rounds + _WARM):
        for name, act in ACTS.items():
            for place in places if number % 2 == 0 else reversed(places):
                began, cpu = time.perf_counter(), time.process_time()
                await place.store.write_alone(act)
                took, worked = time.perf_counter() - began, time.process_time() - cpu
                place.wall.setdefault(name, []).append(took)
                if number >= _WARM:
                    place.cpu[name] = place.cpu.get(name, 0.0) + worked


def figures(where: str, places: Sequence[Place]) -> Iterator[Measured]:
    """Each act at each place; `times` compares its median with that of the first place."""
    for name in ACTS:
        usual = quantile(places[0].wall[name][_WARM:], 0.5)
        for place in places:
            taken = place.wall[name]
            counted = taken[_WARM:]
            yield delays(
                f"{name} on {where}, {place.name}",
                counted,
                place.cpu[name],
                first_ms=round(taken[0] * 1000, 3),
                times=round(quantile(counted, 0.5) / usual, 3),
            )


async def measured(where: str, urls: dict[str, URL], rounds: int) -> list[Measured]:
    """Open all databases and let the acts go round."""
    async with AsyncExitStack() as stack:
        places = [
            Place(name, await stack.enter_async_context(Store.open(url, prepared=True)))
            for name, url in urls.items()
        ]
        await in_turn(places, rounds)
        return list(figures(where, places))


def prepared(
    sizes: Sequence[int], dead: int, make: Callable[[str], URL], say: Callable[[str], None]
) -> dict[str, URL]:
    """Make a fresh database, and one of each size with the dead rows of `dead` jobs."""
    urls = {}
    for name, rows in ((FRESH, None), *((f"{rows:,} settled", rows) for rows in sizes)):
        urls[name] = url = make(name)
        migrations.upgrade(url)
        if rows is not None:
            began = time.perf_counter()
            fill(url, rows)
            churn(url, dead)
            say(f"{name}, {url.get_backend_name()}: {time.perf_counter() - began:.0f} s to make")
    return urls


def main() -> int:
    """Read the arguments, make the databases, measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1_000_000, 5_000_000])
    parser.add_argument("--dead", type=int, default=100_000, help="jobs gone through just before")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--on", nargs="+", choices=("sqlite", "postgresql"))
    parser.add_argument("--postgres", help="a durable server; its user may create databases")
    parser.add_argument("--folder", type=Path, help="for the SQLite files: 1 GB a million rows")
    add_save(parser)
    given = parser.parse_args()
    on = given.on or ["sqlite", "postgresql"]
    facts = machine()
    found: list[Measured] = []

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def run(where: str, make: Callable[[str], URL]) -> None:
        urls = prepared(given.rows, given.dead, make, say)
        found.extend(asyncio.run(measured(where, urls, given.rounds)))

    if "sqlite" in on:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            run("sqlite", lambda name: parse_url(f"sqlite:///{Path(folder) / name}.db"))
    if "postgresql" in on:
        with durable_server(given.postgres) as database, ExitStack() as stack:
            facts["postgresql"] = database.version
            run("postgresql", lambda _name: stack.enter_context(database.fresh()))
    results = {each.name: [each] for each in found}
    for each in found:
        print(each.line(), flush=True)
    print(table(results))
    save(given.save, "history", results, facts, rows=given.rows, dead=given.dead)
    return 0


if __name__ == "__main__":
    sys.exit(main())
