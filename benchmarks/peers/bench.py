"""The benchmarks of a peer, the same for all: `python -m benchmarks.peers.NAME BENCHMARK ...`."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeAlias

import psycopg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from benchmarks.common.database import analyze, written
from benchmarks.common.life import client_of, live, prompt
from benchmarks.common.loops import add_loop, resolved, run
from benchmarks.common.measured import Measured, Stopwatch, delays
from benchmarks.peers.peer import TABLES, Opener, Peer
from orchestrator.recoup.answers import Accepted

_LIMIT_S = 1500.0
_LOOK_S = 0.01
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Given:
    """What one run is about."""

    opener: Opener
    url: str
    jobs: int
    concurrency: int
    base_url: str


class Tally:
    """Counts the handler's calls and remembers when each job was entered."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._all = asyncio.Event()
        self._entered: dict[int, asyncio.Future[float]] = {}
        self.calls: dict[int, int] = {}
        self._error: Exception | None = None

    async def hit(self, number: int) -> None:
        """Be the handler of a job that does nothing."""
        self.count(number)

    def count(self, number: int) -> None:
        """Count a call."""
        self.calls[number] = self.calls.get(number, 0) + 1
        if len(self.calls) >= self._jobs:
            self._all.set()
        waiting = self._entered.pop(number, None)
        if waiting is not None:
            waiting.set_result(time.perf_counter())

    def fail(self, error: Exception) -> None:
        """Note that a handler failed: the peer would only log it."""
        self._error = error
        self._all.set()

    async def reached(self) -> None:
        """Wait until all jobs were entered. Raises what a handler raised."""
        async with asyncio.timeout(_LIMIT_S):
            await self._all.wait()
        if self._error is not None:
            raise self._error

    def entering(self, number: int) -> asyncio.Future[float]:
        """The moment at which the job will be entered."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._entered[number] = future
        return future

    def check(self) -> None:
        """Raise AssertionError unless each job was executed exactly once."""
        assert set(self.calls) == set(range(self._jobs)), "jobs were lost"
        assert all(count == 1 for count in self.calls.values()), "jobs were executed twice"


async def queue(given: Given) -> Measured:
    """Jobs that do nothing, from the worker's start until the table says that all are done."""
    tally = Tally(given.jobs)
    async with given.opener(given.url, tally.hit, given.concurrency) as peer:
        measured = await _drained("queue", given, peer, tally)
    tally.check()
    return measured


async def lifecycle(given: Given) -> Measured:
    """Jobs that live a whole life at the stub, with one client, and save ids and message."""
    tally = Tally(given.jobs)
    async with client_of(given.base_url, given.concurrency) as client:

        async def whole_life(number: int) -> None:
            async def save_ids(accepted: Accepted) -> None:
                await peer.save_ids(number, accepted)

            try:
                life = await live(client, prompt(number), save_ids)
                await peer.save_message(number, life)
            except Exception as error:
                tally.fail(error)
                raise
            tally.count(number)

        async with given.opener(given.url, whole_life, given.concurrency) as peer:
            measured = await _drained("lifecycle", given, peer, tally)
    tally.check()
    for kept in ("runs", "messages"):
        await _until(given.url, f"SELECT count(*) FROM {kept}", given.jobs)  # noqa: S608  # ours
    return measured


async def _drained(name: str, given: Given, peer: Peer, tally: Tally) -> Measured:
    await peer.enqueue_many(range(given.jobs))
    await asyncio.to_thread(analyze, given.url)
    before = written(given.url)
    watch = Stopwatch()
    async with peer.working():
        await tally.reached()
        await _until(given.url, peer.finished, given.jobs)
        took = watch.read()
        wrote = written(given.url).since(before, given.jobs)
    return Measured(name, given.jobs, *took, wrote)


async def _until(url: str, query: str, count: int) -> None:
    """Wait until a count in the database is what it should be: recorded, not only executed."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_NotYetError),
            wait=wait_fixed(_LOOK_S),
            stop=stop_after_delay(_LIMIT_S),
        ):
            with attempt:
                found = await (await connection.execute(query.encode())).fetchone()
                if found != (count,):
                    raise _NotYetError(f"{query}: {found} instead of {count}")


class _NotYetError(Exception):
    """A count is not yet what it should be."""


async def enqueue_many(given: Given) -> Measured:
    """All jobs by the peer's own bulk call."""
    async with given.opener(given.url, _idle, given.concurrency) as peer:
        watch = Stopwatch()
        await peer.enqueue_many(range(given.jobs))
        return Measured("enqueue-many", given.jobs, *watch.read())


async def enqueue_one(given: Given) -> Measured:
    """Single calls, one after another, each durable before the next."""
    async with given.opener(given.url, _idle, given.concurrency) as peer:
        await peer.enqueue(-1)
        watch = Stopwatch()
        for number in range(given.jobs):
            await peer.enqueue(number)
        return Measured("enqueue-one", given.jobs, *watch.read())


async def enqueue_joined(given: Given) -> Measured:
    """Single calls, each in a transaction in which the caller also writes a row of its own."""
    async with (
        given.opener(given.url, _idle, given.concurrency) as peer,
        peer.joining() as enqueue,
    ):
        await enqueue(-1)
        watch = Stopwatch()
        for number in range(given.jobs):
            await enqueue(number)
        took = watch.read()
    await _until(given.url, "SELECT count(*) FROM orders WHERE number >= 0", given.jobs)
    return Measured("enqueue-joined", given.jobs, *took)


async def latency(given: Given) -> Measured:
    """Single jobs on an idle running worker: from the call to the handler, in one process."""
    tally = Tally(given.jobs + 1)
    taken = []
    async with given.opener(given.url, tally.hit, given.concurrency) as peer, peer.working():
        for number in range(given.jobs + 1):
            entering = tally.entering(number)
            began = time.perf_counter()
            await peer.enqueue(number)
            async with asyncio.timeout(_LIMIT_S):
                taken.append(await entering - began)
            if number == 0:
                watch = Stopwatch()
            await asyncio.sleep(_PAUSE_S)  # the worker is to be idle again
        cpu_s = watch.read()[1]
    tally.check()
    # The first waits for the worker's start.
    return delays("latency", taken[1:], cpu_s)


async def _idle(_number: int) -> None:
    raise AssertionError("no worker runs in this benchmark")


Benchmark: TypeAlias = Callable[[Given], Coroutine[Any, Any, Measured]]

BENCHMARKS: dict[str, Benchmark] = {
    "queue": queue,
    "lifecycle": lifecycle,
    "enqueue-many": enqueue_many,
    "enqueue-one": enqueue_one,
    "enqueue-joined": enqueue_joined,
    "latency": latency,
}


def main(package: str, opener: Opener) -> None:
    """Read the arguments, run one benchmark on an empty database, print its line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{package}")
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--url", required=True, help="an empty PostgreSQL database")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--base-url", default="", help="the stub, for lifecycle")
    add_loop(parser)
    given = parser.parse_args()
    with psycopg.connect(given.url, autocommit=True) as connection:
        connection.execute(TABLES)
    what = Given(opener, given.url, given.jobs, given.concurrency, given.base_url)
    measured = run(BENCHMARKS[given.benchmark](what), given.loop)
    told = {"peer": package, "version": metadata.version(package), "loop": resolved(given.loop)}
    measured.extras.update(told, concurrency=given.concurrency)
    print(measured.line(), flush=True)
