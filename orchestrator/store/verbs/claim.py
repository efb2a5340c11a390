"""Claim queued jobs: in turns among queues, by priority and age, within the limits of a queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
    true,
)

from orchestrator.job import Job
from orchestrator.states import Endpoint, State
from orchestrator.store.schema import (
    is_claimable,
    is_claimed,
    jobs,
    queues,
)
from orchestrator.store.types import db_now
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.guarded import Grip, write_all
from orchestrator.store.verbs.lanes import Rule, due_lanes
from orchestrator.store.verbs.turns import Lane, Turns, rank

PRIORITY_STEP_S = 1800.0
"""After how long a wait a job counts as one step of priority more."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which order due jobs are claimed.

    `turns` shares the slots among queues; `step_s` is the wait, in seconds, by which a job gains
    one step of priority within its queue.
    """

    turns: Turns = field(default_factory=Turns)
    step_s: float = PRIORITY_STEP_S


def claim(
    connection: Connection,
    who: Claimant,
    limit: int,
    *,
    order: Order | None = None,
    canary: bool = False,
) -> list[Job]:
    """Move up to `limit` due jobs to `submitting` under fresh leases and return them.

    Tests queue, pause, the queue's own limit and the gate in the same transaction; `canary`
    passes a closed gate, for the one job that tries whether the API is back.
    If we crash here, the jobs are `submitting` with nothing sent: a rescue puts them back.
    """
    if limit <= 0:
        return []
    order = order or Order()
    lanes, rules = due_lanes(connection, who, canary=canary)
    room = _room(connection, rules)
    taken: list[Job] = []
    while lanes and len(taken) < limit:
        weights = {name: rules[name].weight if name in rules else 1 for name in lanes}
        for name, slots in order.turns.deal(weights, limit - len(taken), room).items():
            found = _first(connection, lanes[name], slots, order.step_s, canary=canary)
            taken += _take(connection, who, found)
            if name in room:
                room[name] -= len(found)
            if len(found) < slots:
                del lanes[name]  # what is left there others hold, or it is not due after all
        lanes = {name: each for name, each in lanes.items() if room.get(name, 1) > 0}
    return taken


@dataclass(frozen=True, slots=True)
class _Due:
    """What a claim must know of a job before it is taken."""

    grip: Grip
    place: tuple[float, float]


def _take(connection: Connection, who: Claimant, found: Sequence[_Due]) -> list[Job]:
    values = {
        "worker_id": who.worker_id,
        "sent_at": None,
        "api_origin": who.api_origin,
        "key_fingerprint": who.key_fingerprint,
    }
    return write_all(
        connection,
        [due.grip for due in found],
        values,
        to=State.SUBMITTING,
        event="job.claimed",
        seize=True,
        by=who.worker_id,
    )


def _first(
    connection: Connection, lanes: Sequence[Lane], limit: int, step_s: float, *, canary: bool
) -> list[_Due]:
    """Return the first `limit` due jobs of a queue's lanes, locked against other claims."""
    found: list[_Due] = []
    for lane in sorted(lanes, key=lambda lane: rank(lane.priority, lane.since, step_s)):
        if len(found) >= limit and found[-1].place < rank(lane.priority, lane.since, step_s):
            break  # nothing of this lane, nor of those after it, comes before what is found
        found += _due_of(connection, lane, limit, step_s, canary=canary)
        found = sorted(found, key=lambda due: (due.place, due.grip.job_id))[:limit]
    return found


def _due_of(
    connection: Connection, lane: Lane, limit: int, step_s: float, *, canary: bool
) -> list[_Due]:
    named = {"queue": lane.queue, "priority": lane.priority, "most": limit}
    if (raw := _bytes_of(lane.queue)) is not None:
        named["queue"] = raw
    statement = _first_due(connection.dialect.name, canary=canary, raw=raw is not None)
    return [
        _Due(Grip(row.id, row.lease, State.QUEUED), rank(lane.priority, row.available_at, step_s))
        for row in connection.execute(statement, named)
    ]


@cache
def _first_due(dialect: str, *, canary: bool, raw: bool = False) -> Select[int, int, datetime]:
    """The first due jobs of one lane; `raw` if the queue's name is given as bytes."""
    name = bindparam("queue", type_=LargeBinary() if raw else jobs.c.queue.type)
    condition = and_(
        _is_due(dialect),
        jobs.c.queue == (cast(name, Text()) if raw else name),
        jobs.c.priority == bindparam("priority"),
        jobs.c.cancel_requested_at.is_(None),
    )
    if canary:
        # The synchronous endpoint may answer after an hour, and need not even exist.
        condition = and_(condition, jobs.c.endpoint == Endpoint.RUNS.value)
    return (
        select(jobs.c.id, jobs.c.lease, jobs.c.available_at)
        .where(condition)
        .order_by(jobs.c.available_at, jobs.c.id)
        .limit(bindparam("most", type_=Integer()))
        .with_for_update(skip_locked=True)
    )


def _bytes_of(queue: str) -> bytes | None:
    """A queue's name that is no text; any program may have written bytes into a SQLite file."""
    try:
        queue.encode()
    except UnicodeEncodeError:
        return queue.encode("utf-8", "surrogateescape")
    return None


def _is_due(dialect: str) -> ColumnElement[bool]:
    """The condition of a queued job whose time has come and is not past."""
    now = db_now()
    return and_(
        is_claimable(dialect),
        jobs.c.available_at <= now,
        or_(jobs.c.scheduled_at.is_(None), jobs.c.scheduled_at <= now),
        or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > now),
    )


def _room(connection: Connection, rules: dict[str, Rule]) -> dict[str, int]:
    """Return how many jobs may still be claimed from each limited queue.

    Counting and claiming must not be interleaved with those of another worker: the rows of the
    limited queues are locked until this transaction ends, and the count is a later statement,
    which sees what the last holder of the lock has committed.
    """
    limited = [name for name, rule in rules.items() if rule.concurrency is not None]
    if not limited:
        return {}
    locked = (
        select(queues.c.name, queues.c.concurrency, queues.c.paused_at)
        .where(_one_of(queues.c.name, limited))
        .order_by(queues.c.name)
        .with_for_update()
    )
    rows = connection.execute(locked).all()
    counted = (
        select(jobs.c.queue, func.count())
        .where(is_claimed(), _one_of(jobs.c.queue, limited))
        .group_by(jobs.c.queue)
    )
    live: dict[str, int] = {row[0]: row[1] for row in connection.execute(counted)}
    return {
        row.name: 0 if row.paused_at is not None else row.concurrency - live.get(row.name, 0)
        for row in rows
        if row.concurrency is not None
    }


def _one_of(column: ColumnElement[str], names: Sequence[str]) -> ColumnElement[bool]:
    """The condition of these queues; where a name is no text and cannot be asked for, of all."""
    return true() if any(_bytes_of(name) for name in names) else column.in_(names)
