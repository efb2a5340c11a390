"""A database clock that a test sets, for the length of one transaction."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from orchestrator.store import sqlite
from orchestrator.store.types import db_now

_BEFORE_THE_SERVERS_OWN = """
CREATE SCHEMA settable;
CREATE FUNCTION settable.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
'SELECT pg_catalog.clock_timestamp() + CAST(current_setting(''settable.ahead'') AS interval)';
SET LOCAL search_path = settable, pg_catalog, public;
SET LOCAL settable.ahead = '0 s';
"""
"""Statements find this function first; it goes when the transaction is rolled back."""


class SettableClock:
    """What `db_now()` gives on a connection, from its first statement to its rollback."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ahead_s = 0
        self._on_sqlite = connection.dialect.name == "sqlite"
        if self._on_sqlite:
            sqlite.register_clock(connection.connection, self._set)
        else:
            connection.exec_driver_sql(_BEFORE_THE_SERVERS_OWN)

    def step(self, seconds: int) -> None:
        """Set the clock forward, or back."""
        self._ahead_s += seconds
        if not self._on_sqlite:
            self._connection.exec_driver_sql(f"SET LOCAL settable.ahead = '{self._ahead_s} s'")

    def read(self) -> datetime:
        """Ask the database for the time."""
        now: datetime = self._connection.execute(select(db_now())).scalar_one()
        return now

    def _set(self) -> datetime:
        return sqlite.system_now() + timedelta(seconds=self._ahead_s)
