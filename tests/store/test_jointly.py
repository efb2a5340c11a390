"""Writes of many jobs in one statement: each is its own, and one that is refused harms no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from orchestrator.errors import LeaseLost
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import ErrorKind, State
from orchestrator.store.commit import Joint
from orchestrator.store.engine import parse_url
from orchestrator.store.stamp import clock
from orchestrator.store.store import Store
from orchestrator.store.verbs import attempt, guarded, look, outcomes, streams
from orchestrator.store.verbs.attempt import Marking, Seen
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.jointly import Change, write_each
from orchestrator.store.verbs.outcomes import Applied
from orchestrator.store.verbs.streams import Closing, Saving, Segment

from .desk import DONE, FAILED, Desk, accepted


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with Store.open(parse_url(database_url)) as store:
        yield store


def a_message(text: str) -> Message:
    return Message(0, text, "assistant", text, {"id": text, "parts": []}, "server")


def marking(job: Job) -> Marking:
    return Marking(job=job, body={"prompt": f"of {job.id}"}, by="w1")


def applied(job: Job, outcome: Outcome, *kept: Message) -> Applied:
    return Applied(job=job, outcome=outcome, by="w1", kept=kept)


# --- what a verb returns is what stands -------------------------------------------------------


def test_marks_are_each_jobs_own(desk: Desk) -> None:
    jobs = [desk.submitting() for _ in range(5)]
    done = desk.write(attempt.mark_each, [marking(job) for job in jobs])
    assert done == [desk.get(job.id) for job in jobs]
    assert [job.request for job in done] == [{"prompt": f"of {job.id}"} for job in jobs]
    assert all(job.attempt == 1 and job.sent_at for job in done)
    assert {tuple(desk.event_names(job.id)[-2:]) for job in jobs} == {
        ("job.claimed", "submit.marked")
    }


def test_outcomes_are_each_jobs_own_whatever_their_columns(desk: Desk) -> None:
    ended = [desk.running(), desk.running(), desk.running()]
    sent = [desk.sent(), desk.sent()]
    for job in ended:
        desk.checkpoint(job, Segment(0, ["a"]))
    costly = Outcome(State.COMPLETED, "run.completed", columns={"cost_usd": 0.1 + 0.2})
    done = desk.write(
        outcomes.apply_each,
        [
            applied(ended[0], DONE, a_message("one")),
            applied(sent[0], accepted(71)),
            applied(ended[1], FAILED),
            applied(ended[2], costly, a_message("three")),
            applied(sent[1], accepted(72)),
        ],
    )
    assert done == [desk.get(job.id) for job in (ended[0], sent[0], ended[1], ended[2], sent[1])]
    assert [job.state.value for job in done] == [
        "completed",
        "running",
        "failed",
        "completed",
        "running",
    ]
    assert (done[2].error_kind, done[3].cost_usd) == (ErrorKind.RUN_FAILED, 0.1 + 0.2)
    kept = [[row.text for row in desk.read(look.messages_of, job.id)] for job in ended]
    assert kept == [["one"], [], ["three"]]
    assert all(desk.read(streams.segments, job.id, 1) == [] for job in ended)


def test_clocks_places_and_chunks_are_each_jobs_own(desk: Desk) -> None:
    one, two = desk.running(), desk.running()
    seen = [
        Seen(job=one, run_status="running", followed_s=1.0, quiet_s=0.5),
        Seen(job=two, run_status=None, followed_s=2.0, quiet_s=0.0),
    ]
    desk.write(attempt.progress_each, seen)
    assert [desk.get(job.id).followed_s for job in (one, two)] == [1.0, 2.0]
    assert (desk.get(one.id).run_status, desk.get(two.id).run_status) == ("running", None)
    desk.write(streams.open_each, [one, two])
    desk.write(streams.close_each, [Closing(job=one, left=True), Closing(job=two, left=False)])
    closed = [desk.get(job.id) for job in (one, two)]
    assert [job.stream_left_at is not None for job in closed] == [True, False]
    savings = [
        Saving(job=job, segment=Segment(0, [job.id]), followed_s=3.0, quiet_s=0.0)
        for job in (one, two)
    ]
    desk.write(streams.checkpoint_each, savings)
    assert desk.read(streams.segments, two.id, 1) == [Segment(0, [two.id])]


def test_what_goes_back_to_the_queue_is_no_joint_matter(desk: Desk) -> None:
    back = Outcome(State.QUEUED, "submit.deferred", defer=True)
    with pytest.raises(AssertionError, match="applied alone"):
        desk.write(outcomes.apply_each, [applied(desk.sent(), back)])


# --- all or none ------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["lease", "state"])
def test_one_that_is_not_as_believed_refuses_all(desk: Desk, column: str) -> None:
    jobs = [desk.running() for _ in range(4)]
    if column == "lease":
        desk.write(guarded.write, Grip.of(jobs[2]), {}, seize=True)
    else:
        desk.apply(jobs[2], DONE)
    before = [desk.get(job.id) for job in jobs], [desk.events(job.id) for job in jobs]
    with pytest.raises(LeaseLost, match="3 of 4"):
        desk.write(outcomes.apply_each, [applied(job, FAILED) for job in jobs])
    assert ([desk.get(job.id) for job in jobs], [desk.events(job.id) for job in jobs]) == before


def test_only_moves_of_the_table_are_written(desk: Desk) -> None:
    job = desk.running()
    wrong = Change(job=job, values={}, to=State.SUBMITTING, event="test.moved")
    with pytest.raises(AssertionError, match="no job goes from running to submitting"):
        desk.write(lambda c: write_each(c, [wrong], now=clock(c)))


async def test_one_that_lost_its_lease_harms_no_other(store: Store, desk: Desk) -> None:
    """Of many callers in one transaction, only the one whose guard fails is told so."""
    jobs = [desk.submitting() for _ in range(30)]
    desk.write(guarded.write, Grip.of(jobs[7]), {}, seize=True)
    desk.sql("UPDATE jobs SET cancel_requested_at = updated_at WHERE id = :id", id=jobs[11].id)
    answers: dict[int, Any] = {}

    async def mark(job: Job) -> None:
        try:
            verb = Joint(attempt.mark_each, marking(job))
            answers[job.id] = await store.write(verb, order=job.id, urgent=True)
        except LeaseLost as lost:
            answers[job.id] = lost

    async with anyio.create_task_group() as callers:
        for job in jobs:
            callers.start_soon(mark, job)
    refused = {job_id for job_id, answer in answers.items() if isinstance(answer, LeaseLost)}
    assert refused == {jobs[7].id, jobs[11].id}
    for job in jobs:
        now = desk.get(job.id)
        if job.id in refused:
            assert (now.attempt, now.sent_at) == (0, None)
        else:
            assert answers[job.id] == now
            assert desk.event_names(job.id).count("submit.marked") == 1
