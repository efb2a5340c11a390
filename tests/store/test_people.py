from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.decide import Policy, in_doubt
from orchestrator.errors import LeaseLost, NotAllowed, NotFound
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import ErrorKind, OnInDoubt, State
from orchestrator.store.schema import ATTEMPT_COLUMNS
from orchestrator.store.verbs import due, guarded, look, outcomes, people
from orchestrator.store.verbs.guarded import Grip

from .desk import DONE, DOUBT, FAILED, Desk, accepted

SETTLED = [state for state in State if state.settled]
RESUBMIT = Policy(OnInDoubt.RESUBMIT)


# --- cancel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.QUEUED, State.SUBMITTING, State.IN_DOUBT])
def test_what_does_not_run_is_cancelled_at_once(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    cancelled = desk.write(people.cancel, job.id)
    assert (cancelled.state, cancelled.error_kind) == (State.CANCELLED, ErrorKind.CANCELLED)
    assert cancelled.finished_at is not None
    assert cancelled.lease > job.lease
    assert state.value in (cancelled.error or "")
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip.of(job), {})


def test_a_cancelled_doubt_says_that_a_run_may_go_on(desk: Desk) -> None:
    assert "may have started a run" in (desk.write(people.cancel, desk.doubtful().id).error or "")


@pytest.mark.parametrize("make", [Desk.sent, Desk.running])
def test_what_was_sent_is_told_to_stop_and_keeps_its_state(
    desk: Desk, make: Callable[[Desk], Job]
) -> None:
    job = make(desk)
    asked = desk.write(people.cancel, job.id)
    assert asked.cancel_requested_at is not None
    assert (asked.state, asked.lease, asked.error_kind) == (job.state, job.lease, None)
    assert desk.event_names(job.id)[-1] == "job.cancel_requested"
    events = desk.events(job.id)
    assert desk.write(people.cancel, job.id) == asked, "a second request changes nothing"
    assert desk.events(job.id) == events


