from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import DuplicateKey, LeaseLost
from orchestrator.request import job_values
from orchestrator.states import State
from orchestrator.store.schema import jobs
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.enqueue import OnConflict
from orchestrator.store.verbs.guarded import Grip

from .desk import FAILED, Desk

CHANGED = {
    "prompt": "another",
    "model": "m2",
    "artist_id": "3c90c3cc-0d44-4b50-8888-8dd25736052b",
    "account_id": "3c90c3cc-0d44-4b50-8888-8dd25736052a",
}
EVER, LATER = "2999-01-31T08:00:00Z", "2030-01-31T09:00:00+01:00"


def test_a_job_starts_queued_due_and_untouched(desk: Desk) -> None:
    job = desk.enqueue()
    assert (job.state, job.attempt, job.lease) == (State.QUEUED, 0, 0)
    assert job.available_at == job.created_at == job.updated_at
    assert job.scheduled_at is None
    (event,) = desk.events(job.id)
    assert (event.event, event.from_state, event.to_state) == ("job.enqueued", None, "queued")
    assert event.at == job.created_at


def test_every_option_reaches_its_column(desk: Desk) -> None:
    options: dict[str, Any] = {
        "model": "m",
        "artist_id": "3c90c3cc-0d44-4b50-8888-8dd25736052a",
        "account_id": "3c90c3cc-0d44-4b50-8888-8dd25736052b",
        "organization_id": "3c90c3cc-0d44-4b50-8888-8dd25736052c",
        "queue": "q",
        "priority": -3,
        "batch": "b",
        "tags": ["t", "ü\u2028"],
        "metadata": {"deep": [1, None, "\x00", "\ud800"]},
        "unique_key": "k",
        "scheduled_at": "2030-01-31T09:00:00+01:00",
        "expires_at": "2031-01-31T08:00:00Z",
        "max_attempts": 3,
        "retry_on": ["stalled"],
        "on_in_doubt": "fail",
        "run_timeout": "2h",
        "stall_timeout": 90,
    }
    job = desk.enqueue(**options)
    for name, value in job_values({"prompt": "hello", **options}).items():
        assert getattr(job, name) == value, name
    assert job.scheduled_at is not None
    assert job.scheduled_at.isoformat() == "2030-01-31T08:00:00+00:00"
    assert job.available_at == job.scheduled_at


def test_a_job_is_the_row_that_plain_sql_makes(desk: Desk) -> None:
    plain = "INSERT INTO jobs (prompt, max_attempts, queue) VALUES ('hello', 1, 'default')"
    desk.sql(plain)
    desk.enqueue_all({}, {})
    by_sql, first, second = desk.rows("SELECT * FROM jobs ORDER BY id")
    own = {"id", "created_at", "updated_at", "available_at"}
    for row in (first, second):
        assert {name for name in row if row[name] != by_sql[name]} == own
    assert first["created_at"] == second["created_at"], "one call has one time"


def test_every_job_of_a_call_has_every_option_of_its_own(desk: Desk) -> None:
    """What reaches its column in a call with one job reaches it beside others, and first or not."""
    rows: list[dict[str, Any]] = [
        {"priority": -3, "tags": ["t", "ü\u2028"], "run_timeout": 0.1 + 0.2, "expires_at": EVER},
        {"scheduled_at": LATER, "metadata": {"deep": [1, None, "\ud800", 1e-7]}, "batch": 'b"\\'},
        {
            "prompt": None,
            "messages": [{"role": "user", "content": "ü\x00"}],
            "endpoint": "generate",
        },
        {"exclude_tools": ["x"], "endpoint": "generate", "room_id": CHANGED["artist_id"]},
    ]
    for some in (rows, rows[::-1]):
        done = desk.enqueue_all(*some)
        for (job_id, _), row in zip(done, some, strict=True):
            job = desk.get(job_id)
            for name, value in job_values({"prompt": "hello", **row}).items():
                assert getattr(job, name) == value, name
            assert job.available_at == (job.scheduled_at or job.created_at)


def test_the_order_holds_however_much_text_there_is(postgres_desk: Desk) -> None:
    """One statement takes so much text only, so a few long prompts make several."""
    prompts = [f"{n}" + "ü" * (400_000 if n % 3 == 0 else 1) for n in range(10)]
    done = postgres_desk.enqueue_all(*({"prompt": prompt} for prompt in prompts))
    found = postgres_desk.rows("SELECT id, prompt, created_at FROM jobs ORDER BY id")
    assert [(row["id"], row["prompt"]) for row in found] == [
        (job_id, prompt) for (job_id, _), prompt in zip(done, prompts, strict=True)
    ]
    assert len({row["created_at"] for row in found}) == 1
    assert postgres_desk.rows("SELECT count(DISTINCT at) AS n FROM job_events") == [{"n": 1}]


def test_three_thousand_jobs_at_once_come_back_in_order(desk: Desk) -> None:
    done = desk.enqueue_all(*({"prompt": f"p{n}", "unique_key": f"k{n}"} for n in range(3000)))
    ids = [job_id for job_id, _ in done]
    assert ids == list(range(ids[0], ids[0] + 3000))
    assert all(created for _, created in done)
    rows = desk.rows("SELECT id, prompt FROM jobs ORDER BY id")
    assert [(row["id"], row["prompt"]) for row in rows] == [
        (job_id, f"p{n}") for n, job_id in enumerate(ids)
    ]
    assert desk.rows("SELECT count(*) AS n FROM job_events") == [{"n": 3000}]


