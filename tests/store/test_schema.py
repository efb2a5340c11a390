from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy import Table, inspect
from sqlalchemy.exc import DatabaseError, IntegrityError

from orchestrator.states import TRANSITIONS, Endpoint, ErrorKind, OnInDoubt, State, kinds_of
from orchestrator.store.schema import VIEWS, jobs, metadata
from orchestrator.store.verbs import people

from .desk import Desk

TABLES = list(metadata.tables.values())


def check_of(desk: Desk, name: str) -> str:
    """The words that a CHECK of `jobs` names, as the database itself tells them."""
    if desk.engine.dialect.name == "postgresql":
        query = "SELECT pg_get_constraintdef(oid) AS sql FROM pg_constraint WHERE conname = :name"
        return str(desk.rows(query, name=name)[0]["sql"])
    table = str(desk.rows("SELECT sql FROM sqlite_master WHERE name = 'jobs'")[0]["sql"])
    found = re.search(rf"{name} CHECK \((.*?)\)\)", table, re.DOTALL)
    assert found is not None
    return found.group(1)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"'([^']+)'", text))


# --- what the migrations leave behind ---------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_migrated_tables_are_those_of_the_schema(desk: Desk, table: Table) -> None:
    found = {column["name"]: column for column in inspect(desk.engine).get_columns(table.name)}
    assert list(found) == [column.name for column in table.columns]
    keys = {column.name for column in table.primary_key}
    for column in table.columns:
        if column.name not in keys:
            assert found[column.name]["nullable"] == bool(column.nullable), column.name


def test_every_column_of_jobs_has_a_default(desk: Desk) -> None:
    for column in inspect(desk.engine).get_columns("jobs"):
        fills_itself = column["nullable"] or column["default"] is not None
        assert fills_itself or column["name"] == "id", column["name"]


def test_there_is_no_table_or_view_that_the_schema_does_not_know(desk: Desk) -> None:
    found = inspect(desk.engine)
    assert set(found.get_table_names()) == {table.name for table in TABLES} | {"alembic_version"}
    assert set(found.get_view_names()) == set(VIEWS)


def test_ids_are_never_reused(desk: Desk) -> None:
    last = desk.enqueue_all({}, {})[-1][0]
    desk.sql("DELETE FROM jobs WHERE id = :id", id=last)
    assert desk.enqueue().id > last


# --- checks -----------------------------------------------------------------------------------


def test_the_state_check_names_the_states_of_the_transition_table(desk: Desk) -> None:
    named = words_of(check_of(desk, "jobs_state_known"))
    assert named == {state.value for state in TRANSITIONS}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", [None, *ErrorKind])
def test_the_database_knows_the_same_error_kinds_for_a_state(
    desk: Desk, state: State, kind: ErrorKind | None
) -> None:
    fits = kind in kinds_of(state) if kinds_of(state) else kind is None
    statement = "INSERT INTO jobs (prompt, state, error_kind, run_id) VALUES ('x', :s, :k, 'r')"
    if fits:
        desk.sql(statement, s=state.value, k=kind)
        assert desk.get(1).error_kind == kind
    else:
        with pytest.raises(IntegrityError, match="jobs_error_kind_fits_state"):
            desk.sql(statement, s=state.value, k=kind)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("endpoint", [word.value for word in Endpoint]),
        ("on_in_doubt", [word.value for word in OnInDoubt]),
    ],
)
def test_the_database_knows_the_same_words(desk: Desk, column: str, values: list[str]) -> None:
    for value in values:
        desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', :v)", v=value)  # noqa: S608 - our own word
    with pytest.raises(IntegrityError, match=f"jobs_{column}_known"):
        desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', 'other')")  # noqa: S608 - our own word


@pytest.mark.parametrize("column", [c.name for c in jobs.columns if c.name.endswith("_at")])
@pytest.mark.parametrize(
    "bad",
    [
        "2026-01-31",
        "2026-01-31 08:00:00",
        "2026-01-31T08:00:00.000000",
        "2026-01-31 08:00:00.000000+00:00",
        "2026-01-31 08:00:00.000000Z",
        "2026-19-01 08:00:00.000000",
        "2026-02-30 08:00:00.000000",
        "2026-01-31 29:00:00.000000",
        "0000-01-31 08:00:00.000000",
        "soon",
        "",
    ],
)
def test_a_bad_time_is_refused(sqlite_desk: Desk, column: str, bad: str) -> None:
    with pytest.raises(IntegrityError, match=f"jobs_{column}_is_utc"):
        sqlite_desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', :bad)", bad=bad)  # noqa: S608 - our own column


@pytest.mark.parametrize("column", [c.name for c in jobs.columns if c.name.endswith("_at")])
@pytest.mark.parametrize(
    "bad",
    ["infinity", "-infinity", "0044-03-15 UTC BC", "10000-01-01 UTC", "9999-12-31 00:00:00 UTC"],
)
def test_a_time_that_few_programs_can_read_is_refused(
    postgres_desk: Desk, column: str, bad: str
) -> None:
    with pytest.raises(IntegrityError, match=f"jobs_{column}_is_readable"):
        postgres_desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', '{bad}')")  # noqa: S608 - our own words


