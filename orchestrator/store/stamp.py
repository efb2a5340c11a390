"""What a transaction knows of itself: its time, and on PostgreSQL its number."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Text, func, select
from sqlalchemy import cast as sql_cast

from orchestrator.store.types import db_now

_KEY = "orchestrator_stamp"


@dataclass(frozen=True, slots=True)
class _Stamp:
    transaction: object
    at: datetime | None
    number: str | None


_NUMBER = sql_cast(func.pg_current_xact_id(), Text())
"""Gives the transaction a number if it has none yet, as its first write would."""

_CLOCK = select(db_now())
_BOTH = select(db_now(), _NUMBER)
_ASSIGNED = select(sql_cast(func.pg_current_xact_id_if_assigned(), Text()))


def clock(connection: Connection) -> datetime:
    """The database's time, read once for all verbs of a transaction, which writes."""
    known = _known(connection)
    if known.at is not None:
        return known.at
    if connection.dialect.name == "postgresql":
        at, number = connection.execute(_BOTH).one()
        _keep(connection, at, number)
    else:
        at = connection.execute(_CLOCK).scalar_one()
        _keep(connection, at, None)
    return at


def number(connection: Connection) -> str | None:
    """The number under which PostgreSQL will know a transaction; None while it has none."""
    known = _known(connection).number
    return known or connection.execute(_ASSIGNED).scalar_one()


def _known(connection: Connection) -> _Stamp:
    transaction = connection.get_transaction()
    stamp = connection.info.get(_KEY)
    if isinstance(stamp, _Stamp) and stamp.transaction is transaction:
        return stamp
    return _Stamp(transaction, None, None)


def _keep(connection: Connection, at: datetime, number: str | None) -> None:
    connection.info[_KEY] = _Stamp(connection.get_transaction(), at, number)
