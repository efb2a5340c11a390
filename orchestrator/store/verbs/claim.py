"""Claim queued jobs, and put aside those that may not run any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
    text,
    true,
)

from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.states import Endpoint, ErrorKind, State
from orchestrator.store.schema import (
    gates,
    is_claimable,
    is_claimed,
    is_in_doubt,
    is_queued,
    jobs,
    queues,
)
from orchestrator.store.types import UtcTime, db_now
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.guarded import Grip, each_that_still_fits, write_all
from orchestrator.store.verbs.people import called_off
from orchestrator.store.verbs.turns import Lane, Turns, rank

PRIORITY_STEP_S = 1800.0
"""After how long a wait a job counts as one step of priority more."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, and what it may take. `queues` empty means all of them."""

    worker_id: str
    api_origin: str
    key_fingerprint: str
    queues: tuple[str, ...] = ()


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
    lanes, rules = _due_lanes(connection, who, canary=canary)
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
class _Rule:
    """What a person said of a queue. `concurrency` None means without limit."""

    weight: int
    concurrency: int | None


def _due_lanes(
    connection: Connection, who: Claimant, *, canary: bool
) -> tuple[dict[str, list[Lane]], dict[str, _Rule]]:
    """Return the lanes whose first job is due, by queue, in the order of their first jobs, and
    what is said of their queues. Paused queues have none, nor has any behind a shut gate."""
    found: dict[str, list[Lane]] = {}
    rules: dict[str, _Rule] = {}
    asked = _open_lanes(connection.dialect.name, some=bool(who.queues), canary=canary)
    for row in connection.execute(asked, _named(who)):
        found.setdefault(row.queue, []).append(Lane(row.queue, row.priority, row.since))
        if row.weight is not None:
            rules[row.queue] = _Rule(row.weight, row.concurrency)
    return found, rules


def _named(who: Claimant) -> dict[str, Any]:
    """The parameters of what is asked for a worker."""
    gate = {"api_origin": who.api_origin, "key_fingerprint": who.key_fingerprint}
    return {**gate, "queues": who.queues} if who.queues else gate


# To make these statements costs more than to run them: each is made once.


@cache
def _lanes(dialect: str) -> Subquery:
    """Each lane with the time of its first job."""
    types = {"queue": jobs.c.queue.type, "priority": jobs.c.priority.type, "since": UtcTime()}
    found = text(_LANES.format(claimable=is_claimable(dialect, "j")))
    return found.columns(**types).subquery("lane")


def _has_due(lane: Subquery, *, some: bool) -> ColumnElement[bool]:
    """The condition of a lane whose first job is due, of any queue or of `some`."""
    due = lane.c.since <= db_now()
    if some:
        return and_(due, lane.c.queue.in_(bindparam("queues", expanding=True)))
    return due


@cache
def _open_lanes(dialect: str, *, some: bool, canary: bool) -> Select[Any]:
    """The lanes whose first job is due and may be claimed, with what is said of their queues."""
    lane = _lanes(dialect)
    statement = (
        select(lane, queues.c.weight, queues.c.concurrency)
        .select_from(lane.outerjoin(queues, queues.c.name == lane.c.queue))
        .where(_has_due(lane, some=some), queues.c.paused_at.is_(None))
        .order_by(lane.c.since)
    )
    return statement if canary else statement.where(~_shut_gate().exists())


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


@cache
def _shut_gate() -> Select[str]:
    return select(gates.c.api_origin).where(
        gates.c.api_origin == bindparam("api_origin"),
        gates.c.key_fingerprint == bindparam("key_fingerprint"),
        or_(gates.c.closed_at.is_not(None), gates.c.suspected_at.is_not(None)),
    )


def _room(connection: Connection, rules: dict[str, _Rule]) -> dict[str, int]:
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
    return Waiting(*map(bool, connection.execute(asked, _named(who)).one()))


@cache
def _what_waits(dialect: str, *, some: bool) -> Select[bool, bool, bool]:
    lane = _lanes(dialect)
    due = select(lane.c.queue).where(_has_due(lane, some=some)).exists()
    return select(due, _anything_to_sweep(), _shut_gate().exists())


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
