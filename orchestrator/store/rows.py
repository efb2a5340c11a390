"""Rows of values that travel as one parameter: a JSON text, which every driver can send.

A statement for the rows of many jobs costs one round trip, one plan and one change of the
interpreter's lock; a driver that runs a statement over the rows pays each of them once a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Delete,
    FromClause,
    Insert,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.sql.base import Executable
from sqlalchemy.types import TypeEngine

from orchestrator.store.types import JsonText, PlainText, UtcTime, plain, write_json

Kinds: TypeAlias = Mapping[str, TypeEngine[Any]]
"""The type of each value of a row, by its name."""

Record: TypeAlias = tuple[Any, ...]
"""A row's values as text, numbers or None, in the order of their names."""

Columns: TypeAlias = Sequence[Sequence[Any]]
"""The values of all rows, name by name."""

_ROWS = "rows"
_PORTION = 2000
_PORTION_CHARS = 1_000_000
"""The most rows, and about the most text, of one statement."""


# --- values as text ---------------------------------------------------------------------------


def told(dialect: str, kinds: Kinds, columns: Columns) -> Iterator[dict[str, str]]:
    """The parameters of a statement that reads `given` rows, for as many rows as it takes."""
    names = tuple(kinds)
    written = _written(dialect, kinds, columns)
    rows = list(zip(*written, strict=True))
    for start, end in _portions(_sizes(kinds, written)):
        objects = [dict(zip(names, row, strict=True)) for row in rows[start:end]]
        text = json.dumps(objects, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        yield {_ROWS: text}


def records(dialect: str, kinds: Kinds, columns: Columns) -> list[Record]:
    """Each row's values as the databases read them from text."""
    return list(zip(*_written(dialect, kinds, columns), strict=True))


def _written(dialect: str, kinds: Kinds, columns: Columns) -> list[Sequence[Any]]:
    writes: Mapping[type, Callable[[Any], Any]] = {
        PlainText: plain,
        JsonText: write_json,
        UtcTime: _zoned if dialect == "postgresql" else _time,
    }
    written = []
    for kind, values in zip(kinds.values(), columns, strict=True):
        write = writes.get(type(kind))
        if write is not None:
            values = [None if value is None else write(value) for value in values]
        written.append(values)
    return written


@lru_cache  # most of a batch's times are one
def _time(value: datetime) -> str:
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _zoned(value: datetime) -> str:
    return _time(value) + "+00:00"


def _sizes(kinds: Kinds, written: Columns) -> list[int]:
    """About how long each row is, as text."""
    sizes = [0] * len(written[0])
    for kind, values in zip(kinds.values(), written, strict=True):
        if isinstance(kind, PlainText | JsonText):
            for index, value in enumerate(values):
                if value is not None:
                    sizes[index] += len(value)
    return sizes


def _portions(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut rows of these sizes into what one statement takes: the bounds of each portion."""
    start = chars = 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == _PORTION or chars + size > _PORTION_CHARS):
            yield start, index
            start, chars = index, 0
        chars += size
    yield start, len(sizes)


# --- rows in SQL ------------------------------------------------------------------------------


def given(dialect: str, kinds: Kinds) -> FromClause:
    """The rows that a statement is `told`, as a table with a column of each name."""
    text = bindparam(_ROWS, type_=Text())
    if dialect != "postgresql":
        texts = func.json_each(text).table_valued("value", name="texts")
        each = (
            func.json_extract(texts.c.value, literal_column(f"'$.{name}'")).label(name)
            for name in kinds
        )
        return select(*each).subquery("given")
    typed = {name: Text() if isinstance(kind, JsonText) else kind for name, kind in kinds.items()}
    read = (
        func.json_to_recordset(cast(text, JSON))
        .table_valued(*(column(name, kind) for name, kind in typed.items()), name="texts")
        .render_derived(with_types=True)
    )
    values: list[ColumnElement[Any]] = [
        cast(read.c[name], JSON).label(name) if isinstance(kind, JsonText) else read.c[name]
        for name, kind in kinds.items()
    ]
    return select(*values).subquery("given")


def one_by_one(dialect: str, key: ColumnElement[Any]) -> ColumnElement[Any]:
    """A key of given rows, to be compared with a table's own.

    A list of one leaves PostgreSQL no join but to look each row up by its key, in their order.
    Otherwise it would read a table that it believes small from end to end, and a prepared
    statement goes on doing so when the table has grown.
    """
    return any_(array([key])) if dialect == "postgresql" else key


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of the same columns in one statement."""
    if rows:
        names = tuple(rows[0])
        statement, kinds = _inserting(connection.dialect.name, table, names)
        run(connection, statement, kinds, [[row[name] for row in rows] for name in names])


@lru_cache
def _inserting(dialect: str, table: Table, names: tuple[str, ...]) -> tuple[Insert, Kinds]:
    kinds = {name: table.c[name].type for name in names}
    rows = given(dialect, kinds)
    values = select(*(rows.c[name] for name in names))
    return insert(table).from_select(names, values, include_defaults=False), kinds


def deleting(
    dialect: str,
    table: Table,
    kinds: Kinds,
    which: Callable[[FromClause, FromClause], ColumnElement[bool]],
) -> Delete:
    """The statement that deletes the rows of a table for which `which(table, given)` is true."""
    rows = given(dialect, kinds)
    if dialect == "postgresql":
        return delete(table).where(which(table, rows))
    own = table.alias("own")
    keys = [column.name for column in table.primary_key]
    found = select(*(own.c[key] for key in keys)).join_from(rows, own, which(own, rows))
    return delete(table).where(tuple_(*(table.c[key] for key in keys)).in_(found))


def run(connection: Connection, statement: Executable, kinds: Kinds, columns: Columns) -> int:
    """Run a statement that reads given rows, and return how many rows of a table it hit."""
    return sum(
        connection.execute(statement, portion).rowcount
        for portion in told(connection.dialect.name, kinds, columns)
    )
