"""Guarded writes of many jobs at once, each with values of its own.

A verb of this kind takes the items of many callers and gives each its answer. It costs one
statement for all of them, made once and run for each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Update

from orchestrator.errors import LeaseLost
from orchestrator.job import Job
from orchestrator.states import State
from orchestrator.store.rows import ForEach, Row, for_each, insert_rows
from orchestrator.store.schema import job_events, jobs
from orchestrator.store.verbs.guarded import HELD, fenced, held_as, moving


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a holder writes to its job; `job` as the holder knows it is the fence.

    `values` are plain values, no SQL. The others are those of `guarded.write_all`.
    """

    job: Job
    values: Mapping[str, Any]
    to: State | None = None
    event: str | None = None
    detail: Mapping[str, Any] | None = None
    by: str | None = None

    def columns(self, now: datetime) -> dict[str, Any]:
        """All that is written, at the database's time `now`. A move is checked."""
        move = moving(self.job.state, self.to, self.values, self.event)
        return {**self.values, **move, "updated_at": now}

    def written(self, now: datetime) -> Job:
        """The job as it stands after the write: what its holder knew, and what was written.

        What others may write beside a holder, a wish to cancel, is not looked up.
        """
        return self.job.evolve(self.columns(now))


_Row: TypeAlias = tuple[Job, dict[str, Any]]
_Shape: TypeAlias = tuple[State, tuple[str, ...]]
"""The state that a job is in and the columns that are written: one statement each."""


def write_each(
    connection: Connection,
    changes: Sequence[Change],
    *,
    now: datetime,
    only_if: ColumnElement[bool] | None = None,
) -> None:
    """Make each change to its own job, all or none.

    `now` is the database's time. Raises LeaseLost unless every job is as its holder believes; the
    caller rolls back then.
    """
    shapes: dict[_Shape, list[_Row]] = defaultdict(list)
    for change in changes:
        columns = change.columns(now)
        shapes[change.job.state, tuple(sorted(columns))].append((change.job, columns))
    for shape, rows in shapes.items():
        _write_alike(connection, shape, rows, only_if)
    _log_each(connection, [change for change in changes if change.event is not None], now)


def _write_alike(
    connection: Connection, shape: _Shape, rows: Sequence[_Row], only_if: ColumnElement[bool] | None
) -> None:
    came_from, names = shape
    held = [[job.id for job, _ in rows], [job.lease for job, _ in rows]]
    values = [[columns[name] for _, columns in rows] for name in names]
    update = _update(connection.dialect.name, came_from, names, only_if)
    hit = update.run(connection, [*held, *values])
    if hit != len(rows):
        which = ", ".join(f"{job.id} under lease {job.lease}" for job, _ in rows)
        raise LeaseLost(
            f"job {which} is not {came_from.value} as believed ({hit} of {len(rows)} are)"
        )


@lru_cache(maxsize=128)
def _update(
    dialect: str, came_from: State, names: tuple[str, ...], only_if: ColumnElement[bool] | None
) -> ForEach:
    """The statement for changes of these columns."""

    def update(row: Row) -> Update:
        changed = {name: row.c[name] for name in names}
        return fenced(held_as(row), came_from, only_if).values(changed)

    kinds = {name: jobs.c[name].type for name in names}
    return for_each(dialect, {**HELD, **kinds}, update)


def _log_each(connection: Connection, changes: Sequence[Change], now: datetime) -> None:
    rows = [
        {
            "job_id": change.job.id,
            "at": now,
            "event": change.event,
            "from_state": change.job.state.value,
            "to_state": (change.to or change.job.state).value,
            "attempt": change.values.get("attempt", change.job.attempt),
            "lease": change.job.lease,
            "worker_id": change.by,
            "detail": dict(change.detail) if change.detail else None,
        }
        for change in changes
    ]
    insert_rows(connection, job_events, rows)
