"""The Python API: enqueue jobs, look at them, wait for them, decide about them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from sqlalchemy import Connection
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, stop_never
from tenacity.wait import wait_exponential

from orchestrator import resolving
from orchestrator.config import Settings, load_settings
from orchestrator.errors import NotAllowed
from orchestrator.faces import (
    LOOK_FIRST_S,
    LOOK_MOST_S,
    WATCH_EVERY_S,
    Caller,
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
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import look, people
from orchestrator.store.verbs.enqueue import Enqueued, OnConflict
from orchestrator.store.verbs.look import Filter

T = TypeVar("T")


class Orchestrator:
    """A database of jobs. Use it as an async context manager.

    `database` is a plain URL such as `sqlite:///jobs.db`; `settings` are by default those of the
    configuration's defaults. A SQLite file is created by the first `enqueue`; reading one that is
    not there raises NotFound.

    ```python
    async with Orchestrator("sqlite:///jobs.db") as orc:
        job = await orc.enqueue("Write a haiku about queues.")
        print(await job.result())
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
        self._url = parse_url(database or self.settings.database.url)
        self._open = AsyncExitStack()
        self._opening = anyio.Lock()
        self._store: Store | None = None

    @classmethod
    def from_config(
        cls, path: str | Path | None = None, *, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Read the configuration as the command line does. Raises ConfigError."""
        settings = load_settings(Path(path) if path is not None else None, environ=environ)
        return cls(settings=settings, environ=environ)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._store = None
        await self._open.aclose()

    # --- enqueue ----------------------------------------------------------------------------

    async def enqueue(
        self,
        prompt: str | None = None,
        *,
        on_conflict: OnConflict | str = OnConflict.RETURN,
        connection: Caller | None = None,
        **options: Any,
    ) -> JobHandle:
        """Enqueue one job and return its handle; `options` are columns of `jobs` by name.

        Checked as the server would check it. With `connection` the job is inserted in the
        caller's own transaction. Raises InvalidJob and DuplicateKey; nothing is written then. Once
        this returns (and the caller's transaction is committed), the job is never lost.
        """
        row = {**options, "prompt": prompt}
        handles = await self.enqueue_many([row], on_conflict=on_conflict, connection=connection)
        return handles[0]

    async def enqueue_many(
        self,
        jobs: Iterable[Mapping[str, Any]],
        *,
        on_conflict: OnConflict | str = OnConflict.RETURN,
        connection: Caller | None = None,
    ) -> list[JobHandle]:
        """Enqueue many jobs in one transaction, all or none; one handle a job, in order.

        Raises what `enqueue` raises.
        """
        verb = enqueuing(self.settings, jobs, on_conflict)
        if connection is not None:
            done = await on_callers(connection, verb)
        else:
            store = await self._opened(create=True)
            done = await store.write(verb)
        return [JobHandle(self, item) for item in done]

    # --- look ---------------------------------------------------------------------------------

    async def get(self, job_id: int) -> Job:
        """Return a job as it stands. Raises NotFound."""
        return await self._read(partial(look.load, job_id=job_id))

    def handle(self, job_id: int) -> JobHandle:
        """Return a handle of a job that exists."""
        return JobHandle(self, Enqueued(job_id, created=False))

    async def jobs(
        self, wanted: Filter | None = None, *, limit: int = 100, newest: bool = False, **where: Any
    ) -> list[Job]:
        """Return up to `limit` jobs that match, in order of id. `where` are fields of `Filter`."""
        chosen = wanted or Filter(**where)
        return await self._read(partial(look.page, wanted=chosen, limit=limit, newest=newest))

    async def messages(self, job_id: int, attempt: int | None = None) -> list[Message]:
        """Return the messages of a job's attempt, by default of the latest."""
        return await self._read(partial(look.messages_of, job_id=job_id, attempt=attempt))

    async def events(self, job_id: int, *, after_id: int = 0) -> list[Event]:
        """Return a job's events, from behind `after_id` on."""
        return await self._read(partial(look.events, job_id=job_id, after_id=after_id))

    async def sql(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query of your own; `values` are its `:named` parameters."""
        return await self._read(partial(look.rows, query=query, values=values))

    # --- decide -------------------------------------------------------------------------------

    async def cancel(self, job_id: int) -> Job:
        """Call a job off. A run that goes on is stopped by its worker, and its end decides.

        Raises NotFound, and NotAllowed for a settled job.
        """
        return await self._write(partial(people.cancel, job_id=job_id))

    async def retry(self, job_id: int) -> Job:
        """Queue a settled job again, as a new attempt. Raises NotFound and NotAllowed."""
        return await self._write(partial(people.retry, job_id=job_id))

    async def each(
        self, verb: Callable[[Connection, int], Job], wanted: Filter, *, dry_run: bool = False
    ) -> list[tuple[int, Job | NotAllowed]]:
        """Apply a verb such as `people.cancel` to every job that matches, in one transaction.

        Returns each id with the job, or with why the verb does not apply to it. `dry_run` returns
        the same and takes everything back.
        """
        return await self._write(partial(to_each, verb=verb, wanted=wanted, dry_run=dry_run))

    async def resolve(self, job_id: int, decision: str, *, chat_id: str | None = None) -> Job:
        """Settle a job in doubt: `resubmit`, `fail`, or `adopt` the run of `chat_id`.

        A run still going is followed by the next worker; one that is over is collected now.
        Raises NotFound, NotAllowed, ConfigError without a key, and StoreUnavailable.
        """
        if decision != "adopt" or chat_id is None:
            return await self._write(resolving_by(decision, job_id))
        from orchestrator.remote import client_for  # two HTTP libraries, for these two calls only

        store = await self._opened()
        accept = frozenset(self.settings.collect.accept_finish)
        async with client_for(self.settings, self._environ) as client:
            return await resolving.adopt(store, client, job_id, chat_id, accept)

    async def candidates(self, job_id: int) -> list[Candidate]:
        """Return the chats that may hold the run of a job in doubt, the newest first."""
        from orchestrator.remote import client_for  # as in `resolve`

        store = await self._opened()
        job = await self.get(job_id)
        async with client_for(self.settings, self._environ) as client:
            return await resolving.candidates(store, client, job)

    async def pause(self, queue: str, reason: str | None = None) -> None:
        """Stop claims from a queue on every worker, until `resume`; live runs go on."""
        await self._write(partial(people.pause, queue=queue_name(queue), reason=reason))

    async def resume(self, queue: str) -> None:
        """Let a queue's jobs be claimed again."""
        await self._write(partial(people.resume, queue=queue_name(queue)))

    async def limit_queue(self, queue: str, concurrency: int | None) -> None:
        """Bound how many of a queue's jobs are live at once in the whole database."""
        await self._write(
            partial(people.limit_queue, queue=queue_name(queue), concurrency=concurrency)
        )

    async def weigh_queue(self, queue: str, weight: int) -> None:
        """Set a queue's share of free slots, against 1 of each queue that says nothing."""
        await self._write(partial(people.weigh_queue, queue=queue_name(queue), weight=weight))

    # --- the store ------------------------------------------------------------------------------

    async def _opened(self, *, create: bool = False) -> Store:
        async with self._opening:
            if self._store is None:
                if create:
                    await anyio.to_thread.run_sync(migrations.upgrade_sqlite, self._url)
                self._store = await self._open.enter_async_context(Store.open(self._url))
            return self._store

    async def _read(self, verb: Callable[[Connection], T]) -> T:
        store = await self._opened()
        return await store.read(verb)

    async def _write(self, verb: Callable[[Connection], T]) -> T:
        store = await self._opened()
        return await store.write(verb)


class JobHandle:
    """A job that was enqueued. `created` is False if a job with its `unique_key` existed."""

    def __init__(self, orchestrator: Orchestrator, enqueued: Enqueued) -> None:
        self._orchestrator = orchestrator
        self.id = enqueued.id
        self.created = enqueued.created

    def __repr__(self) -> str:
        return f"JobHandle(id={self.id}, created={self.created})"

    async def get(self) -> Job:
        """Return the job as it stands."""
        return await self._orchestrator.get(self.id)

    async def wait(self, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - the API's own word
        """Wait until the job is settled or in doubt, and return it.

        `timeout` is in seconds. Raises TimeoutError when it has passed; the job goes on.
        """
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda job: not at_rest(job)),
            wait=wait_exponential(LOOK_FIRST_S, LOOK_MOST_S, exp_base=1.5),
            stop=stop_never if timeout is None else stop_after_delay(timeout),
            sleep=anyio.sleep,
            retry_error_callback=lambda _state: None,
        )
        job: Job | None = await retrying(self.get)
        if job is None:
            raise not_settled(self.id, timeout)
        return job

    async def result(self, timeout: float | None = None) -> str:  # noqa: ASYNC109 - as above
        """Wait for the job and return its text.

        Raises JobFailed if it ended otherwise, JobInDoubt if a person must decide, TimeoutError.
        """
        return result_of(await self.wait(timeout))

    async def messages(self) -> list[Message]:
        """Return the messages of the latest attempt."""
        return await self._orchestrator.messages(self.id)

    async def events(self) -> list[Event]:
        """Return the job's events."""
        return await self._orchestrator.events(self.id)

    async def watch(self) -> AsyncIterator[Update]:
        """Yield the job each time that its state or its text has changed, until it is at rest.

        Reads the database only, so it never disturbs the run; text grows with each checkpoint.
        """
        watch = Watch(self.id)
        while not watch.done:
            update = await self._orchestrator._read(watch.look)  # noqa: SLF001 - its own handle
            if update is not None:
                yield update
            if not watch.done:
                await anyio.sleep(WATCH_EVERY_S)

    async def cancel(self) -> Job:
        """See `Orchestrator.cancel`."""
        return await self._orchestrator.cancel(self.id)

    async def retry(self) -> Job:
        """See `Orchestrator.retry`."""
        return await self._orchestrator.retry(self.id)


async def on_callers(caller: Caller, verb: Callable[[Connection], T]) -> T:
    """Run a verb in the transaction of the caller's own connection or session."""
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession  # see `Caller`

    connection = await caller.connection() if isinstance(caller, AsyncSession) else caller
    if not isinstance(connection, AsyncConnection):
        return on_callers_sync(connection, verb)
    with anyio.CancelScope(shield=True):
        result = await connection.run_sync(on_callers_sync, verb)
    return result  # noqa: RET504 - a scope may end a block early, says its type


__all__ = ["Filter", "JobHandle", "OnConflict", "Orchestrator", "Update", "at_rest"]
