"""Apply an `Outcome` to a job: the columns that each state needs, in one guarded write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Delete, Table, delete, insert

from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import State
from orchestrator.store.rows import ForEach, Row, for_each, insert_rows
from orchestrator.store.schema import ATTEMPT_COLUMNS, attempts, jobs, messages, stream_checkpoints
from orchestrator.store.stamp import clock
from orchestrator.store.types import db_now
from orchestrator.store.verbs.guarded import Grip, record, write
from orchestrator.store.verbs.jointly import Change, write_each

FRESH_ATTEMPT: dict[str, Any] = {
    **dict.fromkeys(ATTEMPT_COLUMNS),
    "resubmit_at": None,
    "followed_s": 0.0,
    "quiet_s": 0.0,
    "stream_opened_at": None,
    "stream_left_at": None,
    "cancel_requested_at": None,
}
"""What a job's row holds when a further attempt begins."""


def apply(
    connection: Connection,
    grip: Grip,
    outcome: Outcome,
    *,
    backoff_s: float = 0.0,
    seize: bool = False,
    by: str | None = None,
) -> Job:
    """Move a job to the outcome's state with all columns that belong to it.

    `backoff_s` is the wait of a deferred job in seconds. Raises LeaseLost.
    """
    values = _values(outcome, db_now(), backoff_s)
    job = write(
        connection,
        grip,
        values,
        to=outcome.state,
        event=outcome.event,
        detail=evidence(outcome),
        seize=seize,
        by=by,
    )
    if job.state.settled:
        _drop_checkpoints(connection, [job])
    return job


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An outcome for a job that its worker holds; `kept` are the messages of its end, if any.

    `by` is the worker's id; `streamed` says that the run's stream is opened at once.
    """

    job: Job
    outcome: Outcome
    by: str
    kept: Sequence[Message] | None = None
    streamed: bool = False


def apply_each(connection: Connection, applied: Sequence[Applied]) -> list[Job]:
    """Move each job to its outcome, which is `running` or settled, with its messages.

    All or none, as `write_each`: raises LeaseLost. If we crash after this commits, the jobs are
    settled, or another worker follows their runs.
    """
    now = clock(connection)
    if not all(one.outcome.state.settled or one.outcome.state is State.RUNNING for one in applied):
        raise AssertionError("what goes back to the queue or into doubt is applied alone")
    changes = [
        Change(
            job=one.job,
            values=_values(one.outcome, now) | ({"stream_opened_at": now} if one.streamed else {}),
            to=one.outcome.state,
            event=one.outcome.event,
            detail=evidence(one.outcome),
            by=one.by,
        )
        for one in applied
    ]
    write_each(connection, changes, now=now)
    done = [change.written(now) for change in changes]
    kept = [(job, one.kept) for job, one in zip(done, applied, strict=True) if one.kept is not None]
    _save_messages(connection, kept)
    _drop_checkpoints(connection, [job for job in done if job.state.settled])
    return done


def _values(outcome: Outcome, now: Any, backoff_s: float = 0.0) -> dict[str, Any]:
    """The columns of an outcome; `now` is the database's time, or the SQL that asks for it."""
    values: dict[str, Any] = {"error": outcome.error, **outcome.columns}
    if outcome.http_status is not None or outcome.state is State.QUEUED:
        # A run's end brings no HTTP status of its own: that of the submission stays.
        values["http_status"] = outcome.http_status
    match outcome.state:
        case State.QUEUED:
            values |= _requeued(outcome, backoff_s)
        case State.RUNNING:
            values |= {"accepted_at": now, "deferrals": 0, "resubmit_at": None}
        case State.IN_DOUBT:
            values |= {"worker_id": None, "resubmit_at": _later(outcome.resubmit_after)}
        case _:
            values |= {"finished_at": now, "stream_opened_at": None, "resubmit_at": None}
    if outcome.error_kind is not None:
        values["error_kind"] = outcome.error_kind.value
    return values


