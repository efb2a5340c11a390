"""Enqueue jobs: one or thousands, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from orchestrator.errors import DuplicateKey
from orchestrator.job import Job
from orchestrator.states import State
from orchestrator.store.schema import jobs
from orchestrator.store.types import db_now
from orchestrator.store.verbs.guarded import Grip, write
from orchestrator.store.verbs.insert import STARTING, insert_jobs
from orchestrator.store.wake import announce


class OnConflict(StrEnum):
    """What `enqueue` does when a job with the same `unique_key` exists."""

    RETURN = "return"
    RAISE = "raise"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A job's id, and whether this call created it."""

    id: int
    created: bool


_CONTENT = (
    "prompt",
    "input_messages",
    "endpoint",
    "model",
    "artist_id",
    "account_id",
    "organization_id",
    "room_id",
    "topic",
    "exclude_tools",
)
"""What makes a request: two jobs of one key with another of these are not the same job."""

_WISHES = (
    "queue",
    "priority",
    "batch",
    "tags",
    "metadata",
    "scheduled_at",
    "expires_at",
    "max_attempts",
    "retry_on",
    "on_in_doubt",
    "run_timeout",
    "stall_timeout",
)
"""What else a caller says of a job."""

_BATCH = 500
"""Keys a look-up: SQLite takes at most 32,766 bound values a statement."""


_TRIES = 5
"""How often a call meets a key that another caller has inserted a moment before, at most."""


def enqueue_many(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    on_conflict: OnConflict = OnConflict.RETURN,
) -> list[Enqueued]:
    """Insert jobs from checked columns and return one `Enqueued` a row, in order.

    Raises DuplicateKey for a `unique_key` that exists where `on_conflict` does not allow it;
    the caller's transaction must then be rolled back, so that all or nothing is inserted.
    """
    if not any(row.get("unique_key") for row in rows):
        return [Enqueued(job_id, created=True) for job_id in insert_jobs(connection, rows)]
    for _ in range(_TRIES):
        try:
            # Another transaction may commit one of the keys between our look and our insert.
            with connection.begin_nested():
                return _enqueue(connection, rows, on_conflict)
        except IntegrityError:
            continue
    return _enqueue(connection, rows, on_conflict)


def _enqueue(
    connection: Connection, rows: Sequence[Mapping[str, Any]], on_conflict: OnConflict
) -> list[Enqueued]:
    done: list[Enqueued | None] = [None] * len(rows)
    fresh: list[int] = []
    seen: dict[str, int] = {}
    keys = [row["unique_key"] for row in rows if row.get("unique_key")]
    existing = _existing(connection, keys, locked=on_conflict is OnConflict.REPLACE)
    for index, row in enumerate(rows):
        key = row.get("unique_key")
        if key is None:
            fresh.append(index)
        elif key in seen:
            held = existing.get(key)
            _require_same(rows[seen[key]], row, held.id if held else 0, on_conflict)
        else:
            seen[key] = index
            if key in existing:
                done[index] = _meet(connection, existing[key], row, on_conflict)
            else:
                fresh.append(index)
    ids = insert_jobs(connection, [rows[index] for index in fresh])
    for index, job_id in zip(fresh, ids, strict=True):
        done[index] = Enqueued(job_id, created=True)
    for index, row in enumerate(rows):
        if done[index] is None:
            first = done[seen[row["unique_key"]]]
            done[index] = None if first is None else Enqueued(first.id, created=False)
    return [item for item in done if item is not None]


def _existing(connection: Connection, keys: Sequence[str], *, locked: bool) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for start in range(0, len(keys), _BATCH):
        part = keys[start : start + _BATCH]
        statement = select(jobs).where(jobs.c.unique_key.in_(part)).order_by(jobs.c.id)
        if locked:
            statement = statement.with_for_update()
        rows = connection.execute(statement).mappings()
        found.update({row["unique_key"]: Job.from_row(row) for row in rows})
    return found


def _meet(
    connection: Connection, job: Job, row: Mapping[str, Any], on_conflict: OnConflict
) -> Enqueued:
    """Settle a conflict with the job that has the key."""
    if on_conflict is OnConflict.REPLACE:
        if job.state is not State.QUEUED or job.attempt > 0:
            raise DuplicateKey(
                str(job.unique_key),
                job.id,
                f"it is {job.state.value} and only a queued job that was never sent is replaced",
            )
        values = {
            **{name: row.get(name, STARTING.get(name)) for name in (*_CONTENT, *_WISHES)},
            **dict.fromkeys(("error", "http_status", "cancel_requested_at")),
            "deferrals": 0,
            "available_at": row.get("scheduled_at") or db_now(),
        }
        write(connection, Grip.of(job), values, event="job.replaced", seize=True)
        announce(connection)
        return Enqueued(job.id, created=False)
    existing = {name: getattr(job, name) for name in _CONTENT}
    _require_same(existing, row, job.id, on_conflict)
    return Enqueued(job.id, created=False)


def _require_same(
    existing: Mapping[str, Any], row: Mapping[str, Any], job_id: int, on_conflict: OnConflict
) -> None:
    key = str(row["unique_key"])
    if on_conflict is OnConflict.RAISE:
        raise DuplicateKey(key, job_id, "on_conflict='raise' asks for an error")
    differing = [
        name
        for name in _CONTENT
        if (existing.get(name) or STARTING.get(name)) != (row.get(name) or STARTING.get(name))
    ]
    if differing:
        raise DuplicateKey(
            key,
            job_id,
            f"its {', '.join(differing)} differs; use another key, or on_conflict='replace' "
            "while it is queued",
        )
