"""Insert jobs with their first event: a few statements for one job, and not more for thousands.

What a row does not name the table's defaults fill in, as for a plain `INSERT INTO jobs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnElement,
    Connection,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.selectable import Select

from orchestrator.states import State
from orchestrator.store.schema import job_events, jobs
from orchestrator.store.types import JsonText, PlainText, UtcTime, db_now, plain, write_json
from orchestrator.store.wake import CHANNEL

STARTING = {"queue": "default", "max_attempts": 1, "priority": 0, "endpoint": "runs"}
"""The defaults of the columns that a caller may name and that cannot be empty."""

_TIMES = ("available_at", "created_at", "updated_at")

_PORTION = 2000
_PORTION_CHARS = 1_000_000
"""The most rows, and about the most text, of one statement to PostgreSQL."""

Record = tuple[Any, ...]


def insert_jobs(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert jobs from checked columns with an event each, tell the workers, return the ids.

    The ids are in the order of the rows. All have one time, of the database's clock. Raises
    IntegrityError for a `unique_key` that another job has.
    """
    if not rows:
        return []
    names = tuple(sorted(set[str]().union(*rows)))
    if connection.dialect.name == "postgresql":
        records = _records(names, rows, zone="+00:00")
        return _into_postgresql(connection, names, records)
    return _into_sqlite(connection, names, _records(names, rows))


# --- values as text ---------------------------------------------------------------------------


def _records(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], *, zone: str = ""
) -> list[Record]:
    """Each row's values, in the order of `names`, as the databases read them from text."""

    def time(value: datetime) -> str:
        utc = value.astimezone(UTC).replace(tzinfo=None)
        return utc.isoformat(sep=" ", timespec="microseconds") + zone

    written: Mapping[type, Callable[[Any], Any]] = {
        PlainText: plain,
        JsonText: write_json,
        UtcTime: time,
    }
    columns = []
    for name in names:
        unnamed = STARTING.get(name)
        values = [row.get(name, unnamed) for row in rows]
        write = written.get(type(jobs.c[name].type))
        if write is not None:
            values = [None if value is None else write(value) for value in values]
        columns.append(values)
    return list(zip(*columns, strict=True))


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


def _into_postgresql(
    connection: Connection, names: tuple[str, ...], records: Sequence[Record]
) -> list[int]:
    ids: list[int] = []
    portions = list(_portions(records))
    at = connection.execute(select(db_now())).scalar_one() if len(portions) > 1 else None
    statement = _all(names)
    for portion in portions:
        told = [
            {"number": number, **dict(zip(names, record, strict=True))}
            for number, record in enumerate(portion)
        ]
        found = connection.execute(statement, {"rows": json.dumps(told), "at": at}).scalars()
        ids += sorted(found)  # given out in the order of the rows, returned in any
    return ids


def _portions(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Cut the rows into what one statement takes."""
    start = chars = 0
    for index, record in enumerate(records):
        own = sum(len(value) for value in record if isinstance(value, str))
        if index > start and (index - start == _PORTION or chars + own > _PORTION_CHARS):
            yield records[start:index]
            start, chars = index, 0
        chars += own
    yield records[start:]


@lru_cache
def _all(names: tuple[str, ...]) -> Select[int]:
    """Rows, events and the wake-up in one statement: each costs a round trip otherwise.

    The values travel as one JSON text, which every driver can send.
    """
    kinds = {name: jobs.c[name].type for name in names}
    given = (
        func.json_to_recordset(cast(bindparam("rows", type_=Text()), JSON))
        .table_valued(
            column("number", Integer),
            *(
                column(name, Text() if isinstance(kind, JsonText) else kind)
                for name, kind in kinds.items()
            ),
            name="given",
        )
        .render_derived(with_types=True)
    )
    clock = _clock(func.coalesce(cast(bindparam("at", type_=UtcTime()), UtcTime()), db_now()))
    told = select(func.pg_notify(CHANNEL, "").label("told")).cte("told").prefix_with("MATERIALIZED")
    values = [
        cast(given.c[name], JSON) if isinstance(kind, JsonText) else given.c[name]
        for name, kind in kinds.items()
    ]
    columns, source = _inserting(names, values, clock)
    job = (
        insert(jobs)
        .from_select(
            columns,
            source.select_from(given).join(clock, literal(True)).order_by(given.c.number),
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
    return select(event.c.job_id).select_from(event).join(told, literal(True))
