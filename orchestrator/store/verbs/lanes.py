"""The lanes of the queue: the jobs of one queue and priority, in the order of their times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Subquery,
    and_,
    bindparam,
    or_,
    select,
    text,
)

from orchestrator.store.schema import gates, is_claimable, jobs, queues
from orchestrator.store.types import UtcTime, db_now
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.turns import Lane

_LANES = """
WITH RECURSIVE names (queue) AS (
    SELECT (SELECT j.queue FROM jobs j WHERE {claimable} ORDER BY j.queue LIMIT 1)
    UNION ALL
    SELECT (SELECT j.queue FROM jobs j WHERE {claimable} AND j.queue > n.queue
            ORDER BY j.queue LIMIT 1)
    FROM names n WHERE n.queue IS NOT NULL
), lanes (queue, priority) AS (
    SELECT n.queue, (SELECT j.priority FROM jobs j WHERE {claimable} AND j.queue = n.queue
                     ORDER BY j.priority DESC LIMIT 1)
    FROM names n WHERE n.queue IS NOT NULL
    UNION ALL
    SELECT l.queue, (SELECT j.priority FROM jobs j WHERE {claimable} AND j.queue = l.queue
                     AND j.priority < l.priority ORDER BY j.priority DESC LIMIT 1)
    FROM lanes l WHERE l.priority IS NOT NULL
), firsts (queue, priority, since) AS MATERIALIZED (
    SELECT l.queue, l.priority, (SELECT j.available_at FROM jobs j WHERE {claimable}
                                 AND j.queue = l.queue AND j.priority = l.priority
                                 ORDER BY j.available_at LIMIT 1)
    FROM lanes l WHERE l.priority IS NOT NULL
)
SELECT queue, priority, since FROM firsts
"""
"""Each queue and priority that has queued jobs: a few steps along `jobs_claim` for each, however
many jobs wait. (The first by an index's next column is one entry of it.)"""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a person said of a queue. `concurrency` None means without limit."""

    weight: int
    concurrency: int | None


def due_lanes(
    connection: Connection, who: Claimant, *, canary: bool
) -> tuple[dict[str, list[Lane]], dict[str, Rule]]:
    """Return the lanes whose first job is due, by queue, in the order of their first jobs, and
    what is said of their queues. Paused queues have none, nor has any behind a shut gate."""
    found: dict[str, list[Lane]] = {}
    rules: dict[str, Rule] = {}
    asked = _open_lanes(connection.dialect.name, some=bool(who.queues), canary=canary)
    for row in connection.execute(asked, named(who)):
        found.setdefault(row.queue, []).append(Lane(row.queue, row.priority, row.since))
        if row.weight is not None:
            rules[row.queue] = Rule(row.weight, row.concurrency)
    return found, rules


def named(who: Claimant) -> dict[str, Any]:
    """The parameters of what is asked for a worker."""
    gate = {"api_origin": who.api_origin, "key_fingerprint": who.key_fingerprint}
    return {**gate, "queues": who.queues} if who.queues else gate


# To make these statements costs more than to run them: each is made once.


@cache
def all_lanes(dialect: str) -> Subquery:
    """Each lane with the time of its first job."""
    types = {"queue": jobs.c.queue.type, "priority": jobs.c.priority.type, "since": UtcTime()}
    found = text(_LANES.format(claimable=is_claimable(dialect, "j")))
    return found.columns(**types).subquery("lane")


def has_due(lane: Subquery, *, some: bool) -> ColumnElement[bool]:
    """The condition of a lane whose first job is due, of any queue or of `some`."""
    due = lane.c.since <= db_now()
    if some:
        return and_(due, lane.c.queue.in_(bindparam("queues", expanding=True)))
    return due


@cache
def _open_lanes(dialect: str, *, some: bool, canary: bool) -> Select[Any]:
    """The lanes whose first job is due and may be claimed, with what is said of their queues."""
    lane = all_lanes(dialect)
    statement = (
        select(lane, queues.c.weight, queues.c.concurrency)
        .select_from(lane.outerjoin(queues, queues.c.name == lane.c.queue))
        .where(has_due(lane, some=some), queues.c.paused_at.is_(None))
        .order_by(lane.c.since)
    )
    return statement if canary else statement.where(~shut_gate().exists())


@cache
def shut_gate() -> Select[str]:
    """The gate of a worker's origin and key, if it is closed or under suspicion."""
    return select(gates.c.api_origin).where(
        gates.c.api_origin == bindparam("api_origin"),
        gates.c.key_fingerprint == bindparam("key_fingerprint"),
        or_(gates.c.closed_at.is_not(None), gates.c.suspected_at.is_not(None)),
    )
