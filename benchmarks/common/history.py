"""Databases with a past: settled jobs by the million, and the dead rows of jobs just gone through.

In literal SQL, many rows a statement: what the verbs would write in hours is there in minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, text

from orchestrator.store import sqlite
from orchestrator.store.engine import sync_engine

_AT_ONCE = 250_000
"""Rows a statement."""

_WORDS = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE n (i) AS (SELECT :low UNION ALL"
        " SELECT i + 1 FROM n WHERE i + 1 < :high) SELECT i FROM n)",
        "time": "strftime('%Y-%m-%d %H:%M:%S.000000', 1735689600 + {s}, 'unixepoch')",
        "hex": "lower(hex(randomblob(16)))",
        "json": "TEXT",
    },
    "postgresql": {
        "numbers": "(SELECT i FROM generate_series(CAST(:low AS bigint), :high - 1) i)",
        "time": "(timestamptz '2025-01-01 00:00:00+00' + ({s}) * interval '1 second')",
        "hex": "md5(CAST(random() AS text))",
        "json": "json",
    },
}

_JOB = """
INSERT INTO jobs (
    queue, batch, unique_key, priority, state, endpoint, prompt, request, attempt, max_attempts,
    lease, worker_id, api_origin, key_fingerprint, run_id, chat_id, session_id, run_status,
    error_kind, error, http_status, result_text, finish_reason, model_used, input_tokens,
    output_tokens, total_tokens, cost_usd, available_at, created_at, updated_at, sent_at,
    accepted_at, finished_at)
SELECT
    CASE i % 3 WHEN 0 THEN 'default' WHEN 1 THEN 'bulk' ELSE 'nightly' END,
    'batch ' || (i / 5000), {hex}, 0,
    CASE WHEN i % 10 < 8 THEN 'completed' WHEN i % 10 = 8 THEN 'failed' ELSE 'cancelled' END,
    'runs', 'Write a release plan for artist number ' || i || ', in the tone of the last one.',
    CAST('{{"prompt":"Write a release plan for artist number ' || i || '."}}' AS {json}), 1, 1,
    1, 'worker ' || (i / 100000), 'https://api.example', 'k1', 'wrun_' || {hex}, {hex}, {hex},
    'completed',
    CASE WHEN i % 10 = 8 THEN 'run_failed' WHEN i % 10 = 9 THEN 'cancelled' END,
    CASE WHEN i % 10 >= 8 THEN 'the run ended as failed, after step ' || (i % 7) END,
    202, 'The plan has three parts. First the single, then the video, then the tour: ' || i,
    'stop', 'model-' || (i % 5), 1000 + i % 500, 200 + i % 100, 1200 + i % 600, 0.01,
    {created}, {created}, {finished}, {sent}, {sent}, {finished}
FROM {numbers} numbers"""

_EVENT = """
INSERT INTO job_events (job_id, at, event, from_state, to_state, attempt, lease, worker_id)
SELECT id, finished_at, 'run.completed', 'running', state, attempt, lease, worker_id
FROM jobs WHERE id > :above"""

_QUEUED = """
INSERT INTO jobs (queue, prompt, available_at)
SELECT CASE i % 3 WHEN 0 THEN 'default' WHEN 1 THEN 'bulk' ELSE 'nightly' END,
       'Gone through: ' || i, {created}
FROM {numbers} numbers"""

_GONE_THROUGH = (
    "UPDATE jobs SET state = 'submitting', lease = 1, worker_id = 'gone' WHERE state = 'queued'",
    "UPDATE jobs SET state = 'running', run_id = 'wrun_' || id, attempt = 1"
    " WHERE state = 'submitting'",
    "UPDATE jobs SET state = 'completed', finished_at = available_at WHERE state = 'running'",
    "DELETE FROM jobs WHERE worker_id = 'gone' AND id % 3 = 0",
)


@contextmanager
def _writing(url: URL) -> Iterator[Connection]:
    """A connection that commits each statement, and on SQLite does not wait for the disk."""
    engine = sync_engine(url, bounded=False).execution_options(**{sqlite.WRITE: True})
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                for pragma in ("synchronous = OFF", "cache_size = -400000"):
                    _outside(connection, f"PRAGMA {pragma}")
            yield connection
    finally:
        engine.dispose()


def _run(connection: Connection, statement: str, **values: Any) -> None:
    connection.execute(text(statement), values)
    connection.commit()


def _worded(connection: Connection, statement: str) -> str:
    words = dict(_WORDS[connection.dialect.name])
    time = words.pop("time")
    moments = {"created": "i * 5", "sent": "i * 5 + 20", "finished": "i * 5 + 900"}
    words |= {name: time.format(s=seconds) for name, seconds in moments.items()}
    return statement.format(**words)


def fill(url: URL, rows: int) -> None:
    """Give an empty migrated database `rows` settled jobs, each with the event of its end.

    The indexes are made afterwards, from sorted entries; then the planner looks at the tables.
    """
    with _writing(url) as connection:
        indexes = _indexes(connection)
        for name in indexes:
            _run(connection, f"DROP INDEX {name}")
        for low in range(0, rows, _AT_ONCE):
            values = {"low": low, "high": min(rows, low + _AT_ONCE)}
            _run(connection, _worded(connection, _JOB), **values)
            _run(connection, _EVENT, above=low)
        for definition in indexes.values():
            _run(connection, definition)
        if connection.dialect.name == "postgresql":
            _outside(connection, "VACUUM (ANALYZE, FREEZE)")


def churn(url: URL, jobs: int) -> None:
    """Let `jobs` jobs pass through all states and delete a third: three dead rows for each.

    On PostgreSQL nothing clears them away.
    """
    with _writing(url) as connection:
        if connection.dialect.name == "postgresql":
            for name in ("jobs", "job_events"):
                _run(connection, f"ALTER TABLE {name} SET (autovacuum_enabled = off)")
        if jobs:
            _run(connection, _worded(connection, _QUEUED), low=0, high=jobs)
            for statement in _GONE_THROUGH:
                _run(connection, statement)
        sqlite_file = connection.dialect.name == "sqlite"
        _outside(connection, "PRAGMA wal_checkpoint(TRUNCATE)" if sqlite_file else "CHECKPOINT")


def _indexes(connection: Connection) -> dict[str, str]:
    """The statements that make the indexes of `jobs`, by name; that of its key stays."""
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master"
        " WHERE type = 'index' AND tbl_name = 'jobs' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes"
        " WHERE tablename = 'jobs' AND indexname <> 'jobs_pkey'",
    }[connection.dialect.name]
    found = {str(name): str(made) for name, made in connection.execute(text(query))}
    connection.commit()
    return found


def _outside(connection: Connection, statement: str) -> None:
    """Run what no transaction may hold."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        driver.autocommit = True
        driver.execute(statement)
        driver.autocommit = False
        return
    driver.execute(statement).fetchall()
