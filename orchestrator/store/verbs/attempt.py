"""The acts of a worker on a job that it holds: mark, put back, late answer, progress, stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import State
from orchestrator.store.schema import jobs
from orchestrator.store.stamp import clock
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.guarded import Grip, append, held, write
from orchestrator.store.verbs.jointly import Change, write_each


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """A request that is about to go out: the job, the request's body, and the worker's id."""

    job: Job
    body: Mapping[str, Any]
    by: str


_NOTHING_SENT = jobs.c.sent_at.is_(None) & jobs.c.cancel_requested_at.is_(None)


def mark_each(connection: Connection, markings: Sequence[Marking]) -> list[Job]:
    """Write down that requests begin to go out: `sent_at`, the attempt's number, the body.

    Raises LeaseLost if a job is not ours any more or its cancellation was asked for; then nothing
    may be sent. If we crash after this commits, the job is in doubt.
    """
    now = clock(connection)
    changes = [
        Change(
            job=marking.job,
            values={
                "sent_at": now,
                "attempt": marking.job.attempt + 1,
                "request": dict(marking.body),
                "error": None,
                "http_status": None,
            },
            event="submit.marked",
            by=marking.by,
        )
        for marking in markings
    ]
    write_each(connection, changes, now=now, only_if=_NOTHING_SENT)
    return [change.written(now) for change in changes]


def put_back(connection: Connection, grip: Grip, *, why: str, backoff_s: float, by: str) -> Job:
    """Queue a job again of which surely nothing was sent, whether or not its mark was committed."""
    job = held(connection, grip.job_id)
    outcome = not_sent(why, refund=job.sent_at is not None)
    return outcomes.apply(connection, grip, outcome, backoff_s=backoff_s, by=by)


def not_sent(why: str, *, refund: bool) -> Outcome:
    """What becomes of a submission of which surely nothing was sent."""
    return Outcome(State.QUEUED, "submit.not_sent", error=why, defer=True, refund=refund)


def keep_late_answer(
    connection: Connection,
    job_id: int,
    attempt: int,
    outcome: Outcome,
    by: str,
    kept: Sequence[Message] = (),
) -> Job | None:
    """Keep what a worker learned of its submission after it lost the lease.

    The answer is appended to the events whatever the job has become, and repairs a job that is
    still in doubt about the same attempt: it is `running` then, without a worker, for anyone to
    adopt, or whatever else the answer says. Returns the repaired job, or None (also for a job
    whose row is gone).
    """
    # Locked: a repair that met somebody's decision would fail, and take the append back with it.
    statement = select(jobs).where(jobs.c.id == job_id).with_for_update()
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        return None
    append(
        connection,
        job_id=job_id,
        event="submit.late_answer",
        attempt=attempt,
        worker_id=by,
        detail=outcomes.evidence(outcome),
    )
    job = Job.from_row(row)
    if job.state is not State.IN_DOUBT or job.attempt != attempt:
        return None
    repaired = outcomes.apply(connection, Grip.of(job), outcome, seize=True, by=by)
    if kept:
        outcomes.save_messages(connection, repaired, kept)
    return write(connection, Grip.of(repaired), {"worker_id": None})


def learn_chat(
    connection: Connection, grip: Grip, chat_id: str, session_id: str | None, by: str
) -> Job:
    """Commit the chat of a run whose 202 named only the run."""
    return write(
        connection,
        grip,
        {"chat_id": chat_id, "session_id": session_id},
        event="run.chat_found",
        detail={"chat_id": chat_id, "session_id": session_id},
        by=by,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How far a run's clocks have run, in seconds, and its last status, if it has said one."""

    job: Job
    run_status: str | None
    followed_s: float
    quiet_s: float


def progress_each(connection: Connection, seen: Sequence[Seen]) -> list[None]:
    """Save the last status and the clocks of runs. Raises LeaseLost."""
    changes = []
    for one in seen:
        values: dict[str, Any] = {"followed_s": one.followed_s, "quiet_s": one.quiet_s}
        if one.run_status is not None:
            values["run_status"] = one.run_status
        changes.append(Change(job=one.job, values=values))
    write_each(connection, changes, now=clock(connection))
    return [None] * len(changes)


def begin_stop(
    connection: Connection,
    grip: Grip,
    *,
    why: str | None,
    followed_s: float,
    quiet_s: float,
    by: str,
) -> Job:
    """Write down that a stop request goes out, with the clocks that say why, in seconds.

    If we crash after this commits, they tell a successor that a cancellation was our doing.
    """
    return write(
        connection,
        grip,
        {"followed_s": followed_s, "quiet_s": quiet_s},
        event="stop.sent",
        detail={"why": why},
        by=by,
    )


def withhold_stop(
    connection: Connection, grip: Grip, *, why: str | None, reason: str, by: str
) -> Job:
    """Write down that a run should stop, and why it cannot be told to now."""
    return write(
        connection,
        grip,
        {},
        event="stop.withheld",
        detail={"why": why, "reason": reason},
        by=by,
    )
