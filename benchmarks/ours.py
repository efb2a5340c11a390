"""One benchmark of this project, in a process of its own: `python -m benchmarks.ours NAME ...`.

The counterpart of `benchmarks.peers.NAME`: the same benchmarks and arguments, and one JSON line.
The worker is the daemon's, on an empty database at `--url` (SQLite or PostgreSQL), with events,
marks, leases and fences as ever. `queue` puts an API in its place that answers at once, in this
process; `lifecycle` goes to the stub at `--base-url` with `follow.mode = "stream"`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

import structlog
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.common.database import analyze, plain
from benchmarks.common.life import prompt
from benchmarks.common.loops import add_loop, resolved, run
from benchmarks.common.measured import Measured, Stopwatch, delays
from orchestrator import Orchestrator
from orchestrator.clock import SystemClock
from orchestrator.config import Settings, fingerprint, load_settings
from orchestrator.log import configure
from orchestrator.recoup.answers import Accepted, NotSent, RunState, RunStatus, SessionChat
from orchestrator.recoup.client import RecoupClient
from orchestrator.remote import client_for
from orchestrator.store import migrations, sqlite
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.store import Store
from orchestrator.store.verbs import look
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.version import __version__
from orchestrator.worker.garbage import seldom_collected
from orchestrator.worker.process import identify
from orchestrator.worker.tools import Tools
from orchestrator.worker.worker import Worker

KEY = "recoup_sk_benchmark"
_PAUSE_S = 0.02
_IDLE_AGAIN_S = 0.3
"""Between two jobs: a worker on SQLite that has just written looks at its file less often."""
_LIMIT_S = 1500.0
_AT_ONCE = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Given:
    """What one run is about."""

    url: URL
    jobs: int
    concurrency: int
    base_url: str


@dataclass(slots=True)
class AtOnce:
    """An API in this process: each run is over when it has begun, and its message is there."""

    entered: Callable[[str], None] = lambda _prompt: None
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def start_run(
        self,
        body: dict[str, Any],
        *,
        mark: Callable[[], Coroutine[Any, Any, bool]],
        around: AbstractContextManager[object],
    ) -> Accepted | NotSent:
        """Accept, once the mark is made."""
        if not await mark():
            return NotSent("the mark said not to send", refused_by_mark=True)
        with around:
            self.entered(body["prompt"])
        name = f"{next(self._numbers):026d}"
        return Accepted(f"wrun_{name}", f"chat-{name}", f"session-{name}")

    async def run_status(self, run_id: str) -> RunState:
        """The run is over."""
        return RunState(run_id, RunStatus.COMPLETED)

    async def session_chat(self, session_id: str, chat_id: str) -> SessionChat:
        """The chat holds the message."""
        message = {
            "id": f"message-{chat_id}",
            "role": "assistant",
            "parts": [{"type": "step-start"}, {"type": "text", "text": "Done.", "state": "done"}],
            "metadata": {"lastStepFinishReason": "stop", "totalMessageCost": 0.001},
        }
        return SessionChat(chat_id, session_id, None, None, None, None, False, (message,))


def settings(given: Given, **follow: Any) -> Settings:
    """The defaults, but for the places at once, and where the API and the database are."""
    return load_settings(
        environ={},
        overrides={
            "api": {"base_url": given.base_url or _AT_ONCE},
            "database": {"url": given.url.render_as_string(hide_password=False)},
            "worker": {"concurrency": given.concurrency},
            "submit": {"concurrency": given.concurrency},
            "follow": follow,
        },
    )


@asynccontextmanager
async def worker(
    given: Given, client: Any, *, once: bool, **follow: Any
) -> AsyncIterator[tuple[Worker, Store]]:
    """Make a worker as the daemon does."""
    own = settings(given, **follow)
    identity = identify(__version__)
    async with Store.open(given.url, prepared=True) as store:
        tools = Tools(
            store=store,
            client=cast("RecoupClient", client),
            settings=own,
            clock=SystemClock(),
            who=Claimant(identity.worker_id, own.api.base_url, fingerprint(KEY)),
            log=structlog.get_logger("orchestrator.worker"),
        )
        with seldom_collected():
            yield Worker(tools=tools, identity=identity, once=once), store


class Commits:
    """Counts the transactions of a store that write."""

    def __init__(self, store: Store) -> None:
        self.number = 0
        event.listen(store._engine, "commit", self._count)  # noqa: SLF001 - no one else can tell

    def _count(self, connection: Connection) -> None:
        self.number += bool(connection.get_execution_options().get(sqlite.WRITE))


async def enqueued(given: Given) -> None:
    """Enqueue the jobs, and let the planner know of them."""
    async with Orchestrator(given.url.render_as_string(hide_password=False)) as orc:
        await orc.enqueue_many({"prompt": prompt(number)} for number in range(given.jobs))
    if given.url.get_backend_name() == "postgresql":
        analyze(plain(given.url))


def check(given: Given) -> None:
    """Raise AssertionError unless every job completed, in one attempt, with its events."""
    engine = sync_engine(given.url)
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT state, attempt, count(*) FROM jobs GROUP BY state, attempt")
        ).all()
        events = connection.execute(text("SELECT count(*) FROM job_events")).scalar_one()
        kept = connection.execute(text("SELECT count(*) FROM messages")).scalar_one()
    assert [tuple(row) for row in rows] == [("completed", 1, given.jobs)], rows
    assert (events, kept) == (5 * given.jobs, given.jobs)


async def _drained(name: str, given: Given, client: Any, **follow: Any) -> Measured:
    await enqueued(given)
    async with worker(given, client, once=True, **follow) as (working, store):
        commits = Commits(store)
        watch = Stopwatch()
        async with asyncio.timeout(_LIMIT_S):
            await working.run()
        took = watch.read()
    check(given)
    return Measured(name, given.jobs, *took, {"commits_per_job": commits.number / given.jobs})


async def queue(given: Given) -> Measured:
    """From claim to settled, with an API that answers at once."""
    return await _drained("queue", given, AtOnce(), mode="poll")


async def lifecycle(given: Given) -> Measured:
    """Submit, stream, status, collect, settle at the stub."""
    async with client_for(settings(given), {"RECOUP_API_KEY": KEY}) as client:
        return await _drained("lifecycle", given, client, mode="stream")


async def enqueue_many(given: Given) -> Measured:
    """All jobs in one call."""
    async with Orchestrator(given.url.render_as_string(hide_password=False)) as orc:
        watch = Stopwatch()
        await orc.enqueue_many({"prompt": prompt(number)} for number in range(given.jobs))
        return Measured("enqueue-many", given.jobs, *watch.read())


async def enqueue_one(given: Given) -> Measured:
    """Single calls, one after another, each durable before the next."""
    async with Orchestrator(given.url.render_as_string(hide_password=False)) as orc:
        await orc.enqueue(prompt(-1))
        watch = Stopwatch()
        for number in range(given.jobs):
            await orc.enqueue(prompt(number))
        return Measured("enqueue-one", given.jobs, *watch.read())


_ORDERS = "CREATE TABLE orders (number INTEGER)"
_ORDER = "INSERT INTO orders VALUES (:number)"


async def enqueue_joined(given: Given) -> Measured:
    """Single calls, each in a transaction in which the caller also writes a row of its own."""
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
    theirs = create_async_engine(given.url.set(drivername=drivers[given.url.get_backend_name()]))
    async with Orchestrator(given.url.render_as_string(hide_password=False)) as orc:
        try:
            async with theirs.begin() as connection:
                await connection.execute(text(_ORDERS))
            watch = Stopwatch()
            for number in range(given.jobs):
                async with theirs.begin() as connection:
                    await connection.execute(text(_ORDER), {"number": number})
                    await orc.enqueue(prompt(number), connection=connection)
            return Measured("enqueue-joined", given.jobs, *watch.read())
        finally:
            await theirs.dispose()


async def latency(given: Given) -> Measured:
    """Single jobs on an idle running worker: from the call to the first byte, in one process."""
    entering: dict[str, asyncio.Future[float]] = {}
    api = AtOnce(entered=lambda text_of_it: entering[text_of_it].set_result(time.perf_counter()))
    taken = []
    orc = Orchestrator(given.url.render_as_string(hide_password=False))
    async with orc, worker(given, api, once=False, mode="poll") as (working, store):
        running = asyncio.create_task(working.run())
        for number in range(given.jobs + 1):
            entering[prompt(number)] = asyncio.get_running_loop().create_future()
            began = time.perf_counter()
            job = await orc.enqueue(prompt(number))
            async with asyncio.timeout(_LIMIT_S):
                taken.append(await entering[prompt(number)] - began)
                while not (await store.read(look.load, job.id)).state.settled:  # noqa: ASYNC110 - a row
                    await asyncio.sleep(_PAUSE_S)
            if number == 0:
                watch = Stopwatch()
            await asyncio.sleep(_IDLE_AGAIN_S)
        cpu_s = watch.read()[1]
        working.drain()
        await running
    return delays("latency", taken[1:], cpu_s)


Benchmark: TypeAlias = Callable[[Given], Coroutine[Any, Any, Measured]]

BENCHMARKS: dict[str, Benchmark] = {
    "queue": queue,
    "lifecycle": lifecycle,
    "enqueue-many": enqueue_many,
    "enqueue-one": enqueue_one,
    "enqueue-joined": enqueue_joined,
    "latency": latency,
}


def main() -> None:
    """Read the arguments, run one benchmark on an empty database, print its line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ours", description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--url", required=True, help="an empty database, or a file to be made")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--base-url", default="", help="the stub, for lifecycle")
    add_loop(parser)
    given = parser.parse_args()
    configure("WARNING", "json")
    url = parse_url(given.url)
    migrations.upgrade(url)
    what = Given(url, given.jobs, given.concurrency, given.base_url)
    measured = run(partial(BENCHMARKS[given.benchmark], what)(), given.loop)
    told = {"database": url.get_backend_name(), "loop": resolved(given.loop)}
    measured.extras.update(told, concurrency=given.concurrency)
    print(measured.line(), flush=True)


if __name__ == "__main__":
    main()
