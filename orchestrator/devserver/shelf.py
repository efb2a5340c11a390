"""Runs and submissions in a SQLite file, so that both outlive the server."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final

from orchestrator.devserver.runs import Order, Run, Runs

_ORDER: Final = tuple(field.name for field in fields(Order))

_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS runs (
    {", ".join(_ORDER)},
    position INTEGER NOT NULL, status TEXT NOT NULL, in_slot INTEGER NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (run_id)
);
CREATE TABLE IF NOT EXISTS posts (prompt TEXT NOT NULL, at REAL NOT NULL);
"""


class SqliteShelf:
    """Keeps runs in `path` (None: in memory, for the life of the process).

    What is written survives the end of the process in any way, though not a power failure.
    """

    def __init__(self, path: Path | None) -> None:
        self._connection = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None
        )
        # A killed process loses nothing that it handed to the operating system.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.executescript(_SCHEMA)

    def load(self, runs: Runs) -> None:
        """Give every kept run to `runs`, oldest first."""
        rows = self._connection.execute("SELECT * FROM runs ORDER BY rowid").fetchall()
        for row in rows:
            *order, position, status, in_slot, updated_at = row
            runs.restore(
                _order(order),
                position=position,
                status=status,
                in_slot=bool(in_slot),
                updated_at=updated_at,
            )

    def add(self, run: Run) -> None:
        """Write a new run."""
        values = (
            *(_plain(value) for value in astuple(run.order)),
            run.position,
            run.status,
            run.in_slot,
            run.updated_at,
        )
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT INTO runs VALUES ({marks})", values)  # noqa: S608 - only marks are put in

    def move(self, run: Run) -> None:
        """Write how far a run has come."""
        self._connection.execute(
            "UPDATE runs SET position = ?, status = ?, in_slot = ?, updated_at = ? "
            "WHERE run_id = ?",
            (run.position, run.status, run.in_slot, run.updated_at, _plain(run.order.run_id)),
        )

    def add_post(self, prompt: str, at: float) -> None:
        """Remember that a submission of `prompt` arrived at `at` (seconds since 1970)."""
        self._connection.execute("INSERT INTO posts VALUES (?, ?)", (_plain(prompt), at))

    def posts(self) -> Counter[str]:
        """Count the submissions that arrived, by prompt."""
        rows = self._connection.execute("SELECT prompt, count(*) FROM posts GROUP BY prompt")
        return Counter({_text(prompt): count for prompt, count in rows})

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _plain(value: object) -> object:
    """SQLite takes no text with lone surrogates: such text goes in as bytes."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _text(value: object) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else str(value)


def _order(columns: list[Any]) -> Order:
    restored = [_text(value) if isinstance(value, bytes) else value for value in columns]
    values: dict[str, Any] = dict(zip(_ORDER, restored, strict=True))
    values["acceptable"] = bool(values["acceptable"])
    return Order(**values)
