"""The morning answer: what ran, what failed and why, what waits for what, who works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, column, func, select, table

from orchestrator.states import CLAIMED, State
from orchestrator.store.schema import is_claimed, jobs, workers
from orchestrator.store.types import db_now
from orchestrator.store.verbs.gate import Gate, all_gates
from orchestrator.store.verbs.look import Filter, counts, queue_rows, totals

EXAMPLES = 5
"""Ids that a group of like jobs names."""

LISTED = 20
"""Groups, or jobs, that one part of the answer names at most."""

_waiting = table("waiting", column("id"), column("state"), column("waiting_for"))
_VARYING = re.compile(
    r"wrun_\w+|[0-9a-f]{8}-[0-9a-f-]{27}|\d[\d:.-]*(?: \d[\d:.]+)?", re.IGNORECASE
)


@dataclass(slots=True)
class Group:
    """Jobs that say the same, numbers and ids in the sentence aside.

    `text` is the sentence of one of them, `alike` whether all others have exactly that one.
    """

    error_kind: str | None
    text: str
    count: int = 0
    alike: bool = True
    examples: list[int] = field(default_factory=list)
    last_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """How the jobs of a filter stand, at one moment, with what works on them.

    `counts` are by state and error kind. `in_doubt` and `longest` are rows of a few columns;
    `keys` are (api_origin, key_fingerprint, jobs) of what is live or in doubt.
    """

    now: datetime
    counts: dict[tuple[str, str | None], int]
    totals: dict[str, Any]
    failures: list[Group]
    in_doubt: list[dict[str, Any]]
    waiting: list[Group]
    longest: list[dict[str, Any]]
    keys: list[tuple[str, str, int]]
    gates: list[Gate]
    workers: list[dict[str, Any]]
    paused: list[dict[str, Any]]


def survey(connection: Connection, wanted: Filter) -> Survey:
    """Look at everything in the caller's one transaction, so that the figures agree."""
    alive = worker_rows(connection)
    return Survey(
        now=connection.execute(select(db_now())).scalar_one(),
        counts=counts(connection, wanted),
        totals=totals(connection, wanted),
        failures=_failures(connection, wanted),
        in_doubt=_in_doubt(connection, wanted),
        waiting=_waits(connection, wanted),
        longest=_longest(connection, wanted),
        keys=_keys(connection, wanted),
        gates=_gates_in_use(connection, alive),
        workers=alive,
        paused=[row for row in queue_rows(connection) if row["paused_at"] is not None],
    )


def worker_rows(connection: Connection, *, stopped: bool = False) -> list[dict[str, Any]]:
    """Return the workers that have not stopped, or with `stopped` all, the oldest first.

    Each with `silent_s`, the seconds since its last heartbeat, and `held`, its live jobs.
    """
    held = (
        select(func.count())
        .where(
            jobs.c.worker_id == workers.c.id,
            is_claimed(),
        )
        .scalar_subquery()
    )
    statement = select(workers, db_now().label("now"), held.label("held"))
    if not stopped:
        statement = statement.where(workers.c.stopped_at.is_(None))
    rows = [
        dict(row) for row in connection.execute(statement.order_by(workers.c.started_at)).mappings()
    ]
    for row in rows:
        row["silent_s"] = max(0.0, (row.pop("now") - row["last_heartbeat_at"]).total_seconds())
    return rows


def _gates_in_use(connection: Connection, alive: list[dict[str, Any]]) -> list[Gate]:
    """The gates that hold a live worker back; without a worker, all of them.

    A gate that closed over a key which nobody uses any more stays closed, and stops nothing.
    """
    used = {(worker["api_origin"], worker["key_fingerprint"]) for worker in alive}
    return [
        gate
        for gate in all_gates(connection)
        if not used or (gate.api_origin, gate.key_fingerprint) in used
    ]


def _failures(connection: Connection, wanted: Filter) -> list[Group]:
    statement = (
        select(
            jobs.c.error_kind,
            func.coalesce(jobs.c.error, "").label("text"),
            func.count().label("count"),
            func.min(jobs.c.id).label("first_id"),
            func.max(jobs.c.id).label("last_id"),
            func.max(jobs.c.finished_at).label("last_at"),
        )
        .where(wanted.condition(), jobs.c.state == State.FAILED.value)
        .group_by(jobs.c.error_kind, jobs.c.error)
        .order_by(func.min(jobs.c.id))
    )
    return _grouped(dict(row) for row in connection.execute(statement).mappings())


def _waits(connection: Connection, wanted: Filter) -> list[Group]:
    statement = (
        select(
            _waiting.c.waiting_for.label("text"),
            func.count().label("count"),
            func.min(_waiting.c.id).label("first_id"),
            func.max(_waiting.c.id).label("last_id"),
        )
        .where(
            _waiting.c.id.in_(select(jobs.c.id).where(wanted.condition())),
            _waiting.c.state == State.QUEUED.value,
        )
        .group_by(_waiting.c.waiting_for)
        .order_by(_waiting.c.waiting_for)
    )
    return _grouped(dict(row) for row in connection.execute(statement).mappings())


def _grouped(
    rows: Iterable[dict[str, Any]],
    same: Callable[[str], str] = lambda text: _VARYING.sub("#", text),
) -> list[Group]:
    """Merge rows whose sentences differ in numbers and ids only; the largest group first."""
    groups: dict[tuple[str | None, str], Group] = {}
    for row in rows:
        kind, text = row.get("error_kind"), row["text"]
        group = groups.setdefault((kind, same(text)), Group(kind, text))
        group.count += row["count"]
        group.alike = group.alike and text == group.text
        ids = dict.fromkeys((*group.examples, row["first_id"], row["last_id"]))
        group.examples = sorted(ids)[:EXAMPLES]
        times = [at for at in (group.last_at, row.get("last_at")) if at is not None]
        group.last_at = max(times, default=None)
    return sorted(groups.values(), key=lambda group: (-group.count, group.examples))


def _in_doubt(connection: Connection, wanted: Filter) -> list[dict[str, Any]]:
    statement = (
        select(jobs.c.id, jobs.c.sent_at, jobs.c.error, jobs.c.http_status, jobs.c.resubmit_at)
        .where(wanted.condition(), jobs.c.state == State.IN_DOUBT.value)
        .order_by(jobs.c.id)
        .limit(LISTED)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def _longest(connection: Connection, wanted: Filter) -> list[dict[str, Any]]:
    began = func.coalesce(jobs.c.accepted_at, jobs.c.sent_at)
    statement = (
        select(jobs.c.id, began.label("since"), jobs.c.run_status, jobs.c.quiet_s, jobs.c.worker_id)
        .where(wanted.condition(), jobs.c.state == State.RUNNING.value)
        .order_by(began, jobs.c.id)
        .limit(EXAMPLES)
    )
    return [dict(row) for row in connection.execute(statement).mappings()]


def _keys(connection: Connection, wanted: Filter) -> list[tuple[str, str, int]]:
    bound = [*(state.value for state in CLAIMED), State.IN_DOUBT.value]
    statement = (
        select(jobs.c.api_origin, jobs.c.key_fingerprint, func.count())
        .where(wanted.condition(), jobs.c.state.in_(bound), jobs.c.key_fingerprint.is_not(None))
        .group_by(jobs.c.api_origin, jobs.c.key_fingerprint)
        .order_by(jobs.c.api_origin, jobs.c.key_fingerprint)
    )
    return [(origin, key, number) for origin, key, number in connection.execute(statement)]
