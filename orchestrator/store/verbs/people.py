"""What a person decides: cancel, retry, resolve; pause and limit queues."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from orchestrator.errors import NotAllowed, NotFound
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import ErrorKind, State
from orchestrator.store.schema import is_in_doubt, is_queued, jobs, queues, workers
from orchestrator.store.types import db_now
from orchestrator.store.upsert import insert_if_absent
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.guarded import Grip, each_that_still_fits, write
from orchestrator.store.wake import announce


def load(connection: Connection, job_id: int) -> Job:
    """Return a job, locked until the transaction ends. Raises NotFound.

    A worker's write of the same row is waited for: the decision goes by what it left.
    """
    statement = select(jobs).where(jobs.c.id == job_id).with_for_update()
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return Job.from_row(row)


def cancel(connection: Connection, job_id: int) -> Job:
    """Call a job off and return it.

    What was surely not sent, and what is in doubt, is cancelled at once; what was sent keeps its
    state and `cancel_requested_at`, and its worker stops the run. Raises NotFound, and NotAllowed
    for a settled job.
    """
    job = load(connection, job_id)
    if job.state.settled:
        raise NotAllowed(f"job {job_id} is {job.state.value} already")
    sent = job.sent_at is not None
    if job.state is State.RUNNING or (job.state is State.SUBMITTING and sent):
        if job.cancel_requested_at is not None:
            return job
        return write(
            connection,
            Grip.of(job),
            {"cancel_requested_at": db_now()},
            event="job.cancel_requested",
        )
    doubt = "; it may have started a run" if job.state is State.IN_DOUBT else ""
    outcome = Outcome(
        State.CANCELLED,
        "job.cancelled",
        error_kind=ErrorKind.CANCELLED,
        error=f"cancelled on request while {job.state.value}{doubt}",
    )
    return outcomes.apply(connection, Grip.of(job), outcome, seize=True)


def called_off() -> tuple[ColumnElement[bool], ...]:
    """The conditions of a job whose cancellation was asked for, and that no worker holds any more:
    it went back to the queue, or its answer was lost. Each has an index of its own."""
    asked_for = jobs.c.cancel_requested_at.is_not(None)
    return is_queued() & asked_for, is_in_doubt() & asked_for


def sweep_cancelled(connection: Connection, limit: int = 500) -> list[Job]:
    """Cancel the jobs that were called off while a worker held them."""
    found: list[int] = []
    for condition in called_off():
        found += connection.execute(select(jobs.c.id).where(condition).limit(limit)).scalars()
    return each_that_still_fits(partial(cancel, connection, job_id) for job_id in sorted(found))


def retry(connection: Connection, job_id: int) -> Job:
    """Queue a settled job again as a new attempt; what the old one left moves to `attempts`.

    Raises NotFound, and NotAllowed for a job that is not settled.
    """
    job = load(connection, job_id)
    if not job.state.settled:
        remedy = "resolve it" if job.state is State.IN_DOUBT else "cancel it or wait for its end"
        raise NotAllowed(f"job {job_id} is {job.state.value}: {remedy}")
    values: dict[str, Any] = {"max_attempts": _enough(job)}
    if job.error_kind is ErrorKind.EXPIRED:
        values["expires_at"] = None  # a person who retries an expired job wants it to run
    return _again(connection, job, "job.retried", values)


def resubmit(connection: Connection, job_id: int, *, by_policy: bool = False) -> Job:
    """Send a job in doubt again, as a new attempt: it may then have run twice."""
    job = _in_doubt(connection, job_id)
    values: dict[str, Any] = {"max_attempts": _enough(job)}
    if by_policy:
        values["resubmits"] = job.resubmits + 1
    return _again(connection, job, "doubt.resubmitted", values)


def give_up(connection: Connection, job_id: int) -> Job:
    """Fail a job in doubt: its run, if there is one, is lost to us."""
    job = _in_doubt(connection, job_id)
    outcome = Outcome(
        State.FAILED,
        "doubt.failed",
        error_kind=ErrorKind.RUN_LOST,
        error=f"a person gave it up: {job.error}",
        http_status=job.http_status,
    )
    return outcomes.apply(connection, Grip.of(job), outcome, seize=True)


def adopt_run(
    connection: Connection, job_id: int, *, run_id: str, chat_id: str, session_id: str
) -> Job:
    """Give a job in doubt the run that a person found; a worker then follows it."""
    job = _in_doubt(connection, job_id)
    outcome = Outcome(
        State.RUNNING,
        "doubt.adopted",
        columns={
            "run_id": run_id,
            "chat_id": chat_id,
            "session_id": session_id,
            "worker_id": None,
        },
    )
    return outcomes.apply(connection, Grip.of(job), outcome, seize=True)


def adopt_ended(
    connection: Connection,
    job_id: int,
    outcome: Outcome,
    kept: Sequence[Message],
    *,
    chat_id: str,
    session_id: str,
) -> Job:
    """Settle a job in doubt with the messages of a run that is over."""
    job = _in_doubt(connection, job_id)
    held = write(
        connection,
        Grip.of(job),
        {"chat_id": chat_id, "session_id": session_id},
        event="doubt.adopted",
        detail={"chat_id": chat_id, "session_id": session_id},
        seize=True,
    )
    return outcomes.settle(connection, Grip.of(held), outcome, kept)


def due_resubmits(connection: Connection, limit: int = 100) -> list[Job]:
    """Send again what the policy `resubmit` lets wait no longer, and return it."""
    statement = (
        select(jobs.c.id)
        .where(
            is_in_doubt(),
            jobs.c.resubmit_at <= db_now(),
            jobs.c.cancel_requested_at.is_(None),
        )
        .order_by(jobs.c.resubmit_at)
        .limit(limit)
    )
    due = connection.execute(statement).scalars().all()
    return each_that_still_fits(
        partial(resubmit, connection, job_id, by_policy=True) for job_id in sorted(due)
    )


def _in_doubt(connection: Connection, job_id: int) -> Job:
    job = load(connection, job_id)
    if job.state is not State.IN_DOUBT:
        raise NotAllowed(f"job {job_id} is {job.state.value}, not in doubt")
    return job


def _enough(job: Job) -> int:
    return max(job.max_attempts, job.attempt + 1)


def _again(connection: Connection, job: Job, event: str, values: dict[str, Any]) -> Job:
    if job.sent_at is not None:
        outcomes.archive(connection, job)
    announce(connection)
    return write(
        connection,
        Grip.of(job),
        {
            **outcomes.FRESH_ATTEMPT,
            "available_at": db_now(),
            "deferrals": 0,
            "error": job.error,
            **values,
        },
        to=State.QUEUED,
        event=event,
        detail={"from": job.state.value},
        seize=True,
    )


def rekey(
    connection: Connection, *, api_origin: str, old: str, new: str, limit: int = 10_000
) -> list[Job]:
    """Give the live and doubtful jobs of a replaced key to the key that replaced it.

    `old` and `new` are fingerprints. Workers follow only runs of their own key; after a key was
    replaced, the runs that it started would otherwise wait for it for ever. Raises NotAllowed
    while a worker with the old key lives.
    """
    alive = select(workers.c.id).where(
        workers.c.api_origin == api_origin,
        workers.c.key_fingerprint == old,
        workers.c.stopped_at.is_(None),
    )
    if connection.execute(alive).first() is not None:
        raise NotAllowed(f"a worker with key {old} lives and follows its runs; stop it first")
    held = (
        select(jobs)
        .where(
            jobs.c.api_origin == api_origin,
            jobs.c.key_fingerprint == old,
            jobs.c.state.in_((State.RUNNING.value, State.IN_DOUBT.value)),
        )
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update()
    )
    found = [Job.from_row(row) for row in connection.execute(held).mappings()]
    return [
        write(
            connection,
            Grip.of(job),
            {"key_fingerprint": new, "worker_id": None},
            event="job.rekeyed",
            detail={"old": old, "new": new},
            seize=True,
        )
        for job in found
    ]


# --- queues -----------------------------------------------------------------------------------


def pause(connection: Connection, queue: str, reason: str | None = None) -> None:
    """Stop claims from a queue, on every worker, until `resume`."""
    _set_queue(connection, queue, {"paused_at": db_now(), "paused_reason": reason})


def resume(connection: Connection, queue: str) -> None:
    """Let a queue's jobs be claimed again."""
    _set_queue(connection, queue, {"paused_at": None, "paused_reason": None})


def limit_queue(connection: Connection, queue: str, concurrency: int | None) -> None:
    """Bound how many of a queue's jobs are live at once in the whole database; None: no bound.

    Raises NotAllowed for what is no whole number from 0 on.
    """
    if concurrency is not None and not (_is_whole(concurrency) and concurrency >= 0):
        raise NotAllowed(f"limit: {concurrency!r}: write a whole number from 0 on, or None")
    _set_queue(connection, queue, {"concurrency": concurrency})


def weigh_queue(connection: Connection, queue: str, weight: int) -> None:
    """Set a queue's share of the free slots, in proportion to the weights of the others (1).

    Raises NotAllowed for a weight below 1.
    """
    if not (_is_whole(weight) and weight >= 1):
        raise NotAllowed(
            f"weight: {weight!r}: write a whole number from 1 on; `pause` stops a queue"
        )
    _set_queue(connection, queue, {"weight": weight})


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _set_queue(connection: Connection, queue: str, values: dict[str, Any]) -> None:
    insert_if_absent(connection, queues, {"name": queue, "weight": 1})
    connection.execute(update(queues).where(queues.c.name == queue).values(values))
    announce(connection)
