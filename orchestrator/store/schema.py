"""The tables as SQLAlchemy sees them, to build statements from.

The migrations create the schema; a test compares what they leave behind with this module.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Integer,
    MetaData,
    Table,
    TextClause,
    literal_column,
    text,
)
from sqlalchemy.sql import quoted_name

from orchestrator.states import CLAIMED, State
from orchestrator.store.types import JsonText, PlainText, UtcTime

metadata = MetaData()

_BIG_ID = BigInteger().with_variant(Integer(), "sqlite")


def _attempt_columns() -> list[Column[Any]]:
    """What one attempt knows: the same names in `jobs` and in `attempts`."""
    return [
        Column("request", JsonText),
        Column("worker_id", PlainText),
        Column("api_origin", PlainText),
        Column("key_fingerprint", PlainText),
        Column("run_id", PlainText),
        Column("chat_id", PlainText),
        Column("session_id", PlainText),
        Column("run_status", PlainText),
        Column("error_kind", PlainText),
        Column("error", PlainText),
        Column("http_status", Integer),
        Column("result_text", PlainText),
        Column("finish_reason", PlainText),
        Column("model_used", PlainText),
        Column("input_tokens", BigInteger),
        Column("output_tokens", BigInteger),
        Column("reasoning_tokens", BigInteger),
        Column("cached_tokens", BigInteger),
        Column("total_tokens", BigInteger),
        Column("cost_usd", Float),
        Column("sent_at", UtcTime),
        Column("accepted_at", UtcTime),
        Column("finished_at", UtcTime),
    ]


ATTEMPT_COLUMNS = tuple(column.name for column in _attempt_columns())
"""The columns that move from `jobs` to `attempts` when a further attempt begins."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", _BIG_ID, primary_key=True),
    Column("queue", PlainText, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("batch", PlainText),
    Column("tags", JsonText),
    Column(quoted_name("metadata", None), JsonText, key="metadata"),
    Column("state", PlainText, nullable=False),
    Column("endpoint", PlainText, nullable=False),
    Column("prompt", PlainText),
    Column("input_messages", JsonText),
    Column("model", PlainText),
    Column("artist_id", PlainText),
    Column("account_id", PlainText),
    Column("organization_id", PlainText),
    Column("room_id", PlainText),
    Column("topic", PlainText),
    Column("exclude_tools", JsonText),
    Column("unique_key", PlainText),
    Column("scheduled_at", UtcTime),
    Column("available_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("retry_on", JsonText),
    Column("on_in_doubt", PlainText),
    Column("run_timeout", Float),
    Column("stall_timeout", Float),
    Column("lease", BigInteger, nullable=False),
    Column("deferrals", Integer, nullable=False),
    Column("resubmits", Integer, nullable=False),
    Column("resubmit_at", UtcTime),
    *_attempt_columns(),
    Column("followed_s", Float, nullable=False),
    Column("quiet_s", Float, nullable=False),
    Column("stream_opened_at", UtcTime),
    Column("stream_left_at", UtcTime),
    Column("created_at", UtcTime, nullable=False),
    Column("cancel_requested_at", UtcTime),
    Column("updated_at", UtcTime, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", _BIG_ID, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", PlainText, nullable=False),
    *_attempt_columns(),
)

messages = Table(
    "messages",
    metadata,
    Column("job_id", _BIG_ID, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("message_id", PlainText),
    Column("role", PlainText, nullable=False),
    Column("text", PlainText, nullable=False),
    Column("message", JsonText, nullable=False),
    Column("source", PlainText, nullable=False),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", _BIG_ID, primary_key=True),
    Column("job_id", _BIG_ID, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("event", PlainText, nullable=False),
    Column("from_state", PlainText),
    Column("to_state", PlainText),
    Column("attempt", Integer),
    Column("lease", BigInteger),
    Column("worker_id", PlainText),
    Column("detail", JsonText),
)

stream_checkpoints = Table(
    "stream_checkpoints",
    metadata,
    Column("job_id", _BIG_ID, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("first_index", _BIG_ID, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("chunks", JsonText, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", PlainText, primary_key=True),
    Column("host", PlainText, nullable=False),
    Column("boot_id", PlainText),
    Column("pid_namespace", PlainText),
    Column("pid", Integer, nullable=False),
    Column("process_started", PlainText),
    Column("version", PlainText, nullable=False),
    Column("api_origin", PlainText, nullable=False),
    Column("key_fingerprint", PlainText, nullable=False),
    Column("queues", JsonText),
    Column("started_at", UtcTime, nullable=False),
    Column("last_heartbeat_at", UtcTime, nullable=False),
    Column("stopped_at", UtcTime),
)

queues = Table(
    "queues",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("paused_at", UtcTime),
    Column("paused_reason", PlainText),
    Column("concurrency", Integer),
    Column("weight", Integer, nullable=False),
)

gates = Table(
    "gates",
    metadata,
    Column("api_origin", PlainText, primary_key=True),
    Column("key_fingerprint", PlainText, primary_key=True),
    Column("closed_at", UtcTime),
    Column("reason", PlainText),
    Column("detail", PlainText),
    Column("suspected_at", UtcTime),
    Column("next_probe_at", UtcTime),
    Column("probes", Integer, nullable=False),
    Column("probing_worker_id", PlainText),
    Column("probing_until", UtcTime),
    Column("generation", BigInteger, nullable=False),
    Column("leaving", PlainText, nullable=False),
    Column("breaks_survived", Integer, nullable=False),
)

VIEWS = ("failures", "live", "waiting", "runs", "daily", "costs")
"""The views that the migrations create for people."""


def is_queued() -> ColumnElement[bool]:
    """The condition of a queued job, as the partial indexes have it.

    A planner takes a partial index only for a condition that it can read: no bound value.
    """
    return jobs.c.state == literal_column(f"'{State.QUEUED.value}'")


_CLAIMABLE = {
    "sqlite": "{jobs}.state = 'queued'",
    "postgresql": "({jobs}.state = 'queued') IS NOT FALSE",
}


def is_claimable(dialect: str, name: str = "jobs") -> TextClause:
    """The condition of a queued job as `jobs_claim` has it; `name` is what the table goes by.

    On PostgreSQL no other index answers it: a planner that believes that no job is queued would
    rather read them all by `jobs_state`, and sort them. Nor is it the fence of `guarded`, which
    finds its rows by their ids.
    """
    return text(_CLAIMABLE[dialect].format(jobs=name))


def is_in_doubt() -> ColumnElement[bool]:
    """The condition of a job in doubt, as the partial index has it."""
    return jobs.c.state == literal_column(f"'{State.IN_DOUBT.value}'")


def is_claimed() -> ColumnElement[bool]:
    """The condition of a job that a worker holds, or held until it died; as the indexes have it."""
    return jobs.c.state.in_([literal_column(f"'{name}'") for name in State if name in CLAIMED])
