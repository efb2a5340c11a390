"""Read what people ask for: jobs by filter, events, messages, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Text,
    and_,
    cast,
    func,
    or_,
    select,
    text,
    true,
)

from orchestrator.job import Event, Job, Message
from orchestrator.states import SETTLED, ErrorKind, State
from orchestrator.store.schema import attempts, job_events, jobs, messages, queues
from orchestrator.store.verbs.people import load

__all__ = [
    "Filter",
    "count",
    "counts",
    "events",
    "ids",
    "known_chats",
    "load",
    "messages_of",
    "moving",
    "not_completed",
    "page",
    "previous_attempts",
    "queue_rows",
    "rows",
    "totals",
]


_IDS_A_QUERY = 500
"""SQLite takes at most 32,766 bound values a statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs: every given field must hold; empty tuples and None ask for nothing."""

    ids: tuple[int, ...] = ()
    states: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    batch: str | None = None
    error_kinds: tuple[str, ...] = ()
    tag: str | None = None
    search: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def condition(self) -> ColumnElement[bool]:
        """The filter as SQL."""
        wanted: list[ColumnElement[bool]] = [true()]
        if self.ids:
            wanted.append(jobs.c.id.in_(self.ids))
        if self.states:
            wanted.append(jobs.c.state.in_(self.states))
        if self.queues:
            wanted.append(jobs.c.queue.in_(self.queues))
        if self.batch is not None:
            wanted.append(jobs.c.batch == self.batch)
        if self.error_kinds:
            wanted.append(jobs.c.error_kind.in_(self.error_kinds))
        if self.tag is not None:
            wanted.append(_has_tag(self.tag))
        if self.search is not None:
            wanted.append(jobs.c.prompt.contains(self.search, autoescape=True))
        if self.since is not None:
            wanted.append(jobs.c.created_at >= self.since)
        if self.until is not None:
            wanted.append(jobs.c.created_at < self.until)
        return and_(*wanted)


def _has_tag(tag: str) -> ColumnElement[bool]:
    # Tags are stored as a JSON list of texts: the tag stands there as JSON writes it.
    return cast(jobs.c.tags, Text).contains(json.dumps(tag), autoescape=True)


def page(
    connection: Connection,
    wanted: Filter,
    *,
    limit: int = 100,
    newest: bool = False,
    after_id: int | None = None,
) -> list[Job]:
    """Return up to `limit` jobs in order of id, from behind `after_id` on."""
    order = jobs.c.id.desc() if newest else jobs.c.id
    statement = select(jobs).where(wanted.condition()).order_by(order).limit(limit)
    if after_id is not None:
        statement = statement.where(jobs.c.id < after_id if newest else jobs.c.id > after_id)
    return [Job.from_row(row) for row in connection.execute(statement).mappings()]


def ids(connection: Connection, wanted: Filter) -> list[int]:
    """Return the ids of all jobs that match, in order."""
    statement = select(jobs.c.id).where(wanted.condition()).order_by(jobs.c.id)
    return list(connection.execute(statement).scalars())


def count(connection: Connection, wanted: Filter) -> int:
    """Count the jobs that match."""
    statement = select(func.count()).select_from(jobs).where(wanted.condition())
    return int(connection.execute(statement).scalar_one())


_AT_A_TIME = 10_000
"""Ids a statement: SQLite takes at most 32,766 bound values."""


def moving(connection: Connection, job_ids: Sequence[int]) -> list[int]:
    """Return which of the jobs are not at rest: something still happens to them by itself."""
    found: list[int] = []
    for start in range(0, len(job_ids), _AT_A_TIME):
        statement = select(jobs.c.id).where(
            jobs.c.id.in_(job_ids[start : start + _AT_A_TIME]),
            jobs.c.state.not_in([state.value for state in SETTLED]),
            or_(jobs.c.state != State.IN_DOUBT.value, jobs.c.resubmit_at.is_not(None)),
        )
        found.extend(connection.execute(statement.order_by(jobs.c.id)).scalars())
    return found


def not_completed(connection: Connection, job_ids: Sequence[int]) -> list[Job]:
    """Return those of the jobs that are not `completed`, in order of id."""
    found: list[Job] = []
    for start in range(0, len(job_ids), _AT_A_TIME):
        statement = (
            select(jobs)
            .where(
                jobs.c.id.in_(job_ids[start : start + _AT_A_TIME]),
                jobs.c.state != State.COMPLETED.value,
            )
            .order_by(jobs.c.id)
        )
        found.extend(Job.from_row(row) for row in connection.execute(statement).mappings())
    return found


def counts(connection: Connection, wanted: Filter) -> dict[tuple[str, str | None], int]:
    """Count the matching jobs by state and error kind."""
    statement = (
        select(jobs.c.state, jobs.c.error_kind, func.count())
        .where(wanted.condition())
        .group_by(jobs.c.state, jobs.c.error_kind)
    )
    return {(state, kind): number for state, kind, number in connection.execute(statement)}


def totals(connection: Connection, wanted: Filter) -> dict[str, Any]:
    """Sum cost and tokens of the matching jobs, their earlier attempts included.

    `of_unknown_cost` counts the runs that are over and told no cost, and those that may have been
    started and of which nothing more is known: the sum is without them.
    """
    chosen = select(jobs.c.id).where(wanted.condition())
    figures: dict[str, Any] = {"cost_usd": 0.0, "total_tokens": 0, "of_unknown_cost": 0}
    for table, owner in ((jobs, jobs.c.id), (attempts, attempts.c.job_id)):
        statement = select(
            func.coalesce(func.sum(table.c.cost_usd), 0.0),
            func.coalesce(func.sum(table.c.total_tokens), 0),
            func.count().filter(
                table.c.cost_usd.is_(None),
                (table.c.accepted_at.is_not(None) & table.c.finished_at.is_not(None))
                | (table.c.state == State.IN_DOUBT)
                | (table.c.error_kind == ErrorKind.RUN_LOST),
            ),
        ).where(owner.in_(chosen))
        cost, tokens, unknown = connection.execute(statement).one()
        figures["cost_usd"] += float(cost)
        figures["total_tokens"] += int(tokens)
        figures["of_unknown_cost"] += int(unknown)
    return figures


def events(connection: Connection, job_id: int, *, after_id: int = 0) -> list[Event]:
    """Return a job's events in order, from behind `after_id` on."""
    statement = (
        select(job_events)
        .where(job_events.c.job_id == job_id, job_events.c.id > after_id)
        .order_by(job_events.c.id)
    )
    return [Event(**row) for row in connection.execute(statement).mappings()]


