"""A decision that meets another write of the same job: it waits, and goes by what it then finds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from orchestrator.decide import after_death
from orchestrator.errors import DuplicateKey, NotAllowed
from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.states import State
from orchestrator.store import sqlite
from orchestrator.store.verbs import attempt, crew, outcomes, people
from orchestrator.store.verbs.attempt import Marking
from orchestrator.store.verbs.claim import claim
from orchestrator.store.verbs.enqueue import OnConflict
from orchestrator.store.verbs.guarded import Grip

from .desk import DOUBT, HOLD, Desk, accepted, who

T = TypeVar("T")

_WAITS = """SELECT count(*) AS number FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock'"""


def meanwhile(desk: Desk, first: Callable[[Connection], object], second: Callable[[], T]) -> T:
    """Run `first`, and commit it only when `second` is under way and waits for it."""
    with ThreadPoolExecutor(1) as pool:
        with desk.engine.connect() as connection:
            connection = connection.execution_options(**{sqlite.WRITE: True})
            with connection.begin():
                first(connection)
                answer = pool.submit(second)
                _wait_until_it_waits(desk)
        return answer.result(timeout=30)


def _wait_until_it_waits(desk: Desk) -> None:
    if desk.engine.dialect.name != "postgresql":
        return  # one writer: `second` cannot even begin before
    until = time.monotonic() + 10
    while not desk.rows(_WAITS)[0]["number"]:
        assert time.monotonic() < until, "it never came to wait"


def test_a_job_that_is_accepted_while_it_is_called_off_is_stopped_later(desk: Desk) -> None:
    job = desk.sent()
    accept = partial(outcomes.apply, grip=Grip.of(job), outcome=accepted())
    called_off = meanwhile(desk, accept, lambda: desk.write(people.cancel, job.id))
    assert called_off.state is State.RUNNING
    assert called_off.cancel_requested_at is not None


def test_a_job_that_is_claimed_while_it_is_called_off_is_cancelled(desk: Desk) -> None:
    job = desk.enqueue()
    take = partial(claim, who=who(), limit=1)
    called_off = meanwhile(desk, take, lambda: desk.write(people.cancel, job.id))
    assert called_off.state is State.CANCELLED


def test_a_rescue_that_meets_the_mark_of_the_one_it_buries_knows_of_it(desk: Desk) -> None:
    """Otherwise the job went back to the queue while its request goes out."""
    desk.start("w1")
    job = desk.submitting()
    (peer,) = desk.read(crew.peers)

    def rescue() -> list[Job]:
        decide = partial(after_death, policy=HOLD)
        return desk.write(crew.rescue, who("w2"), [peer], decide)[1]

    with ThreadPoolExecutor(1) as pool:
        with desk.engine.connect() as connection:
            connection = connection.execution_options(**{sqlite.WRITE: True})
            with connection.begin():
                attempt.mark_each(connection, [Marking(job=job, body={}, by="w1")])
                first = pool.submit(rescue)
                if desk.engine.dialect.name == "postgresql":
                    assert first.result(timeout=30) == [], "it leaves alone what others write"
        mended = [*first.result(timeout=30), *rescue()]
    assert [each.state for each in mended] == [State.IN_DOUBT]
    assert desk.get(job.id).attempt == 1


def test_a_worker_that_mends_its_own_job_while_it_is_sent_knows_of_it(desk: Desk) -> None:
    job = desk.submitting()
    mark = partial(attempt.mark_each, markings=[Marking(job=job, body={}, by="w1")])

    def decide(found: Job) -> Outcome:
        outcome = after_death(found, HOLD)
        assert outcome is not None
        return outcome

    mend = partial(crew.mend_own, job_id=job.id, lease=job.lease, decide=decide, by="w1")
    mended = meanwhile(desk, mark, lambda: desk.write(mend))
    assert mended.state is State.IN_DOUBT


def test_two_workers_that_send_a_job_again_send_it_once(desk: Desk) -> None:
    job = desk.apply(desk.sent(), DOUBT)
    desk.sql("UPDATE jobs SET resubmit_at = updated_at")
    again = meanwhile(desk, people.due_resubmits, lambda: desk.write(people.due_resubmits))
    assert again == []
    after = desk.get(job.id)
    assert (after.state, after.resubmits) == (State.QUEUED, 1)
    assert desk.event_names(job.id).count("doubt.resubmitted") == 1


def test_two_people_who_retry_a_job_retry_it_once(desk: Desk) -> None:
    job = desk.apply(desk.sent(), DOUBT)
    desk.write(people.give_up, job.id)
    with pytest.raises(NotAllowed, match="queued"):
        meanwhile(
            desk, partial(people.retry, job_id=job.id), lambda: desk.write(people.retry, job.id)
        )
    assert desk.event_names(job.id).count("job.retried") == 1


def test_an_answer_that_comes_while_a_person_decides_is_kept(desk: Desk) -> None:
    job = desk.apply(desk.sent(), DOUBT)
    late = partial(attempt.keep_late_answer, job_id=job.id, attempt=1, outcome=accepted(7), by="w")
    repaired = meanwhile(desk, partial(people.give_up, job_id=job.id), lambda: desk.write(late))
    assert repaired is None
    assert desk.get(job.id).state is State.FAILED
    (kept,) = [event for event in desk.events(job.id) if event.event == "submit.late_answer"]
    assert kept.detail is not None
    assert kept.detail["run_id"] == "wrun_7"


def test_a_job_that_is_claimed_while_it_is_replaced_stays_what_it_was(desk: Desk) -> None:
    desk.enqueue(unique_key="k")
    replace = partial(
        desk.enqueue_all, {"unique_key": "k", "prompt": "other"}, on_conflict=OnConflict.REPLACE
    )
    with pytest.raises(DuplicateKey, match="submitting"):
        meanwhile(desk, partial(claim, who=who(), limit=1), replace)
    assert desk.rows("SELECT prompt FROM jobs") == [{"prompt": "hello"}]
