"""A worker, its database and the dev server, together in the process of a test."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio
import structlog
from sqlalchemy import Connection, text

from orchestrator import Orchestrator
from orchestrator.clock import SystemClock
from orchestrator.config import Settings, fingerprint, load_settings
from orchestrator.devserver.runs import Run
from orchestrator.job import Job, Message
from orchestrator.remote import client_for
from orchestrator.states import State
from orchestrator.store.store import Store
from orchestrator.store.verbs import look
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.testing import DevServer
from orchestrator.version import __version__
from orchestrator.worker.daemon import exit_code
from orchestrator.worker.points import Reach, pass_by
from orchestrator.worker.process import identify
from orchestrator.worker.tools import Tools
from orchestrator.worker.worker import Worker

T = TypeVar("T")

BOUND_S = 20.0
"""How long a test waits for anything."""

LOOK_S = 0.02
"""How often a test looks whether what it waits for has come."""

QUICK: Mapping[str, Mapping[str, Any]] = {
    "worker": {
        "poll_interval": 0.05,
        "heartbeat": 0.5,
        "dead_after": 20.0,
        "drain_timeout": 2.0,
    },
    "submit": {"timeout": 10.0},
    "follow": {"poll_min": 0.05, "poll_max": 0.3, "checkpoint_every": 0.1},
}
"""Settings under which nothing waits longer than it must."""


class Bench:
    """What a test works with: the server, the database, and workers as it wants them.

    `base_url` is where its workers send; a test may point it elsewhere. `reach` is told of each
    point that they pass.
    """

    def __init__(self, *, server: DevServer, store: Store, url: str) -> None:
        self.server = server
        self.store = store
        self.url = url
        self.base_url = server.url
        self.environ = {"RECOUP_API_KEY": server.key}
        self.reach: Reach = pass_by

    # --- settings and workers -----------------------------------------------------------------

    def settings(self, **sections: Mapping[str, object]) -> Settings:
        """Quick settings for the server, with the keys of `sections` over them."""
        own = {"api": {"base_url": self.base_url}, "database": {"url": self.url}}
        names = {*QUICK, *own, *sections}
        merged = {
            name: {**QUICK.get(name, {}), **own.get(name, {}), **sections.get(name, {})}
            for name in names
        }
        return load_settings(environ={}, overrides=merged)

    @asynccontextmanager
    async def making(
        self, settings: Settings | None = None, *, once: bool = False, max_jobs: int | None = None
    ) -> AsyncIterator[Worker]:
        """Make a worker that does not run yet."""
        settings = settings or self.settings()
        identity = identify(__version__)
        key = settings.api.key_source(self.environ).read_key()
        who = Claimant(
            identity.worker_id, settings.api.base_url, fingerprint(key), settings.worker.queues
        )
        async with client_for(settings, self.environ) as client:
            tools = Tools(
                store=self.store,
                client=client,
                settings=settings,
                clock=SystemClock(),
                who=who,
                log=structlog.get_logger("orchestrator.worker"),
                reach=self.reach,
            )
            yield Worker(tools=tools, identity=identity, once=once, max_jobs=max_jobs)

    @asynccontextmanager
    async def working(
        self, settings: Settings | None = None, *, max_jobs: int | None = None
    ) -> AsyncIterator[Worker]:
        """Run a worker beside the test, and drain it at the end of the block."""
        async with (
            self.making(settings, max_jobs=max_jobs) as worker,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(worker.run)
            yield worker
            worker.drain()

    @asynccontextmanager
    async def dying(self, settings: Settings | None = None) -> AsyncIterator[Worker]:
        """Run a worker beside the test; at the end of the block it is cut off, and its row says
        that its process is gone."""
        async with self.making(settings) as worker:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.run)
                yield worker
                tasks.cancel_scope.cancel()
            await self.execute(
                "UPDATE workers SET process_started = '-1' WHERE id = :id",
                id=worker._tools.who.worker_id,
            )

    async def once(self, settings: Settings | None = None, *, max_jobs: int | None = None) -> int:
        """Run a worker until nothing is due, and return its exit code."""
        async with self.making(settings, once=True, max_jobs=max_jobs) as worker:
            with anyio.fail_after(BOUND_S):
                ended = await worker.run()
            return exit_code(ended, worker)

    def orchestrator(
        self, **sections: Mapping[str, Any]
    ) -> AbstractAsyncContextManager[Orchestrator]:
        """Open the Python API on the same database."""
        return Orchestrator(settings=self.settings(**sections), environ=self.environ)

    # --- the database -------------------------------------------------------------------------

    async def enqueue(self, *prompts: str, **options: Any) -> list[int]:
        """Enqueue one job for each prompt, all with the same options."""
        return await self.enqueue_rows(*({"prompt": prompt, **options} for prompt in prompts))

    async def enqueue_rows(self, *rows: Mapping[str, Any]) -> list[int]:
        """Enqueue jobs by their options."""
        async with self.orchestrator() as orc:
            return [handle.id for handle in await orc.enqueue_many(rows)]

    async def job(self, job_id: int) -> Job:
        """A job as it stands."""
        return await self.store.read(look.load, job_id)

    async def messages(self, job_id: int, attempt: int | None = None) -> list[Message]:
        """The messages of a job's attempt."""
        return await self.store.read(look.messages_of, job_id, attempt)

    async def events(self, job_id: int) -> list[str]:
        """The names of a job's events, in order."""
        return [event.event for event in await self.store.read(look.events, job_id)]

    async def detail(self, job_id: int, event: str) -> Any:
        """The detail of a job's last event of that name. Fails if there is none."""
        found = [
            entry for entry in await self.store.read(look.events, job_id) if entry.event == event
        ]
        assert found, f"job {job_id} has no event {event}: {await self.events(job_id)}"
        return found[-1].detail

    async def sql(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """The rows of a query."""
        return await self.store.read(look.rows, query, values)

    async def execute(self, statement: str, **values: Any) -> int:
        """Run a statement that writes, as a person with a SQL shell; return the rows it hit."""

        def run(connection: Connection) -> int:
            return connection.execute(text(statement), values).rowcount

        return await self.store.write(run)

    async def hurry(self) -> None:
        """Let every back-off of the queue be over."""
        await self.execute(
            "UPDATE jobs SET available_at = '2020-01-01 00:00:00.000000'"
            " WHERE state = 'queued' AND available_at > '2020-01-01 00:00:00.000000'"
        )

    async def gate(self) -> dict[str, Any]:
        """The row of the only gate."""
        (row,) = await self.sql("SELECT * FROM gates")
        return row

    # --- waiting ------------------------------------------------------------------------------

    async def until(self, job_id: int, condition: Callable[[Job], bool]) -> Job:
        """Wait until a job's row fulfils a condition, and return it."""

        async def fulfilled() -> Job | None:
            job = await self.job(job_id)
            return job if condition(job) else None

        return await eventually(fulfilled, lambda: f"job {job_id}")

    async def until_state(self, job_id: int, *states: str) -> Job:
        """Wait until a job is in one of the states."""
        return await self.until(job_id, lambda job: job.state in states)

    async def until_settled(self, *job_ids: int) -> list[Job]:
        """Wait until all the jobs are settled."""
        return [await self.until(job_id, lambda job: job.state.settled) for job_id in job_ids]

    async def until_states(self, **counts: int) -> None:
        """Wait until so many jobs are in each state, and none in another."""
        query = "SELECT id, state, attempt, error, available_at FROM jobs ORDER BY id"

        async def there() -> bool:
            return Counter(row["state"] for row in await self.sql(query)) == counts

        try:
            await eventually(there, lambda: f"{counts}")
        except AssertionError as vain:
            vain.add_note(f"{await self.sql(query)}")
            raise

    async def until_event(self, job_id: int, event: str) -> None:
        """Wait until a job's log has an event."""

        async def there() -> bool:
            return event in await self.events(job_id)

        await eventually(there, lambda: f"event {event} of job {job_id}")

    async def until_gate(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the gate's row fulfils a condition, and return it."""

        async def fulfilled() -> dict[str, Any] | None:
            rows = await self.sql("SELECT * FROM gates")
            return next((row for row in rows if condition(row)), None)

        return await eventually(fulfilled, lambda: "the gate")

    # --- the server's truth -------------------------------------------------------------------

    def posts(self, prompt: str) -> int:
        """How many submissions of a prompt arrived."""
        return self.server.stats.posts_by_prompt[prompt]

    def all_posts(self) -> int:
        """How many submissions arrived."""
        return self.server.stats.posts_by_prompt.total()

    def starts(self, run_id: str | None) -> list[int]:
        """The indexes from which a run's stream was asked for, in order."""
        return [
            int(call.start_index or 0)
            for call in self.server.stats.requests("stream")
            if call.run_id == run_id
        ]

    def release(self, job: Job) -> None:
        """Let a job's run go on that pauses for ever."""
        run = self.server.runs.get(job.run_id or "")
        assert run is not None
        self.server.runs.release(run)

    async def assert_kept(self, job: Job, *, source: str = "server") -> None:
        """Check that the job's ids are the run's, and that its messages equal the server's."""
        run = self.server.runs.get(job.run_id or "")
        assert run is not None
        assert (job.chat_id, job.session_id) == (run.order.chat_id, run.order.session_id)
        kept = await self.messages(job.id)
        truth = [] if run.message is None else [run.message]
        assert [canonical(row.message) for row in kept] == [canonical(row) for row in truth]
        assert [row.source for row in kept] == [source] * len(truth)

    async def assert_completed(self, job_id: int, result_text: str) -> Job:
        """Check that a job completed with one POST, with this text and the server's message."""
        job = await self.job(job_id)
        assert (job.state, job.error_kind, job.error) == (State.COMPLETED, None, None)
        assert (job.run_status, job.result_text) == ("completed", result_text)
        assert self.posts(job.prompt or "") == 1
        await self.assert_kept(job)
        return job


async def over(run: Run) -> None:
    """Wait until a run of the server is over."""
    with anyio.fail_after(BOUND_S):
        while not run.over:
            await run.changed.wait()


async def eventually(look_once: Callable[[], Awaitable[T | None]], what: Callable[[], str]) -> T:
    """Look until there is something, and return it. Fails with `what` after a bound."""
    with anyio.move_on_after(BOUND_S):
        while True:
            found = await look_once()
            if found:
                return found
            await anyio.sleep(LOOK_S)
    raise AssertionError(f"{what()}: waited {BOUND_S:g} s in vain")


def canonical(value: Any) -> Any:
    """A value as JSON would give it back."""
    return json.loads(json.dumps(value))