def messages_of(connection: Connection, job_id: int, attempt: int | None = None) -> list[Message]:
    """Return the messages of an attempt, by default of the latest, in order."""
    if attempt is None:
        attempt = load(connection, job_id).attempt
    statement = (
        select(
            messages.c.position,
            messages.c.message_id,
            messages.c.role,
            messages.c.text,
            messages.c.message,
            messages.c.source,
        )
        .where(messages.c.job_id == job_id, messages.c.attempt == attempt)
        .order_by(messages.c.position)
    )
    return [Message(**row) for row in connection.execute(statement).mappings()]


def previous_attempts(connection: Connection, job_id: int) -> Sequence[Row[Any]]:
    """Return what the older attempts of a job left."""
    statement = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.attempt)
    return connection.execute(statement).all()


def queue_rows(connection: Connection) -> list[dict[str, Any]]:
    """Return each queue with its settings and its jobs by state."""
    numbers: dict[str, dict[str, int]] = {}
    grouped = select(jobs.c.queue, jobs.c.state, func.count()).group_by(jobs.c.queue, jobs.c.state)
    for name, state, number in connection.execute(grouped):
        numbers.setdefault(name, {})[state] = number
    known = {row["name"]: dict(row) for row in connection.execute(select(queues)).mappings()}
    blank = {"paused_at": None, "paused_reason": None, "concurrency": None, "weight": 1}
    return [
        {**blank, **known.get(name, {}), "name": name, "jobs": numbers.get(name, {})}
        for name in sorted({*numbers, *known})
    ]


def known_chats(connection: Connection, chat_ids: Sequence[str]) -> set[str]:
    """Return which of the chats belong to a job, or to an older attempt of one."""
    found: set[str] = set()
    for start in range(0, len(chat_ids), _IDS_A_QUERY):
        part = chat_ids[start : start + _IDS_A_QUERY]
        for column in (jobs.c.chat_id, attempts.c.chat_id):
            found.update(connection.execute(select(column).where(column.in_(part))).scalars())
    return found


def rows(
    connection: Connection, query: str, values: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a literal query, as dictionaries."""
    return [dict(row) for row in connection.execute(text(query), dict(values or {})).mappings()]
