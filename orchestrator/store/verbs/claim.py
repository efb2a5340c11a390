"""Claim queued jobs, and put aside those that may not run any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.states import CLAIMED, Endpoint, ErrorKind, State
from orchestrator.store.schema import gates, jobs, queues
from orchestrator.store.types import db_now
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.guarded import Grip, each_that_still_fits, write
from orchestrator.store.verbs.people import called_off


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, and what it may take. `queues` empty means all of them."""

    worker_id: str
    api_origin: str
    key_fingerprint: str
    queues: tuple[str, ...] = ()


def claim(connection: Connection, who: Claimant, limit: int, *, canary: bool = False) -> list[Job]:
    """Move up to `limit` due jobs to `submitting` under fresh leases and return them.

    Tests queue, pause, the queue's own limit and the gate in the same transaction; `canary`
    passes a closed gate, for the one job that tries whether the API is back.
    If we crash here, the jobs are `submitting` with nothing sent: a rescue puts them back.
    """
    if limit <= 0 or (not canary and _gate_closed(connection, who)):
        return []
    limited, closed = _queue_limits(connection)
    taken = _candidates(connection, who, limit, excluded=closed | limited.keys(), canary=canary)
    for name, room in limited.items():
        if room > 0 and (not who.queues or name in who.queues):
            taken += _candidates(connection, who, min(room, limit), only=name, canary=canary)
    taken.sort(key=lambda job: (-job.priority, job.available_at, job.id))
    return [_take(connection, who, job) for job in taken[:limit]]


def _take(connection: Connection, who: Claimant, job: Job) -> Job:
    values = {
        "worker_id": who.worker_id,
        "sent_at": None,
        "api_origin": who.api_origin,
        "key_fingerprint": who.key_fingerprint,
    }
    return write(
        connection,
        Grip.of(job),
        values,
        to=State.SUBMITTING,
        event="job.claimed",
        seize=True,
        by=who.worker_id,
    )


def _candidates(
    connection: Connection,
    who: Claimant,
    limit: int,
    *,
    only: str | None = None,
    excluded: frozenset[str] | set[str] = frozenset(),
    canary: bool = False,
) -> list[Job]:
    condition = and_(is_due(), jobs.c.cancel_requested_at.is_(None))
    if canary:
        # The synchronous endpoint may answer after an hour, and need not even exist.
        condition = and_(condition, jobs.c.endpoint == Endpoint.RUNS.value)
    if only is not None:
        condition = and_(condition, jobs.c.queue == only)
    elif who.queues:
        condition = and_(condition, jobs.c.queue.in_(set(who.queues) - set(excluded)))
    elif excluded:
        condition = and_(condition, jobs.c.queue.not_in(excluded))
    statement = (
        select(jobs)
        .where(condition)
        .order_by(jobs.c.priority.desc(), jobs.c.available_at, jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [Job.from_row(row) for row in connection.execute(statement).mappings()]


def is_due() -> ColumnElement[bool]:
    """The condition of a queued job whose time has come and is not past."""
    now = db_now()
    return and_(
        jobs.c.state == State.QUEUED.value,
        jobs.c.available_at <= now,
        or_(jobs.c.scheduled_at.is_(None), jobs.c.scheduled_at <= now),
        or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > now),
    )


def _gate_closed(connection: Connection, who: Claimant) -> bool:
    statement = select(func.count()).where(
        gates.c.api_origin == who.api_origin,
        gates.c.key_fingerprint == who.key_fingerprint,
        or_(gates.c.closed_at.is_not(None), gates.c.suspected_at.is_not(None)),
    )
    return bool(connection.execute(statement).scalar_one())


def _queue_limits(connection: Connection) -> tuple[dict[str, int], frozenset[str]]:
    """Return the room left in each limited queue, and the names of the paused ones."""
    rows = connection.execute(select(queues)).mappings().all()
    paused = frozenset(row["name"] for row in rows if row["paused_at"] is not None)
    limits = {
        row["name"]: row["concurrency"]
        for row in rows
        if row["concurrency"] is not None and row["name"] not in paused
    }
    if not limits:
        return {}, paused
    held = (
        select(jobs.c.queue, func.count())
        .where(jobs.c.state.in_([state.value for state in CLAIMED]), jobs.c.queue.in_(limits))
        .group_by(jobs.c.queue)
    )
    counts: dict[str, int] = {row[0]: row[1] for row in connection.execute(held)}
    return {name: most - counts.get(name, 0) for name, most in limits.items()}, paused


def anything_to_sweep(connection: Connection) -> bool:
    """True if a queued job expired or was cancelled, or one in doubt is due to be sent again."""
    queued = jobs.c.state == State.QUEUED.value
    for condition in (
        and_(queued, jobs.c.expires_at <= db_now()),
        called_off(),
        and_(jobs.c.state == State.IN_DOUBT.value, jobs.c.resubmit_at <= db_now()),
    ):
        if connection.execute(select(jobs.c.id).where(condition).limit(1)).first():
            return True
    return False


def expire(connection: Connection, limit: int = 500) -> list[Job]:
    """Fail queued jobs whose `expires_at` has passed, and return them."""
    statement = (
        select(jobs)
        .where(jobs.c.state == State.QUEUED.value, jobs.c.expires_at <= db_now())
        .order_by(jobs.c.id)
        .limit(limit)
    )
    due = [Job.from_row(row) for row in connection.execute(statement).mappings()]
    return each_that_still_fits(
        partial(outcomes.apply, connection, Grip.of(job), _expired(job.expires_at), seize=True)
        for job in due
        if job.expires_at is not None
    )


def _expired(expires_at: datetime) -> Outcome:
    return Outcome(
        State.FAILED,
        "job.expired",
        error_kind=ErrorKind.EXPIRED,
        error=f"expires_at ({expires_at.isoformat()}) passed before it could be sent",
    )


def count_due(connection: Connection, queue_names: Sequence[str] = ()) -> int:
    """Count the jobs that `--once` must still wait for: due now, or waiting for a back-off.

    A later `scheduled_at`, a paused queue and a held job in doubt do not count.
    """
    now = db_now()
    condition = or_(
        and_(
            jobs.c.state == State.QUEUED.value,
            or_(jobs.c.scheduled_at.is_(None), jobs.c.scheduled_at <= now),
        ),
        and_(jobs.c.state == State.IN_DOUBT.value, jobs.c.resubmit_at.is_not(None)),
    )
    held_back = select(queues.c.name).where(
        or_(queues.c.paused_at.is_not(None), queues.c.concurrency == 0)
    )
    statement = select(func.count()).where(condition, jobs.c.queue.not_in(held_back))
    if queue_names:
        statement = statement.where(jobs.c.queue.in_(queue_names))
    return int(connection.execute(statement).scalar_one())