@pytest.mark.parametrize("state", SETTLED)
def test_a_settled_job_is_not_cancelled(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    with pytest.raises(NotAllowed, match=f"job {job.id} is {state.value}"):
        desk.write(people.cancel, job.id)
    assert desk.get(job.id) == job


def test_a_cancellation_survives_the_way_back_to_the_queue(desk: Desk) -> None:
    job = desk.sent()
    desk.write(people.cancel, job.id)
    deferred = Outcome(State.QUEUED, "submit.deferred", error="429", defer=True, refund=True)
    desk.apply(job, deferred)
    assert desk.claim() == []
    (swept,) = desk.write(people.sweep_cancelled)
    assert (swept.id, swept.state) == (job.id, State.CANCELLED)
    assert desk.write(people.sweep_cancelled) == []


def test_a_cancellation_outlives_a_lost_answer(desk: Desk) -> None:
    job = desk.sent()
    desk.write(people.cancel, job.id)
    desk.apply(job, in_doubt("lost", RESUBMIT))
    desk.age(job.id, resubmit_at=600)
    assert desk.write(people.due_resubmits) == []
    (swept,) = desk.write(people.sweep_cancelled)
    assert (swept.id, swept.state) == (job.id, State.CANCELLED)


# --- retry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", SETTLED)
def test_a_settled_job_is_queued_again(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    again = desk.write(people.retry, job.id)
    assert (again.state, again.attempt, again.error_kind) == (State.QUEUED, job.attempt, None)
    assert again.lease > job.lease
    assert again.max_attempts > again.attempt
    left = {name: getattr(again, name) for name in ATTEMPT_COLUMNS if name != "error"}
    assert left == dict.fromkeys(left)
    assert [taken.id for taken in desk.claim()] == [job.id]


def test_a_retry_keeps_what_the_attempt_left(desk: Desk) -> None:
    job = desk.completed()
    desk.write(outcomes.save_messages, job, [Message(0, "m", "assistant", "done", {}, "server")])
    desk.write(people.retry, job.id)
    (archived,) = desk.read(look.previous_attempts, job.id)
    for name in ATTEMPT_COLUMNS:
        assert getattr(archived, name) == getattr(job, name), name
    assert (archived.attempt, archived.state) == (1, "completed")
    assert [message.text for message in desk.read(look.messages_of, job.id, 1)] == ["done"]


def test_a_job_that_was_never_sent_leaves_no_attempt(desk: Desk) -> None:
    job = desk.cancelled()
    desk.write(people.retry, job.id)
    assert desk.read(look.previous_attempts, job.id) == []
    (taken,) = desk.claim()
    assert desk.mark(taken).attempt == 1


def test_a_retried_job_does_not_expire_again(desk: Desk) -> None:
    expired = desk.enqueue(expires_at="2999-01-31T08:00:00Z")
    desk.age(expired.id, expires_at=1000 * 366 * 86_400)
    desk.write(due.expire)
    assert desk.write(people.retry, expired.id).expires_at is None
    assert [taken.id for taken in desk.claim()] == [expired.id]
    other = desk.failed(expires_at="2999-01-31T08:00:00Z")
    assert desk.write(people.retry, other.id).expires_at == other.expires_at


def test_attempts_are_numbered_through_all_retries(desk: Desk) -> None:
    job = desk.failed()
    for number in (2, 3):
        desk.write(people.retry, job.id)
        (taken,) = desk.claim()
        running = desk.apply(desk.mark(taken), accepted(number))
        assert running.attempt == number
        desk.apply(running, FAILED)
    archived = desk.read(look.previous_attempts, job.id)
    assert [row.attempt for row in archived] == [1, 2]


def test_a_retry_while_its_queue_is_called_off_in_between(desk: Desk) -> None:
    job = desk.failed()
    desk.write(people.retry, job.id)
    desk.write(people.cancel, job.id)
    desk.write(people.retry, job.id)
    (taken,) = desk.claim()
    assert desk.mark(taken).attempt == 2
    assert [row.attempt for row in desk.read(look.previous_attempts, job.id)] == [1]


@pytest.mark.parametrize("state", [state for state in State if not state.settled])
def test_a_job_that_goes_on_is_not_retried(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    remedy = "resolve it" if state is State.IN_DOUBT else "cancel it or wait"
    with pytest.raises(NotAllowed, match=remedy):
        desk.write(people.retry, job.id)
    assert desk.get(job.id) == job


# --- resolve ----------------------------------------------------------------------------------


def test_a_doubt_is_sent_again_as_a_new_attempt(desk: Desk) -> None:
    job = desk.doubtful()
    again = desk.write(people.resubmit, job.id)
    assert (again.state, again.resubmits, again.attempt) == (State.QUEUED, 0, 1)
    (archived,) = desk.read(look.previous_attempts, job.id)
    assert (archived.attempt, archived.state) == (1, "in_doubt")
    (taken,) = desk.claim()
    assert desk.mark(taken).attempt == 2


def test_a_doubt_is_given_up(desk: Desk) -> None:
    failed = desk.write(people.give_up, desk.doubtful().id)
    assert (failed.state, failed.error_kind) == (State.FAILED, ErrorKind.RUN_LOST)
    assert failed.finished_at is not None


def adopt_run(desk: Desk, job: Job) -> Job:
    return desk.write(people.adopt_run, job.id, run_id="wrun_a", chat_id="c", session_id="s")


def test_a_doubt_adopts_a_run_that_goes_on(desk: Desk) -> None:
    job = desk.doubtful()
    adopted = adopt_run(desk, job)
    assert (adopted.state, adopted.run_id, adopted.chat_id) == (State.RUNNING, "wrun_a", "c")
    assert (adopted.attempt, adopted.worker_id, adopted.error_kind) == (1, None, None)
    assert adopted.accepted_at is not None
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip.of(job), {})


@pytest.mark.parametrize("outcome", [DONE, FAILED], ids=lambda outcome: outcome.state.value)
def test_a_doubt_adopts_a_run_that_is_over(desk: Desk, outcome: Outcome) -> None:
    job = desk.doubtful()
    kept = [Message(0, "m", "assistant", "done", {"id": "m"}, "server")]
    settled = desk.write(people.adopt_ended, job.id, outcome, kept, chat_id="c", session_id="s")
    assert (settled.state, settled.chat_id, settled.session_id) == (outcome.state, "c", "s")
    assert desk.read(look.messages_of, job.id) == kept
    assert desk.event_names(job.id)[-2:] == ["doubt.adopted", outcome.event]


@pytest.mark.parametrize("state", [state for state in State if state is not State.IN_DOUBT])
def test_only_a_doubt_is_resolved(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    verbs: list[Callable[[], object]] = [
        lambda: desk.write(people.resubmit, job.id),
        lambda: desk.write(people.give_up, job.id),
        lambda: adopt_run(desk, job),
        lambda: desk.write(people.adopt_ended, job.id, DONE, [], chat_id="c", session_id="s"),
    ]
    for verb in verbs:
        with pytest.raises(NotAllowed, match="not in doubt"):
            verb()
    assert desk.get(job.id) == job


def test_the_policy_resubmits_when_the_time_has_come_and_once(desk: Desk) -> None:
    job = desk.apply(desk.sent(), in_doubt("lost", RESUBMIT))
    assert desk.write(people.due_resubmits) == []
    desk.age(job.id, resubmit_at=600)
    (again,) = desk.write(people.due_resubmits)
    assert (again.id, again.state, again.resubmits) == (job.id, State.QUEUED, 1)
    assert desk.write(people.due_resubmits) == []
    (taken,) = desk.claim()
    second = desk.apply(desk.mark(taken), in_doubt("lost", RESUBMIT.of(desk.get(job.id))))
    assert (second.state, second.resubmit_at) == (State.IN_DOUBT, None)


def test_a_held_doubt_is_never_resubmitted_by_itself(desk: Desk) -> None:
    desk.apply(desk.sent(), DOUBT)
    assert desk.write(people.due_resubmits) == []


# --- what is not there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", [people.cancel, people.retry, people.resubmit, people.give_up, people.load]
)
def test_there_is_no_such_job(desk: Desk, verb: Callable[..., Job]) -> None:
    with pytest.raises(NotFound, match="there is no job 99"):
        desk.write(verb, 99)


def test_queues_are_paused_limited_and_resumed(desk: Desk) -> None:
    desk.enqueue(queue="b")
    desk.write(people.pause, "a", "lunch")
    desk.write(people.limit_queue, "a", 3)
    a, b = desk.read(look.queue_rows)
    assert (a["name"], a["paused_reason"], a["concurrency"]) == ("a", "lunch", 3)
    assert a["paused_at"] is not None
    assert (b["name"], b["paused_at"], b["jobs"]) == ("b", None, {"queued": 1})
    desk.write(people.resume, "a")
    assert desk.read(look.queue_rows)[0]["paused_at"] is None
    assert desk.read(look.queue_rows)[0]["concurrency"] == 3
