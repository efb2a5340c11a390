"""The streams of runs, as rows: what was read of them, their places, and what leaving one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import Connection, Delete, delete, func, select

from orchestrator.job import Job
from orchestrator.store.rows import ForEach, Row, for_each, insert_rows
from orchestrator.store.schema import gates, jobs, stream_checkpoints
from orchestrator.store.stamp import clock
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.guarded import Grip, write
from orchestrator.store.verbs.jointly import Change, write_each
from orchestrator.store.verbs.outcomes import Applied


@dataclass(frozen=True, slots=True)
class Segment:
    """Raw chunks of a run's stream, from `first_index` (zero-based) on."""

    first_index: int
    chunks: Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Chunks of a run that are to be saved, with its clocks in seconds."""

    job: Job
    segment: Segment
    followed_s: float
    quiet_s: float


def checkpoint_each(connection: Connection, savings: Sequence[Saving]) -> list[None]:
    """Append chunks to the jobs' checkpoints; the guard comes first. Raises LeaseLost.

    If we crash after this commits, a successor resumes behind these chunks.
    """
    clocks = [
        Change(
            job=saving.job,
            values={"followed_s": saving.followed_s, "quiet_s": saving.quiet_s},
        )
        for saving in savings
    ]
    write_each(connection, clocks, now=clock(connection))
    rows = [
        {
            "job_id": saving.job.id,
            "attempt": saving.job.attempt,
            "first_index": saving.segment.first_index,
            "count": len(saving.segment.chunks),
            "chunks": list(saving.segment.chunks),
        }
        for saving in savings
    ]
    # A commit whose answer was lost may have saved these chunks already.
    places = [[row[name] for row in rows] for name in _PLACE]
    _from_index(connection.dialect.name).run(connection, places)
    insert_rows(connection, stream_checkpoints, rows)
    return [None] * len(savings)


_PLACE = ("job_id", "attempt", "first_index")


@cache
def _from_index(dialect: str) -> ForEach:
    own = stream_checkpoints.c

    def deletion(row: Row) -> Delete:
        return delete(stream_checkpoints).where(
            own.job_id == row.key("job_id"),
            own.attempt == row.c["attempt"],
            own.first_index >= row.c["first_index"],
        )

    return for_each(dialect, {name: own[name].type for name in _PLACE}, deletion)


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


class Place(StrEnum):
    """Whether a stream may be opened."""

    TAKEN = "taken"
    FULL = "full"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A run that was accepted, and whose stream is to be opened at once.

    With `if_safe_at`, an API origin, only where leaving a stream is known to be safe.
    """

    applied: Applied
    if_safe_at: str | None = None


def accept_each(connection: Connection, runs: Sequence[Accepted]) -> list[Job]:
    """Commit the ids of runs and, in the same write, that their streams are held open.

    Whether a place was taken is to be seen of `stream_opened_at`. Raises LeaseLost. If we crash
    after this commits, another worker follows the runs.
    """
    origins = {run.if_safe_at for run in runs if run.if_safe_at is not None}
    safe = {origin for origin in origins if leaving(connection, origin) == "safe"}
    return outcomes.apply_each(
        connection,
        [
            replace(run.applied, streamed=run.if_safe_at is None or run.if_safe_at in safe)
            for run in runs
        ],
    )


def open_each(connection: Connection, runs: Sequence[Job]) -> list[Place]:
    """Write down that streams of these runs are held open. Raises LeaseLost."""
    now = clock(connection)
    changes = [Change(job=job, values={"stream_opened_at": now}) for job in runs]
    write_each(connection, changes, now=now)
    return [Place.TAKEN] * len(changes)


def open_if_safe(connection: Connection, job: Job, *, api_origin: str, trials: int) -> Place:
    """Take a place for a stream where leaving it is safe, or unknown and on trial.

    At most `trials` streams of an origin are held open in the whole database while leaving is
    unknown. Raises LeaseLost.
    """
    full = False
    if leaving(connection, api_origin) == "unknown":
        full = _trials_open(connection, api_origin, job) >= trials
    known = leaving(connection, api_origin)  # once more: who held the lock may have learnt it
    if known == "unsafe":
        return Place.FORBIDDEN
    if known == "unknown" and full:
        return Place.FULL
    return open_each(connection, [job])[0]


def _trials_open(connection: Connection, api_origin: str, apart_from: Job) -> int:
    # Locked, so that two workers do not both count before either has taken its place.
    lock = select(gates.c.api_origin).where(gates.c.api_origin == api_origin)
    connection.execute(lock.order_by(gates.c.key_fingerprint).with_for_update())
    held_open = select(func.count()).where(
        jobs.c.api_origin == api_origin,
        jobs.c.stream_opened_at.is_not(None),
        jobs.c.id != apart_from.id,
    )
    return int(connection.execute(held_open).scalar_one())


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A stream that is not read any more; `left` says that we lost or left it while it was open."""

    job: Job
    left: bool


def close_each(connection: Connection, closings: Sequence[Closing]) -> list[None]:
    """Give the places of streams back. Raises LeaseLost."""
    now = clock(connection)
    changes = [
        Change(
            job=closing.job,
            values={"stream_opened_at": None, **({"stream_left_at": now} if closing.left else {})},
        )
        for closing in closings
    ]
    write_each(connection, changes, now=now)
    return [None] * len(changes)


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

    One run cancelled by it makes the origin unsafe; three that went on make it safe. If we crash
    after this commits, whoever settles a run that was cancelled still knows that a stream was left.
    """
    verdict = "survived" if survived else "cancelled"
    job = write(
        connection,
        grip,
        {"stream_left_at": None if survived else clock(connection)},
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
