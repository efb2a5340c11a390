"""What the async and the blocking API share: everything but how a verb is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy import Connection

from orchestrator.config import Settings
from orchestrator.errors import InvalidJob, JobFailed, JobInDoubt, NotAllowed
from orchestrator.job import Job
from orchestrator.partial import PartialText
from orchestrator.request import Defaults, job_values
from orchestrator.states import State
from orchestrator.store import migrations, sqlite
from orchestrator.store.verbs import look, people
from orchestrator.store.verbs.enqueue import Enqueued, OnConflict, enqueue_many
from orchestrator.store.verbs.look import Filter

if TYPE_CHECKING:  # whoever has a session has paid for this import; each command would pay as well
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

T = TypeVar("T")

BlockingCaller: TypeAlias = "Connection | Session"
"""A blocking connection or session of the caller's own, whose transaction a call may join."""

Caller: TypeAlias = "AsyncConnection | AsyncSession | BlockingCaller"
"""Any connection or session of the caller's own."""

LOOK_FIRST_S, LOOK_MOST_S = 0.1, 1.0
"""How often a waiting caller looks at the database."""

WATCH_EVERY_S = 0.5
"""How often a watching caller looks at the database."""

_KNOWN = "orchestrator_known"
"""A mark on a caller's connection: its schema is ours, and it has our clock."""


@dataclass(frozen=True, slots=True)
class Update:
    """One state of a watched job: its row, and the text so far."""

    job: Job
    text: str


class Watch:
    """A job looked at again and again; `done` once it is at rest."""

    def __init__(self, job_id: int) -> None:
        self.done = False
        self._job_id = job_id
        self._text = PartialText()
        self._last: tuple[State, str] | None = None

    def look(self, connection: Connection) -> Update | None:
        """Return the job if its state or its text changed since the last look. Raises NotFound."""
        job = look.load(connection, self._job_id)
        text = self._text.read(connection, job)
        self.done = at_rest(job)
        if (job.state, text) == self._last:
            return None
        self._last = (job.state, text)
        return Update(job, text)


def at_rest(job: Job) -> bool:
    """True if nothing happens to the job by itself: settled, or in doubt until a person decides."""
    return job.state.settled or (job.state is State.IN_DOUBT and job.resubmit_at is None)


def result_of(job: Job) -> str:
    """The job's text. Raises JobFailed or JobInDoubt."""
    if job.state is State.COMPLETED:
        return job.result_text or ""
    kind = JobInDoubt if job.state is State.IN_DOUBT else JobFailed
    raise kind(job.id, job.state.value, job.error_kind, job.error)


def not_settled(job_id: int, timeout_s: float | None) -> TimeoutError:
    """The error of a wait that ran out."""
    return TimeoutError(f"job {job_id} was not settled within {timeout_s:g} s")


def defaults_of(settings: Settings) -> Defaults:
    """What the configuration gives a job that does not say otherwise."""
    defaults = settings.defaults
    return Defaults(defaults.queue, defaults.model, defaults.max_attempts)


def enqueuing(
    settings: Settings, jobs: Iterable[Mapping[str, Any]], on_conflict: OnConflict | str
) -> Callable[[Connection], list[Enqueued]]:
    """Check the jobs and return the verb that inserts them. Raises InvalidJob."""
    words = [word.value for word in OnConflict]
    if on_conflict not in words:
        raise InvalidJob("on_conflict", on_conflict, f"it must be one of {', '.join(words)}")
    defaults = defaults_of(settings)
    given = list(jobs)
    if len(given) == 1:
        rows = [job_values(given[0], defaults)]
    else:
        rows = [_checked(job, defaults, number) for number, job in enumerate(given, start=1)]
    return partial(enqueue_many, rows=rows, on_conflict=OnConflict(on_conflict))


def _checked(job: Mapping[str, Any], defaults: Defaults, number: int) -> dict[str, Any]:
    try:
        return job_values(job, defaults)
    except InvalidJob as error:
        raise InvalidJob(error.field, error.value, error.remedy, number=number) from None


def resolving_by(decision: str, job_id: int) -> Callable[[Connection], Job]:
    """The verb of a decision about a job in doubt that needs the database only.

    Raises NotAllowed for a word that is none.
    """
    match decision:
        case "resubmit":
            return partial(people.resubmit, job_id=job_id)
        case "fail":
            return partial(people.give_up, job_id=job_id)
        case _:
            raise NotAllowed(
                f"decision: {decision!r}: choose resubmit, fail, or adopt with a chat_id"
            )


def to_each(
    connection: Connection,
    verb: Callable[[Connection, int], Job],
    wanted: Filter,
    *,
    dry_run: bool = False,
) -> list[tuple[int, Job | NotAllowed]]:
    """Apply a verb to every job that matches; each id with the job, or why it does not apply.

    `dry_run` gives the same answer and takes everything back.
    """
    with connection.begin_nested() as step:
        done = [
            (job_id, _job_or_refusal(connection, verb, job_id))
            for job_id in look.ids(connection, wanted)
        ]
        if dry_run:
            step.rollback()
    return done


def _job_or_refusal(
    connection: Connection, verb: Callable[[Connection, int], Job], job_id: int
) -> Job | NotAllowed:
    try:
        return verb(connection, job_id)
    except NotAllowed as error:
        return error


def on_callers_sync(caller: BlockingCaller, verb: Callable[[Connection], T]) -> T:
    """Run a verb in the transaction of the caller's own blocking connection or session."""
    connection = caller if isinstance(caller, Connection) else caller.connection()
    if not connection.info.get(_KNOWN):
        migrations.require_current(connection)
        if connection.dialect.name == "sqlite":
            sqlite.register_clock(connection.connection.dbapi_connection)
        connection.info[_KNOWN] = True
    with _in_their_transaction(connection):
        return verb(connection)


@contextmanager
def _in_their_transaction(connection: Connection) -> Iterator[None]:
    """Begin the caller's transaction, if it has not begun.

    Python's SQLite driver begins one only before statements that it knows to write: what stands
    before its first INSERT, a savepoint or a WITH, would be committed by itself. A caller in
    autocommit mode has no transaction to join: the block gets one of its own.
    """
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        begun, autocommits, begin = (
            driver.in_transaction,
            driver.isolation_level is None,
            "BEGIN IMMEDIATE",
        )
    else:
        autocommits, begin = bool(getattr(driver, "autocommit", False)), "BEGIN"
        begun = not autocommits or driver.info.transaction_status != 0
    if begun:
        yield
        return
    connection.exec_driver_sql(begin)
    try:
        yield
    except BaseException:
        if autocommits:
            connection.exec_driver_sql("ROLLBACK")
        raise
    if autocommits:
        connection.exec_driver_sql("COMMIT")
