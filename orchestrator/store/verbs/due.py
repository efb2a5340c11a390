"""What time alone has made due: jobs to claim, to expire, or to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.states import ErrorKind, State
from orchestrator.store.schema import is_in_doubt, is_queued, jobs, queues
from orchestrator.store.types import db_now
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.guarded import Grip, each_that_still_fits
from orchestrator.store.verbs.lanes import all_lanes, has_due, named, shut_gate
from orchestrator.store.verbs.people import called_off


@dataclass(frozen=True, slots=True)
class Waiting:
    """What time alone, or a program that tells nobody, has made due."""

    claim: bool
    """A queued job's time has come."""
    sweep: bool
    """A queued job expired or was cancelled, or one in doubt is due to be sent again."""
    shut: bool
    """The gate is closed, or under suspicion."""


def waiting(connection: Connection, who: Claimant) -> Waiting:
    """Say what waits for a worker, in one cheap look."""
    asked = _what_waits(connection.dialect.name, some=bool(who.queues))
    return Waiting(*map(bool, connection.execute(asked, named(who)).one()))


@cache
def _what_waits(dialect: str, *, some: bool) -> Select[bool, bool, bool]:
    lane = all_lanes(dialect)
    due = select(lane.c.queue).where(has_due(lane, some=some)).exists()
    return select(due, _anything_to_sweep(), shut_gate().exists())


def _anything_to_sweep() -> ColumnElement[bool]:
    conditions = (
        and_(is_queued(), jobs.c.expires_at <= db_now()),
        *called_off(),
        and_(is_in_doubt(), jobs.c.resubmit_at <= db_now()),
    )
    return or_(*(select(jobs.c.id).where(condition).exists() for condition in conditions))


def expire(connection: Connection, limit: int = 500) -> list[Job]:
    """Fail queued jobs whose `expires_at` has passed, and return them."""
    statement = (
        select(jobs)
        .where(is_queued(), jobs.c.expires_at <= db_now())
        .order_by(jobs.c.expires_at)  # the index's order: that of ids would walk all of history
        .limit(limit)
    )
    due = [Job.from_row(row) for row in connection.execute(statement).mappings()]
    return each_that_still_fits(
        partial(outcomes.apply, connection, Grip.of(job), _expired(job.expires_at), seize=True)
        for job in sorted(due, key=lambda job: job.id)
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
            is_queued(),
            or_(jobs.c.scheduled_at.is_(None), jobs.c.scheduled_at <= now),
        ),
        and_(is_in_doubt(), jobs.c.resubmit_at.is_not(None)),
    )
    held_back = select(queues.c.name).where(
        or_(queues.c.paused_at.is_not(None), queues.c.concurrency == 0)
    )
    statement = select(func.count()).where(condition, jobs.c.queue.not_in(held_back))
    if queue_names:
        statement = statement.where(jobs.c.queue.in_(queue_names))
    return int(connection.execute(statement).scalar_one())
