"""The Python API without async: the same names and words, each call blocks until it is done."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from sqlalchemy import Connection, Engine
from tenacity import Retrying, retry_if_result, stop_after_delay, stop_never
from tenacity.wait import wait_exponential

from orchestrator import api
from orchestrator.config import Settings, load_settings
from orchestrator.errors import NotAllowed
from orchestrator.faces import (
    LOOK_FIRST_S,
    LOOK_MOST_S,
    WATCH_EVERY_S,
    BlockingCaller,
    Update,
    Watch,
    at_rest,
    enqueuing,
    not_settled,
    on_callers_sync,
    resolving_by,
    result_of,
    to_each,
)
from orchestrator.job import Event, Job, Message
from orchestrator.request import queue_name
from orchestrator.resolving import Candidate
from orchestrator.store import migrations, sqlite
from orchestrator.store.engine import parse_url, reaching, sync_engine
from orchestrator.store.verbs import look, people
from orchestrator.store.verbs.enqueue import Enqueued, OnConflict
from orchestrator.store.verbs.look import Filter

T = TypeVar("T")


class Orchestrator:
    """A database of jobs, for code that is not async. Use it as a context manager.

    The arguments are those of `orchestrator.Orchestrator`, and so is what each method takes,
    returns and raises. One object may serve many threads: each call has a connection of its own.

    ```python
    with Orchestrator("sqlite:///jobs.db") as orc:
        job = orc.enqueue("Write a haiku about queues.")
        print(job.result())
    ```
    """

    def __init__(
        self,
        database: str | None = None,
        *,
        settings: Settings | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.settings = settings or Settings()
        self._environ = environ
        self._database = database or self.settings.database.url
        self._url = parse_url(self._database)
        self._opening = threading.Lock()
        self._engine: Engine | None = None

    @classmethod
    def from_config(
        cls, path: str | Path | None = None, *, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Read the configuration as the command line does. Raises ConfigError."""
        settings = load_settings(Path(path) if path is not None else None, environ=environ)
        return cls(settings=settings, environ=environ)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._opening:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    # --- enqueue ----------------------------------------------------------------------------

    def enqueue(
        self,
        prompt: str | None = None,
        *,
        on_conflict: OnConflict | str = OnConflict.RETURN,
        connection: BlockingCaller | None = None,
        **options: Any,
    ) -> JobHandle:
        """Enqueue one job and return its handle; `options` are columns of `jobs` by name.

        With `connection` the job is inserted in the caller's own transaction. Raises InvalidJob
        and DuplicateKey; nothing is written then.
        """
        row = {**options, "prompt": prompt}
        return self.enqueue_many([row], on_conflict=on_conflict, connection=connection)[0]

    def enqueue_many(
        self,
        jobs: Iterable[Mapping[str, Any]],
        *,
        on_conflict: OnConflict | str = OnConflict.RETURN,
        connection: BlockingCaller | None = None,
    ) -> list[JobHandle]:
        """Enqueue many jobs in one transaction, all or none; one handle a job, in order."""
        verb = enqueuing(self.settings, jobs, on_conflict)
        if connection is not None:
            done = on_callers_sync(connection, verb)
        else:
            done = self._execute(verb, write=True, create=True)
        return [JobHandle(self, item) for item in done]

    # --- look ---------------------------------------------------------------------------------

    def get(self, job_id: int) -> Job:
        """Return a job as it stands. Raises NotFound."""
        return self._execute(partial(look.load, job_id=job_id))

    def handle(self, job_id: int) -> JobHandle:
        """Return a handle of a job that exists."""
        return JobHandle(self, Enqueued(job_id, created=False))

    def jobs(
        self, wanted: Filter | None = None, *, limit: int = 100, newest: bool = False, **where: Any
    ) -> list[Job]:
        """Return up to `limit` jobs that match, in order of id. `where` are fields of `Filter`."""
        chosen = wanted or Filter(**where)
        return self._execute(partial(look.page, wanted=chosen, limit=limit, newest=newest))

    def messages(self, job_id: int, attempt: int | None = None) -> list[Message]:
        """Return the messages of a job's attempt, by default of the latest."""
        return self._execute(partial(look.messages_of, job_id=job_id, attempt=attempt))

    def events(self, job_id: int, *, after_id: int = 0) -> list[Event]:
        """Return a job's events, from behind `after_id` on."""
        return self._execute(partial(look.events, job_id=job_id, after_id=after_id))

    def sql(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query of your own; `values` are its `:named` parameters."""
        return self._execute(partial(look.rows, query=query, values=values))

    # --- decide -------------------------------------------------------------------------------

    def cancel(self, job_id: int) -> Job:
        """Call a job off. Raises NotFound, and NotAllowed for a settled job."""
        return self._execute(partial(people.cancel, job_id=job_id), write=True)

    def retry(self, job_id: int) -> Job:
        """Queue a settled job again, as a new attempt. Raises NotFound and NotAllowed."""
        return self._execute(partial(people.retry, job_id=job_id), write=True)

    def each(
        self, verb: Callable[[Connection, int], Job], wanted: Filter, *, dry_run: bool = False
    ) -> list[tuple[int, Job | NotAllowed]]:
        """Apply a verb such as `people.cancel` to every job that matches, in one transaction."""
        return self._execute(
            partial(to_each, verb=verb, wanted=wanted, dry_run=dry_run), write=True
        )

    def resolve(self, job_id: int, decision: str, *, chat_id: str | None = None) -> Job:
        """Settle a job in doubt: `resubmit`, `fail`, or `adopt` the run of `chat_id`.

        Adopting asks the API, in an event loop of its own: not to be called inside a running one.
        """
        if decision != "adopt" or chat_id is None:
            return self._execute(resolving_by(decision, job_id), write=True)

        async def adopt() -> Job:
            async with self._asynchronous() as orc:
                return await orc.resolve(job_id, decision, chat_id=chat_id)

        return anyio.run(adopt)

    def candidates(self, job_id: int) -> list[Candidate]:
        """Return the chats that may hold the run of a job in doubt; asks the API, as `resolve`."""

        async def ask() -> list[Candidate]:
            async with self._asynchronous() as orc:
                return await orc.candidates(job_id)

        return anyio.run(ask)

    def pause(self, queue: str, reason: str | None = None) -> None:
        """Stop claims from a queue on every worker, until `resume`; live runs go on."""
        self._execute(partial(people.pause, queue=queue_name(queue), reason=reason), write=True)

    def resume(self, queue: str) -> None:
        """Let a queue's jobs be claimed again."""
        self._execute(partial(people.resume, queue=queue_name(queue)), write=True)

    def limit_queue(self, queue: str, concurrency: int | None) -> None:
        """Bound how many of a queue's jobs are live at once in the whole database."""
        self._execute(
            partial(people.limit_queue, queue=queue_name(queue), concurrency=concurrency),
            write=True,
        )

    def weigh_queue(self, queue: str, weight: int) -> None:
        """Set a queue's share of free slots, against 1 of each queue that says nothing."""
        self._execute(
            partial(people.weigh_queue, queue=queue_name(queue), weight=weight), write=True
        )

    # --- the store ------------------------------------------------------------------------------

    def _execute(
        self, verb: Callable[[Connection], T], *, write: bool = False, create: bool = False
    ) -> T:
        """Run a verb in a transaction of its own, durable when this returns."""
        with reaching():
            engine = self._opened(create=create).execution_options(**{sqlite.WRITE: write})
            with engine.begin() as connection:
                return verb(connection)

    def _opened(self, *, create: bool) -> Engine:
        with self._opening:
            if self._engine is None:
                if create:
                    migrations.upgrade_sqlite(self._url)
                migrations.require_file(self._url)
                engine = sync_engine(self._url)
                with engine.begin() as connection:
                    migrations.require_current(connection)
                self._engine = engine
            return self._engine

    def _asynchronous(self) -> api.Orchestrator:
        return api.Orchestrator(self._database, settings=self.settings, environ=self._environ)


class JobHandle:
    """A job that was enqueued. `created` is False if a job with its `unique_key` existed."""

    def __init__(self, orchestrator: Orchestrator, enqueued: Enqueued) -> None:
        self._orchestrator = orchestrator
        self.id = enqueued.id
        self.created = enqueued.created

    def __repr__(self) -> str:
        return f"JobHandle(id={self.id}, created={self.created})"

    def get(self) -> Job:
        """Return the job as it stands."""
        return self._orchestrator.get(self.id)

    def wait(self, timeout: float | None = None) -> Job:
        """Wait until the job is settled or in doubt, and return it.

        `timeout` is in seconds. Raises TimeoutError when it has passed; the job goes on.
        """
        retrying = Retrying(
            retry=retry_if_result(lambda job: not at_rest(job)),
            wait=wait_exponential(LOOK_FIRST_S, LOOK_MOST_S, exp_base=1.5),
            stop=stop_never if timeout is None else stop_after_delay(timeout),
            retry_error_callback=lambda _state: None,
        )
        job: Job | None = retrying(self.get)
        if job is None:
            raise not_settled(self.id, timeout)
        return job

    def result(self, timeout: float | None = None) -> str:
        """Wait for the job and return its text.

        Raises JobFailed if it ended otherwise, JobInDoubt if a person must decide, TimeoutError.
        """
        return result_of(self.wait(timeout))

    def messages(self) -> list[Message]:
        """Return the messages of the latest attempt."""
        return self._orchestrator.messages(self.id)

    def events(self) -> list[Event]:
        """Return the job's events."""
        return self._orchestrator.events(self.id)

    def watch(self) -> Iterator[Update]:
        """Yield the job each time that its state or its text has changed, until it is at rest."""
        watch = Watch(self.id)
        while not watch.done:
            update = self._orchestrator._execute(watch.look)  # noqa: SLF001 - its own handle
            if update is not None:
                yield update
            if not watch.done:
                time.sleep(WATCH_EVERY_S)

    def cancel(self) -> Job:
        """See `Orchestrator.cancel`."""
        return self._orchestrator.cancel(self.id)

    def retry(self) -> Job:
        """See `Orchestrator.retry`."""
        return self._orchestrator.retry(self.id)


__all__ = ["Filter", "JobHandle", "OnConflict", "Orchestrator", "Update"]