def _requeued(outcome: Outcome, backoff_s: float) -> dict[str, Any]:
    values: dict[str, Any] = {"worker_id": None, "sent_at": None, "available_at": db_now(backoff_s)}
    if outcome.defer:
        values["deferrals"] = jobs.c.deferrals + 1
    if outcome.refund:
        values["attempt"] = jobs.c.attempt - 1
    return values


def _later(seconds: float | None) -> Any:
    return None if seconds is None else db_now(seconds)


def evidence(outcome: Outcome) -> dict[str, Any]:
    """What the log keeps, so that a person can overrule the verdict."""
    known = {
        "error_kind": outcome.error_kind,
        "error": outcome.error,
        "http_status": outcome.http_status,
        "run_status": outcome.columns.get("run_status"),
        "run_id": outcome.columns.get("run_id"),
        "chat_id": outcome.columns.get("chat_id"),
        "session_id": outcome.columns.get("session_id"),
        "finish_reason": outcome.columns.get("finish_reason"),
        "retry_after": outcome.retry_after,
    }
    return {name: value for name, value in known.items() if value is not None}


def settle(
    connection: Connection,
    grip: Grip,
    outcome: Outcome,
    kept: Sequence[Message],
    *,
    retry_after_s: float | None = None,
    difference: dict[str, Any] | None = None,
    by: str | None = None,
) -> Job:
    """Settle a job with its messages; the guard comes first, so a late writer's rows roll back.

    `retry_after_s` (seconds) begins a further attempt instead: what this one left moves to
    `attempts`. `difference` tells of a stored message that differs from the folded stream.
    """
    job = apply(connection, grip, outcome, by=by)
    save_messages(connection, job, kept)
    if difference is not None:
        record(connection, job, "collect.difference", detail=difference, by=by)
    if retry_after_s is None or job.cancel_requested_at is not None:
        return job  # a wish to cancel that came during the end forbids a further attempt
    archive(connection, job)
    return write(
        connection,
        Grip.of(job),
        {**FRESH_ATTEMPT, "available_at": db_now(retry_after_s), "error": job.error},
        to=State.QUEUED,
        event="job.retried",
        detail={"by": "policy", "after": outcome.error_kind},
        seize=True,
        by=by,
    )


def archive(connection: Connection, job: Job) -> None:
    """Copy what the job's attempt left to `attempts`."""
    values = {name: getattr(job, name) for name in ATTEMPT_COLUMNS}
    connection.execute(
        insert(attempts).values(job_id=job.id, attempt=job.attempt, state=job.state.value, **values)
    )


def save_messages(connection: Connection, job: Job, kept: Sequence[Message]) -> None:
    """Keep one version of the attempt's messages: what stood before is replaced."""
    _save_messages(connection, [(job, kept)])


def _save_messages(connection: Connection, of: Sequence[tuple[Job, Sequence[Message]]]) -> None:
    _delete_of(connection, messages, [job for job, _ in of])
    rows = [
        {
            "job_id": job.id,
            "attempt": job.attempt,
            "position": message.position,
            "message_id": message.message_id,
            "role": message.role,
            "text": message.text,
            "message": message.message,
            "source": message.source,
        }
        for job, kept in of
        for message in kept
    ]
    insert_rows(connection, messages, rows)


def _drop_checkpoints(connection: Connection, settled: Sequence[Job]) -> None:
    """Forget the raw chunks of settled attempts."""
    _delete_of(connection, stream_checkpoints, settled)


def _delete_of(connection: Connection, table: Table, of: Sequence[Job]) -> None:
    """Delete what a table holds of the jobs' attempts."""
    if of:
        deletion = _deletion(connection.dialect.name, table)
        deletion.run(connection, [[job.id for job in of], [job.attempt for job in of]])


@cache
def _deletion(dialect: str, table: Table) -> ForEach:
    def of_attempt(row: Row) -> Delete:
        of_job = table.c.job_id == row.key("job_id")
        return delete(table).where(of_job, table.c.attempt == row.c["attempt"])

    names = ("job_id", "attempt")
    return for_each(dialect, {name: table.c[name].type for name in names}, of_attempt)