def test_rows_of_different_options_go_in_together(desk: Desk) -> None:
    done = desk.enqueue_all({"priority": 5}, {"batch": "b"}, {})
    found = [(desk.get(job_id).priority, desk.get(job_id).batch) for job_id, _ in done]
    assert found == [(5, None), (0, "b"), (0, None)]


def test_all_or_nothing(desk: Desk) -> None:
    desk.enqueue(unique_key="k")
    with pytest.raises(DuplicateKey):
        desk.enqueue_all({}, {"unique_key": "k"}, {}, on_conflict=OnConflict.RAISE)
    assert desk.rows("SELECT count(*) AS n FROM jobs") == [{"n": 1}]


# --- unique_key × on_conflict -----------------------------------------------------------------


def test_return_gives_the_job_that_has_the_key(desk: Desk) -> None:
    first = desk.enqueue(unique_key="k")
    done = desk.enqueue_all({"prompt": "new"}, {"unique_key": "k"})
    assert done[0][1]
    assert done[1] == (first.id, False)
    assert desk.get(first.id) == first


@pytest.mark.parametrize("state", State)
def test_return_gives_a_job_in_any_state(desk: Desk, state: State) -> None:
    job = desk.one_in(state, unique_key="k")
    assert desk.enqueue_all({"unique_key": "k"}) == [(job.id, False)]
    assert desk.get(job.id) == job


@pytest.mark.parametrize("field", CHANGED)
def test_return_raises_for_another_request(desk: Desk, field: str) -> None:
    first = desk.enqueue(unique_key="k")
    with pytest.raises(DuplicateKey, match=f"its {field} differs") as caught:
        desk.enqueue_all({"unique_key": "k", field: CHANGED[field]})
    assert (caught.value.unique_key, caught.value.job_id) == ("k", first.id)


def test_return_does_not_mind_other_wishes(desk: Desk) -> None:
    first = desk.enqueue(unique_key="k")
    assert desk.enqueue_all({"unique_key": "k", "priority": 9}) == [(first.id, False)]
    assert desk.get(first.id).priority == 0


def test_raise_raises_for_the_same_request(desk: Desk) -> None:
    first = desk.enqueue(unique_key="k")
    with pytest.raises(DuplicateKey, match=f"job {first.id} "):
        desk.enqueue_all({"unique_key": "k"}, on_conflict=OnConflict.RAISE)


def test_replace_puts_the_new_job_in_the_old_ones_place(desk: Desk) -> None:
    first = desk.enqueue(
        unique_key="k", model="m1", priority=7, tags=["t"], scheduled_at="2999-01-31T08:00:00Z"
    )
    new = {"prompt": "another", "unique_key": "k", "batch": "b"}
    assert desk.enqueue_all(new, on_conflict=OnConflict.REPLACE) == [(first.id, False)]
    replaced, fresh = desk.get(first.id), desk.enqueue("another", batch="b")
    differing = {"id", "unique_key", "lease", "created_at", "available_at", "updated_at"}
    for name in (column.name for column in jobs.columns if column.name not in differing):
        assert getattr(replaced, name) == getattr(fresh, name), name
    assert first.updated_at < replaced.available_at <= replaced.updated_at
    assert desk.event_names(first.id) == ["job.enqueued", "job.replaced"]


def test_replace_fences_a_writer_that_read_the_old_job(desk: Desk) -> None:
    first = desk.enqueue(unique_key="k")
    desk.enqueue_all({"unique_key": "k"}, on_conflict=OnConflict.REPLACE)
    with pytest.raises(LeaseLost):
        desk.write(outcomes.apply, Grip.of(first), FAILED)


@pytest.mark.parametrize("state", [state for state in State if state is not State.QUEUED])
def test_replace_refuses_what_is_not_queued(desk: Desk, state: State) -> None:
    job = desk.one_in(state, unique_key="k")
    with pytest.raises(DuplicateKey, match=f"it is {state.value}"):
        desk.enqueue_all({"unique_key": "k"}, on_conflict=OnConflict.REPLACE)
    assert desk.get(job.id) == job


@pytest.mark.parametrize("word", [OnConflict.RETURN, OnConflict.REPLACE])
def test_one_key_twice_in_a_call_is_one_job(desk: Desk, word: OnConflict) -> None:
    twice = [{"unique_key": "k"}, {"unique_key": "k"}]
    (first, second) = desk.enqueue_all(*twice, on_conflict=word)
    assert (first[1], second) == (True, (first[0], False))
    again = desk.enqueue_all(*twice, on_conflict=word)
    assert again == [(first[0], False)] * 2


@pytest.mark.parametrize("word", OnConflict)
def test_one_key_twice_in_a_call_with_two_requests_is_refused(desk: Desk, word: OnConflict) -> None:
    with pytest.raises(DuplicateKey):
        desk.enqueue_all(
            {"unique_key": "k"}, {"unique_key": "k", "prompt": "another"}, on_conflict=word
        )
    assert desk.rows("SELECT id FROM jobs") == []


def test_a_key_is_free_again_when_its_row_is_gone(desk: Desk) -> None:
    first = desk.completed(unique_key="k")
    desk.sql("DELETE FROM jobs WHERE id = :id", id=first.id)
    ((job_id, created),) = desk.enqueue_all({"unique_key": "k"})
    assert created
    assert job_id > first.id
