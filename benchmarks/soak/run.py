"""One soak from its first job to its report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import anyio
from sqlalchemy import URL

from benchmarks.soak import weather
from benchmarks.soak.crew import Crew
from benchmarks.soak.database import Books, Stoppable, plain, restarts
from benchmarks.soak.enqueuer import enqueue
from benchmarks.soak.evidence import gather
from benchmarks.soak.journal import Deed, Journal
from benchmarks.soak.plan import DEAD_AFTER_S, LIMITS, WEIGHTS, Plan, environment
from benchmarks.soak.remote import Remote, dev_server
from benchmarks.soak.report import Report, judge
from benchmarks.soak.watch import Watch
from orchestrator import Orchestrator
from orchestrator.errors import NotAllowed, StoreUnavailable
from orchestrator.store import migrations

Strike: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

SAY_EVERY_S = 10.0
REVOKED_S = (6.0, 15.0)

_SOME = """SELECT id FROM jobs WHERE state IN ('queued', 'submitting', 'running')
 AND cancel_requested_at IS NULL ORDER BY random() LIMIT 2"""


@dataclass(slots=True, kw_only=True)
class Soak:
    """A soak on one database. `server` is None where it is not ours to stop."""

    plan: Plan
    url: URL
    server: Stoppable | None
    folder: Path
    journal: Journal = field(default_factory=Journal)
    enqueued: dict[int, int] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    _all_enqueued: bool = False

    async def run(self) -> Report:
        """Run it and judge it. Raises RuntimeError if the database holds jobs already."""
        await anyio.to_thread.run_sync(migrations.upgrade, self.url)
        books = Books(self.url)
        if await books.ask("SELECT 1 FROM jobs LIMIT 1"):
            raise RuntimeError("the database holds jobs already; a soak needs an empty one")
        watch = Watch(books)
        ledger = self.folder / "server.jsonl"
        database = plain(self.url)
        began = time.monotonic()
        async with dev_server(ledger, self.plan.seed) as remote:
            crew = Crew(
                folder=self.folder,
                journal=self.journal,
                environ=lambda place: environment(remote.url, database, place),
                size=self.plan.workers,
                chance=self._chance("crew"),
            )
            await weather.switch_on(remote, faults=self.plan.faults)
            await self._lay_out(database)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                tasks.start_soon(self._say, watch, began)
                async with anyio.create_task_group() as working:
                    working.start_soon(crew.run)
                    storm_s = await self._storm(remote, crew, watch)
                    await self._calm(remote, watch)
                    seconds = time.monotonic() - began
                    crew.send_home()
                tasks.cancel_scope.cancel()
        evidence = await gather(
            plan=self.plan,
            books=books,
            ledger=ledger,
            folder=self.folder,
            enqueued=self.enqueued,
            asked=frozenset(self.asked),
            journal=self.journal,
            watch=watch,
        )
        return judge(evidence, seconds, storm_s)

    def _chance(self, name: str) -> Random:
        return Random(f"{self.plan.seed}/{name}")  # noqa: S311 - a repeatable storm, no secret

    # --- the jobs -----------------------------------------------------------------------------

    @property
    def _first_part(self) -> int:
        return self.plan.jobs - round(self.plan.jobs * self.plan.later)

    async def _lay_out(self, database: str) -> None:
        async with Orchestrator(database) as orc:
            for queue, number in LIMITS.items():
                await orc.limit_queue(queue, number)
            for queue, weight in WEIGHTS.items():
                await orc.weigh_queue(queue, weight)
        await enqueue(
            database,
            seed=self.plan.seed,
            numbers=range(self._first_part),
            rate=None,
            recipes=self.plan.recipes,
            on_enqueued=self.enqueued.__setitem__,
        )

    async def _enqueue_the_rest(self) -> None:
        """Let a process of its own add the other jobs while the workers run."""
        ledger = self.folder / "enqueued.jsonl"
        ledger.touch()
        first = self._first_part
        options = {
            "database": plain(self.url),
            "seed": self.plan.seed,
            "first": first,
            "count": self.plan.jobs - first,
            "rate": self.plan.enqueue_rate,
            "ledger": ledger,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        if self.plan.recipes:
            arguments += ["--recipes", *self.plan.recipes]
        command = [sys.executable, "-m", "benchmarks.soak.enqueuer", *arguments]
        await anyio.run_process(command, stdout=None, stderr=None)
        self.enqueued.update(_numbers_and_ids(ledger))
        self._all_enqueued = True

    # --- the storm and the calm ---------------------------------------------------------------

    async def _storm(self, remote: Remote, crew: Crew, watch: Watch) -> float:
        """Let everything happen at once until most jobs are at rest; return the seconds."""
        plan, began = self.plan, time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._enqueue_the_rest)
            strikes = self._strikes(remote, crew, watch)
            async with anyio.create_task_group() as storm:
                for strike in strikes:
                    storm.start_soon(strike)
                with anyio.move_on_after(plan.storm_s):
                    await _until(
                        lambda: self._all_enqueued and watch.at_rest >= plan.calm_at * plan.jobs
                    )
                storm.cancel_scope.cancel()
        return time.monotonic() - began

    def _strikes(self, remote: Remote, crew: Crew, watch: Watch) -> list[Strike]:
        plan, journal = self.plan, self.journal
        strikes: list[Strike] = []
        if plan.kill_every_s:
            strikes.append(partial(crew.torment, plan.kill_every_s, DEAD_AFTER_S))
        if plan.restart_every_s and self.server is not None:
            chance = self._chance("database")
            every = plan.restart_every_s
            strikes.append(partial(restarts, self.server, journal, chance, every, DEAD_AFTER_S))
        if plan.faults and plan.episode_every_s:
            chance = self._chance("weather")
            strikes.append(partial(weather.episodes, remote, journal, chance, plan.episode_every_s))
        if plan.cancel_every_s:
            strikes.append(partial(self._cancel_some, watch.books))
        strikes += [partial(self._revoke, remote, watch, share) for share in plan.revoke_at]
        return strikes

    async def _revoke(self, remote: Remote, watch: Watch, share: float) -> None:
        """Revoke the key once so many jobs are at rest, and give it back."""
        await _until(lambda: watch.at_rest >= share * self.plan.jobs)
        act = self.journal.begin(Deed.NO_KEY)
        try:
            await remote.revoke()
            await anyio.sleep(self._chance(f"key {share}").uniform(*REVOKED_S))
        finally:
            with anyio.CancelScope(shield=True):
                await remote.allow()
            self.journal.end(act)

    async def _cancel_some(self, books: Books) -> None:
        """Call jobs off in the middle, as a person would."""
        async with Orchestrator(plain(self.url)) as orc:
            while True:
                await anyio.sleep(self.plan.cancel_every_s)
                for row in await books.ask(_SOME) or ():
                    self.asked.add(row["id"])
                    try:
                        await orc.cancel(row["id"])
                    except (NotAllowed, StoreUnavailable) as error:
                        _say(f"job {row['id']} not called off: {error}")

    async def _calm(self, remote: Remote, watch: Watch) -> None:
        """Mend everything and let what is left come to rest."""
        _say("calm")
        await remote.clear()
        await remote.add(**weather.STUCK)
        with anyio.move_on_after(self.plan.calm_s):
            await _until(lambda: watch.at_rest >= self.plan.jobs)
        await watch.look()

    async def _say(self, watch: Watch, began: float) -> None:
        while True:
            await anyio.sleep(SAY_EVERY_S)
            states = ", ".join(f"{number} {state}" for state, number in watch.states.items())
            _say(f"{time.monotonic() - began:5.0f} s: {states}")


async def _until(true: Callable[[], bool]) -> None:
    """Wait for a condition that other tasks and processes make true; the caller bounds it."""
    while not true():  # noqa: ASYNC110 - what is waited for is read from a database
        await anyio.sleep(0.2)


def _numbers_and_ids(ledger: Path) -> Iterator[tuple[int, int]]:
    for line in ledger.read_text("utf-8").splitlines():
        number, job_id = json.loads(line)
        yield number, job_id


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


@contextmanager
def folder_of(path: Path | None) -> Iterator[Path]:
    """Give the folder for logs: the named one, which is kept, or one that goes away."""
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path.resolve()
        return
    with TemporaryDirectory(prefix="soak-") as name:
        yield Path(name)
