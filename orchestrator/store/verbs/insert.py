"""Insert jobs with their first event: a few statements for one job, and not more for thousands.

What a row does not name the table's defaults fill in, as for a plain `INSERT INTO jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Integer,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.selectable import Select
from sqlalchemy.types import TypeEngine

from orchestrator.states import State
from orchestrator.store.rows import Columns, Kinds, Record, listed, records, told
from orchestrator.store.schema import job_events, jobs
from orchestrator.store.types import UtcTime, db_now
from orchestrator.store.wake import CHANNEL

STARTING = {"queue": "default", "max_attempts": 1, "priority": 0, "endpoint": "runs"}
"""The defaults of the columns that a caller may name and that cannot be empty."""

_TIMES = ("available_at", "created_at", "updated_at")


def insert_jobs(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert jobs from checked columns with an event each, tell the workers, return the ids.

    The ids are in the order of the rows. All have one time, of the database's clock. Raises
    IntegrityError for a `unique_key` that another job has.
    """
    if not rows:
        return []
    names = tuple(sorted(set[str]().union(*rows)))
    columns = [[row.get(name, STARTING.get(name)) for row in rows] for name in names]
    if connection.dialect.name == "postgresql":
        return _into_postgresql(connection, names, columns)
    return _into_sqlite(connection, names, records("sqlite", _kinds(names), columns))


def _kinds(names: Sequence[str]) -> dict[str, TypeEngine[Any]]:
    return {name: jobs.c[name].type for name in names}


def _inserting(
    names: Sequence[str], values: Sequence[ColumnElement[Any]], clock: CTE
) -> tuple[list[str], Select[Any]]:
    """The columns to insert into, and the values of the first followed by the times."""
    available: ColumnElement[Any] = clock.c.at
    if "scheduled_at" in names:
        available = func.coalesce(values[names.index("scheduled_at")], available)
    return [*names, *_TIMES], select(*values, available, clock.c.at, clock.c.at)


# --- SQLite -----------------------------------------------------------------------------------


def _into_sqlite(
    connection: Connection, names: tuple[str, ...], records: Sequence[Record]
) -> list[int]:
    """The first row takes the file's write lock: from there on, the next ids are ours alone."""
    first, *others = records
    values = {f"its_{name}": value for name, value in zip(names, first, strict=True)}
    found = connection.execute(_first(names), values).one()
    if others:
        _other(connection, names, others, after=found.id, at=found.at)
    ids = range(found.id, found.id + len(records))
    connection.execute(_EVENTS, {"first": ids[0], "last": ids[-1]})
    return list(ids)


def _clock(at: ColumnElement[Any]) -> CTE:
    return select(at.label("at")).cte("clock").prefix_with("MATERIALIZED")


@lru_cache
def _first(names: tuple[str, ...]) -> ReturningInsert[Any]:
    clock = _clock(db_now())
    values = [bindparam(f"its_{name}", type_=Text()) for name in names]
    columns, source = _inserting(names, values, clock)
    return (
        insert(jobs)
        .from_select(columns, source.select_from(clock), include_defaults=False)
        .returning(jobs.c.id, type_coerce(jobs.c.created_at, Text).label("at"))
    )


def _other(
    connection: Connection, names: Sequence[str], records: Sequence[Record], *, after: int, at: str
) -> None:
    scheduled = names.index("scheduled_at") if "scheduled_at" in names else None
    columns = ("id", *names, *_TIMES)
    marks = ", ".join("?" * len(columns))
    connection.exec_driver_sql(
        f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608 - our own names
        [
            (job_id, *record, at if scheduled is None else record[scheduled] or at, at, at)
            for job_id, record in enumerate(records, after + 1)
        ],
    )


_EVENT = ("event", "to_state", "attempt", "job_id", "at")
_SAID = (literal("job.enqueued"), literal(State.QUEUED.value), literal(0))

_EVENTS = insert(job_events).from_select(
    _EVENT,
    select(*_SAID, jobs.c.id, jobs.c.created_at)
    .where(jobs.c.id.between(bindparam("first"), bindparam("last")))
    .order_by(jobs.c.id),
    include_defaults=False,
)


# --- PostgreSQL -------------------------------------------------------------------------------


def _into_postgresql(connection: Connection, names: tuple[str, ...], columns: Columns) -> list[int]:
    ids: list[int] = []
    statement, kinds = _all(names)
    at: datetime | None = None
    for portion in told("postgresql", kinds, [range(len(columns[0])), *columns]):
        found = connection.execute(statement, {**portion, "at": at}).all()
        ids += sorted(row[0] for row in found)  # given out in order of the rows, returned in any
        at = found[0].at
    return ids


@lru_cache
def _all(names: tuple[str, ...]) -> tuple[Select[int, datetime], Kinds]:
    """Rows, events and the wake-up in one statement: each costs a round trip otherwise."""
    kinds = {"number": Integer(), **_kinds(names)}
    rows = listed("postgresql", kinds)
    clock = _clock(func.coalesce(cast(bindparam("at", type_=UtcTime()), UtcTime()), db_now()))
    woken = select(func.pg_notify(CHANNEL, "").label("woken")).cte("woken")
    woken = woken.prefix_with("MATERIALIZED")
    values = [rows.c[name] for name in names]
    columns, source = _inserting(names, values, clock)
    job = (
        insert(jobs)
        .from_select(
            columns,
            source.select_from(rows).join(clock, literal(True)).order_by(rows.c.number),
            include_defaults=False,
        )
        .returning(jobs.c.id)
        .cte("job")
    )
    event = (
        insert(job_events)
        .from_select(
            _EVENT,
            select(*_SAID, job.c.id, clock.c.at).select_from(job).join(clock, literal(True)),
            include_defaults=False,
        )
        .returning(job_events.c.job_id)
        .cte("event")
    )
    done = select(event.c.job_id, clock.c.at).select_from(event)
    return done.join(woken, literal(True)).join(clock, literal(True)), kinds
