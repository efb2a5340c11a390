"""The acts of a worker on a job that it holds: mark, progress, checkpoints, streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import State
from orchestrator.store.schema import gates, jobs, stream_checkpoints
from orchestrator.store.types import db_now
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.guarded import Grip, append, held, write


def mark(connection: Connection, grip: Grip, body: Mapping[str, Any], by: str) -> Job:
    """Write down that the request begins to go out: `sent_at`, the attempt's number, the body.

    Raises LeaseLost if the job is not ours any more or its cancellation was asked for; then
    nothing may be sent. If we crash after this commits, the job is in doubt.
    """
    return write(
        connection,
        grip,
        {
            "sent_at": db_now(),
            "attempt": jobs.c.attempt + 1,
            "request": dict(body),
            "error": None,
            "http_status": None,
        },
        event="submit.marked",
        only_if=jobs.c.sent_at.is_(None) & jobs.c.cancel_requested_at.is_(None),
        by=by,
    )


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


def progress(
    connection: Connection, grip: Grip, *, run_status: str | None, followed_s: float, quiet_s: float
) -> Job:
    """Save the run's last status and how far its clocks have run, in seconds."""
    values: dict[str, Any] = {"followed_s": followed_s, "quiet_s": quiet_s}
    if run_status is not None:
        values["run_status"] = run_status
    return write(connection, grip, values)


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


# --- stream -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """Raw chunks of a run's stream, from `first_index` (zero-based) on."""

    first_index: int
    chunks: Sequence[Any]


def checkpoint(
    connection: Connection, grip: Grip, segment: Segment, *, followed_s: float, quiet_s: float
) -> Job:
    """Append chunks to the job's checkpoint; the guard comes first.

    If we crash after this commits, a successor resumes behind these chunks.
    """
    job = write(connection, grip, {"followed_s": followed_s, "quiet_s": quiet_s})
    # A commit whose answer was lost may have saved these chunks already.
    connection.execute(
        delete(stream_checkpoints).where(
            stream_checkpoints.c.job_id == job.id,
            stream_checkpoints.c.attempt == job.attempt,
            stream_checkpoints.c.first_index >= segment.first_index,
        )
    )
    connection.execute(
        insert(stream_checkpoints).values(
            job_id=job.id,
            attempt=job.attempt,
            first_index=segment.first_index,
            count=len(segment.chunks),
            chunks=list(segment.chunks),
        )
    )
    return job


def segments(
    connection: Connection, job_id: int, attempt: int, first_index: int = 0
) -> list[Segment]:
    """Return the saved chunks that follow each other without a gap from `first_index` on."""
    rows = connection.execute(
        select(stream_checkpoints.c.first_index, stream_checkpoints.c.chunks)
        .where(
            stream_checkpoints.c.job_id == job_id,
            stream_checkpoints.c.attempt == attempt,
            stream_checkpoints.c.first_index >= first_index,
        )
        .order_by(stream_checkpoints.c.first_index)
    )
    whole: list[Segment] = []
    expected = first_index
    for start, chunks in rows:
        if start != expected:
            break
        whole.append(Segment(start, chunks))
        expected += len(chunks)
    return whole


def open_stream(connection: Connection, grip: Grip, *, at_most: int | None) -> bool:
    """Take a place for a stream, if there is one; `at_most` None means without limit.

    The number counts the streams held open on one API origin in the whole database.
    """
    if at_most is not None:
        origin = select(jobs.c.api_origin).where(jobs.c.id == grip.job_id).scalar_subquery()
        held = select(func.count()).where(
            jobs.c.api_origin == origin,
            jobs.c.stream_opened_at.is_not(None),
            jobs.c.id != grip.job_id,
        )
        if connection.execute(held).scalar_one() >= at_most:
            return False
    write(connection, grip, {"stream_opened_at": db_now()})
    return True


def close_stream(connection: Connection, grip: Grip, *, left: bool) -> Job:
    """Give a stream's place back; `left` says that we lost or left it while it was open."""
    values: dict[str, Any] = {"stream_opened_at": None}
    if left:
        values["stream_left_at"] = db_now()
    return write(connection, grip, values)


SAFE_AFTER_BREAKS = 3
"""Breaks that a run must survive before leaving a stream counts as safe at an origin."""


def leaving(connection: Connection, api_origin: str) -> str:
    """What is known of leaving a stream at an origin: `unknown`, `safe` or `unsafe`."""
    found = set(
        connection.execute(
            select(gates.c.leaving).where(gates.c.api_origin == api_origin)
        ).scalars()
    )
    return next((word for word in ("unsafe", "safe") if word in found), "unknown")


def learn_leaving(
    connection: Connection, grip: Grip, api_origin: str, *, survived: bool, by: str
) -> Job:
    """Remember whether a run survived a stream that we lost or left.

    One run cancelled by it makes the origin unsafe; three that went on make it safe.
    """
    verdict = "survived" if survived else "cancelled"
    job = write(
        connection,
        grip,
        {"stream_left_at": None},
        event="stream.leaving_learnt",
        detail={"api_origin": api_origin, "run": verdict},
        by=by,
    )
    if survived:
        counted = gates.c.breaks_survived + 1
        connection.execute(
            gates.update().where(gates.c.api_origin == api_origin).values(breaks_survived=counted)
        )
        connection.execute(
            gates.update()
            .where(
                gates.c.api_origin == api_origin,
                gates.c.leaving == "unknown",
                gates.c.breaks_survived >= SAFE_AFTER_BREAKS,
            )
            .values(leaving="safe")
        )
    else:
        connection.execute(
            gates.update().where(gates.c.api_origin == api_origin).values(leaving="unsafe")
        )
    return job