@pytest.mark.parametrize("good", ["2024-02-29 23:59:59.999999", "0001-01-02 00:00:00.000000"])
def test_a_good_time_is_taken(desk: Desk, good: str) -> None:
    desk.sql("INSERT INTO jobs (prompt, scheduled_at) VALUES ('x', :t)", t=good)
    scheduled = desk.get(1).scheduled_at
    assert scheduled is not None
    assert scheduled.strftime("%H:%M:%S.%f") == good[11:]


@pytest.mark.parametrize("column", ["tags", "metadata", "input_messages", "exclude_tools"])
def test_what_is_no_json_is_refused(desk: Desk, column: str) -> None:
    with pytest.raises(DatabaseError, match=f"jobs_{column}_is_json|invalid input syntax for type"):
        desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', '[1,')")  # noqa: S608 - our own column


@pytest.mark.parametrize(
    ("column", "value"),
    [("priority", "high"), ("max_attempts", "many"), ("run_timeout", "2h"), ("lease", 1.5)],
)
def test_a_value_of_another_type_is_refused(sqlite_desk: Desk, column: str, value: Any) -> None:
    with pytest.raises(IntegrityError, match=column):
        sqlite_desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', :v)", v=value)  # noqa: S608 - our own column


@pytest.mark.parametrize("column", ["run_timeout", "stall_timeout"])
@pytest.mark.parametrize("value", ["Infinity", "NaN", "0", "-1"])
def test_a_timeout_that_bounds_nothing_is_refused(
    postgres_desk: Desk, column: str, value: str
) -> None:
    with pytest.raises(IntegrityError, match="jobs_timeouts_"):
        postgres_desk.sql(f"INSERT INTO jobs (prompt, {column}) VALUES ('x', '{value}')")  # noqa: S608 - our own words


def test_a_running_job_must_name_its_run(desk: Desk) -> None:
    with pytest.raises(IntegrityError, match="jobs_running_has_run_id"):
        desk.sql("INSERT INTO jobs (prompt, state) VALUES ('x', 'running')")


# --- a row from plain SQL ---------------------------------------------------------------------


def test_a_prompt_is_all_that_plain_sql_needs_to_give(desk: Desk) -> None:
    desk.sql("INSERT INTO jobs (prompt) VALUES ('x')")
    (by_sql,) = desk.claim()
    by_api = desk.submitting(prompt="x")
    apart = {"id", "available_at", "created_at", "updated_at"}
    for name in (column.name for column in jobs.columns if column.name not in apart):
        assert getattr(by_sql, name) == getattr(by_api, name), name


# --- views ------------------------------------------------------------------------------------


@pytest.fixture
def every_state(desk: Desk) -> dict[State, int]:
    # The queued one comes last, or the others' claims would take it.
    order = sorted(State, key=lambda state: state is State.QUEUED)
    return {state: desk.one_in(state).id for state in order}


@pytest.mark.parametrize("view", VIEWS)
def test_views_run_on_rows_in_every_state(
    desk: Desk, every_state: dict[State, int], view: str
) -> None:
    assert len(every_state) == len(State)
    assert desk.rows(f"SELECT * FROM {view}")  # noqa: S608 - our own view


def test_views_show_the_jobs_of_their_states(desk: Desk, every_state: dict[State, int]) -> None:
    shown = {
        view: {row["id"] for row in desk.rows(f"SELECT id FROM {view}")}  # noqa: S608 - our own view
        for view in ("failures", "live", "waiting")
    }
    at = every_state
    assert shown["failures"] == {at[State.FAILED], at[State.IN_DOUBT]}
    assert shown["live"] == {at[State.SUBMITTING], at[State.RUNNING]}
    assert shown["waiting"] == {at[State.QUEUED], at[State.IN_DOUBT]}


def test_runs_shows_every_attempt_that_was_sent(desk: Desk) -> None:
    job = desk.completed()
    desk.write(people.retry, job.id)
    (again,) = desk.claim()
    desk.mark(again)
    rows = desk.rows("SELECT job_id, attempt, state FROM runs ORDER BY attempt")
    assert [(row["job_id"], row["attempt"], row["state"]) for row in rows] == [
        (job.id, 1, "completed"),
        (job.id, 2, "submitting"),
    ]


def test_waiting_says_what_a_job_waits_for(desk: Desk) -> None:
    def sentence(job_id: int) -> str:
        rows = desk.rows("SELECT waiting_for FROM waiting WHERE id = :id", id=job_id)
        return str(rows[0]["waiting_for"])

    job = desk.enqueue()
    assert sentence(job.id) == "a worker: none is running"
    desk.start()
    assert sentence(job.id) == "a free slot"
    desk.write(people.limit_queue, "default", 0)
    assert sentence(job.id) == "a place in its queue default, limited to 0"
    desk.write(people.pause, "default", "lunch")
    assert sentence(job.id) == "its queue default, paused: lunch"
    later = desk.enqueue(queue="other", scheduled_at="2999-01-31T08:00:00Z")
    assert sentence(later.id) == "its time, 2999-01-31 08:00:00 UTC"
