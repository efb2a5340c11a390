"""Column types that read and write the same values on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Float, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def plain(text: str) -> str:
    """Return `text` as a plain text column can hold it: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def write_json(value: Any) -> str:
    """Return a JSON value as ASCII text, so that NUL and lone surrogates survive.

    Infinity and NaN, for which JSON has no word, become null, as JavaScript writes them.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def read_json(text: str | bytes) -> Any:
    """Return the value of a stored JSON text; what Python cannot read comes back as its text.

    Databases take numbers of more digits and a deeper nesting than Python does: a row that was
    written with SQL must not break each query that meets it.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text if isinstance(text, str) else text.decode()


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: _finite(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


class PlainText(TypeDecorator[str]):
    """Text for people and SQL; what a database refuses is replaced, never an error."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Replace what a text column cannot hold."""
        return None if value is None else plain(value)


class JsonText(TypeDecorator[Any]):
    """A JSON value kept as text with ASCII escapes, so that NUL and lone surrogates survive.

    SQL NULL and JSON null are told apart: Python None is SQL NULL.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """PostgreSQL's `json` keeps the text as it is; SQLite has plain text."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSON(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Serialize with ASCII escapes."""
        if value is None or dialect.name == "postgresql":
            return value
        return write_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Parse what was stored."""
        if value is None or dialect.name == "postgresql":
            return value
        return read_json(value)


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; on SQLite the text `YYYY-MM-DD HH:MM:SS.ffffff`."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bring the time to UTC; SQLite's form carries no offset."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Give an aware time back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's clock, plus an offset in seconds.

    The one place where SQL asks for the time. On SQLite it calls a function that the engine
    registers on each connection from the injected clock; on PostgreSQL it is the server's clock.
    """

    type = UtcTime()
    inherit_cache = True
    name = "db_now"

    def __init__(self, offset_s: float = 0.0) -> None:
        super().__init__(literal(offset_s, Float()))


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"orchestrator_now({compiler.process(element.clauses, **kw)})"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + {compiler.process(element.clauses, **kw)} * interval '1 second')"
