"""Statements that are run for each of many rows, with values of their own.

PostgreSQL is told the rows as one parameter, a JSON text: one round trip and one plan for all of
them. On SQLite there is no round trip to save, so the driver runs the statement over the rows. A
row that is large is bound by itself on PostgreSQL too: a JSON text would hold it once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, Self, TypeAlias

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Delete,
    Dialect,
    FromClause,
    Insert,
    Table,
    Text,
    Update,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.types import TypeEngine

from orchestrator.store.types import JsonText, PlainText, UtcTime, plain, write_json

Kinds: TypeAlias = Mapping[str, TypeEngine[Any]]
"""The type of each value of a row, by its name."""

Record: TypeAlias = tuple[Any, ...]
"""A row's values as text, numbers or None, in the order of their names."""

Columns: TypeAlias = Sequence[Sequence[Any]]
"""The values of all rows, name by name."""

Change: TypeAlias = "Update | Delete | Insert"

_ROWS = "rows"
_ITS = "its_"
_PORTION = 2000
_PORTION_CHARS = 1_000_000
"""The most rows, and about the most text, that PostgreSQL is told at once."""


# --- values as text ---------------------------------------------------------------------------


def records(dialect: str, kinds: Kinds, columns: Columns) -> list[Record]:
    """Each row's values as the databases read them from text."""
    return list(zip(*_written(dialect, kinds, columns), strict=True))


def told(dialect: str, kinds: Kinds, columns: Columns) -> Iterator[dict[str, str]]:
    """The parameters of a statement that reads `listed` rows, for as many rows as it takes."""
    for portion in _cut(dialect, kinds, columns):
        yield _as_json(kinds, portion.rows)


def _as_json(kinds: Kinds, rows: Sequence[Record]) -> dict[str, str]:
    objects = [dict(zip(kinds, row, strict=True)) for row in rows]
    text = json.dumps(objects, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return {_ROWS: text}


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


def _time(value: datetime) -> str:
    return _text_of(value.astimezone(UTC))


def _zoned(value: datetime) -> str:
    return _text_of(value.astimezone(UTC)) + "+00:00"


@lru_cache  # most of a batch's times are one
def _text_of(utc: datetime) -> str:
    return utc.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def _sizes(kinds: Kinds, written: Columns) -> list[int]:
    """About how long each row is, as text."""
    sizes = [0] * len(written[0])
    for kind, values in zip(kinds.values(), written, strict=True):
        if isinstance(kind, PlainText | JsonText):
            for index, value in enumerate(values):
                if value is not None:
                    sizes[index] += len(value)
    return sizes


@dataclass(frozen=True, slots=True)
class _Portion:
    """The rows from `start` on that one statement takes; one that is `large` is alone in it."""

    start: int
    rows: Sequence[Record]
    large: bool


def _cut(dialect: str, kinds: Kinds, columns: Columns) -> Iterator[_Portion]:
    """Cut rows into portions."""
    written = _written(dialect, kinds, columns)
    rows = list(zip(*written, strict=True))
    start = chars = 0
    for index, size in enumerate(_sizes(kinds, written)):
        if index > start and (index - start == _PORTION or chars + size > _PORTION_CHARS):
            yield _Portion(start, rows[start:index], large=chars > _PORTION_CHARS)
            start, chars = index, 0
        chars += size
    yield _Portion(start, rows[start:], large=chars > _PORTION_CHARS)


# --- rows in SQL ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A row's values in SQL, by their names: parameters, or columns of rows that are listed."""

    c: Mapping[str, ColumnElement[Any]]
    listed: bool

    def key(self, name: str) -> ColumnElement[Any]:
        """A value to be compared with a table's key.

        Where whole tables are not read in any case (`enable_seqscan`), a list of one leaves
        PostgreSQL no join but to look each row up, in their order: it has no index on lists.
        """
        return any_(array([self.c[name]])) if self.listed else self.c[name]

    @classmethod
    def of_parameters(cls, kinds: Kinds) -> Self:
        """The row whose values are parameters, named as `parameters` has them."""
        names = {name: bindparam(_ITS + name, type_=kind) for name, kind in kinds.items()}
        return cls(names, listed=False)

    @classmethod
    def of_list(cls, dialect: str, kinds: Kinds) -> Self:
        """Each row that the statement is `told`."""
        rows = listed(dialect, kinds)
        return cls({name: rows.c[name] for name in kinds}, listed=dialect == "postgresql")


def parameters(kinds: Kinds, values: Iterable[Any]) -> dict[str, Any]:
    """The parameters of a statement about one row."""
    return {_ITS + name: value for name, value in zip(kinds, values, strict=True)}


def listed(dialect: str, kinds: Kinds) -> FromClause:
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


@dataclass(frozen=True, slots=True, eq=False)
class ForEach:
    """A statement for each of many rows: `alone` with parameters, `together` with listed rows."""

    kinds: Kinds
    alone: Change
    together: Change | None

    def run(self, connection: Connection, columns: Columns) -> int:
        """Run it for all rows, of which there is one at least; return how many rows were hit."""
        if self.together is None:
            sql, arranged = _driver_sql(self, connection.dialect)
            rows = records("sqlite", self.kinds, columns)
            return connection.exec_driver_sql(sql, [arranged(row) for row in rows]).rowcount
        hit = 0
        for portion in _cut("postgresql", self.kinds, columns):
            if portion.large:
                one = parameters(self.kinds, (values[portion.start] for values in columns))
                hit += connection.execute(self.alone, one).rowcount
            else:
                told_rows = _as_json(self.kinds, portion.rows)
                hit += connection.execute(self.together, told_rows).rowcount
        return hit


def for_each(dialect: str, kinds: Kinds, make: Callable[[Row], Change]) -> ForEach:
    """The statement that `make` makes of a row; to make it costs more than to run it."""
    alone = make(Row.of_parameters(kinds))
    together = make(Row.of_list(dialect, kinds)) if dialect == "postgresql" else None
    return ForEach(kinds, alone, together)


@lru_cache(maxsize=256)
def _driver_sql(each: ForEach, dialect: Dialect) -> tuple[str, Callable[[Record], Record]]:
    """A statement as the driver takes it, and what puts a row's values in its order."""
    compiled = each.alone.compile(dialect=dialect)
    names = [_ITS + name for name in each.kinds]
    fixed = {name: value for name, value in compiled.params.items() if name not in names}
    of_all = tuple(fixed.values())
    places = [*names, *fixed]
    order = itemgetter(*(places.index(name) for name in compiled.positiontup or ()))
    return str(compiled), lambda row: order(row + of_all)


# --- rows of a table --------------------------------------------------------------------------


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of the same columns."""
    if rows:
        names = tuple(rows[0])
        each = _inserting(connection.dialect.name, table, names)
        each.run(connection, [[row[name] for row in rows] for name in names])


@lru_cache
def _inserting(dialect: str, table: Table, names: tuple[str, ...]) -> ForEach:
    def insertion(row: Row) -> Insert:
        values = [row.c[name] for name in names]
        if row.listed:
            return insert(table).from_select(names, select(*values), include_defaults=False)
        return insert(table).values(dict(zip(names, values, strict=True)))

    return for_each(dialect, {name: table.c[name].type for name in names}, insertion)
