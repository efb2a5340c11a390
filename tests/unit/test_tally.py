from __future__ import annotations

import dataclasses

import pytest

from orchestrator.job import Job
from orchestrator.states import State
from orchestrator.worker.tally import Tally

BLANK = Job(**{field.name: None for field in dataclasses.fields(Job)})  # type: ignore[arg-type] # only two columns matter


def a_job(job_id: int, state: State) -> Job:
    return BLANK.evolve({"id": job_id, "state": state})


@pytest.mark.parametrize("forgetful", [True, False])
def test_each_job_counts_as_it_last_stood(forgetful: bool) -> None:
    tally = Tally(forgetful=forgetful)
    for job_id, states in {
        1: (State.RUNNING, State.COMPLETED),
        2: (State.IN_DOUBT, State.RUNNING, State.COMPLETED),
        3: (State.RUNNING,),
    }.items():
        tally.take(a_job(job_id, State.SUBMITTING))
        for state in states:
            tally.count(a_job(job_id, state))
    assert [tally.number(state) for state in (State.COMPLETED, State.RUNNING)] == [2, 1]
    assert tally.all_completed
    tally.count(a_job(3, State.FAILED))
    assert (tally.number(State.FAILED), tally.number(State.RUNNING)) == (1, 0)
    assert not tally.all_completed


def test_a_job_that_was_retried_counts_once_where_all_are_remembered() -> None:
    tally = Tally()
    for state in (State.FAILED, State.RUNNING, State.COMPLETED):
        tally.take(a_job(1, State.SUBMITTING))
        tally.count(a_job(1, state))
    assert (tally.taken, tally.number(State.FAILED)) == (1, 0)
    assert tally.all_completed


def test_what_is_swept_is_not_taken() -> None:
    tally = Tally()
    tally.count(a_job(1, State.CANCELLED))
    tally.take(a_job(2, State.SUBMITTING))
    assert (tally.taken, tally.number(State.CANCELLED)) == (1, 1)


def test_a_worker_of_months_holds_only_what_is_not_settled() -> None:
    tally = Tally(forgetful=True)
    for job_id in range(10_000):
        tally.take(a_job(job_id, State.SUBMITTING))
        tally.count(a_job(job_id, State.COMPLETED))
    assert tally.number(State.COMPLETED) == 10_000
    assert not tally._last
    assert not tally._taken
