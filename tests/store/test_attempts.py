from __future__ import annotations

import dataclasses

import pytest

from orchestrator.decide import Policy, in_doubt, rejected
from orchestrator.errors import LeaseLost
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.states import ErrorKind, OnInDoubt, State
from orchestrator.store.schema import ATTEMPT_COLUMNS
from orchestrator.store.verbs import attempt, guarded, look, outcomes, people, streams
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.streams import Segment

from .desk import DONE, DOUBT, FAILED, Desk, accepted

DEFERRED = Outcome(State.QUEUED, "submit.deferred", error="HTTP 429", defer=True, refund=True)


def a_message(text: str = "done", position: int = 0) -> Message:
    whole = {"id": f"m{position}", "parts": [{"type": "text", "text": text}], "\x00": "\ud800"}
    return Message(position, f"m{position}", "assistant", text, whole, "server")


# --- mark -------------------------------------------------------------------------------------


def test_a_mark_says_that_the_request_begins_to_go_out(desk: Desk) -> None:
    job = desk.submitting()
    marked = desk.mark(job)
    assert (marked.state, marked.lease, marked.attempt) == (State.SUBMITTING, job.lease, 1)
    assert marked.sent_at is not None
    assert marked.request == {"prompt": "hello"}
    assert desk.event_names(job.id)[-1] == "submit.marked"


def test_a_submission_is_not_marked_twice(desk: Desk) -> None:
    marked = desk.sent()
    with pytest.raises(LeaseLost):
        desk.mark(marked)
    assert desk.get(marked.id) == marked


def test_a_job_whose_cancellation_was_asked_for_is_not_marked(desk: Desk) -> None:
    job = desk.submitting()
    asked = desk.write(
        guarded.write, Grip.of(job), {"cancel_requested_at": job.created_at}, event="test.asked"
    )
    with pytest.raises(LeaseLost):
        desk.mark(asked)
    assert desk.get(job.id).attempt == 0


def test_a_cancelled_submission_is_not_marked(desk: Desk) -> None:
    job = desk.submitting()
    desk.write(people.cancel, job.id)
    with pytest.raises(LeaseLost):
        desk.mark(job)


def test_a_lost_lease_marks_nothing(desk: Desk) -> None:
    job = desk.submitting()
    taken = desk.write(guarded.write, Grip.of(job), {}, seize=True)
    with pytest.raises(LeaseLost):
        desk.mark(job)
    assert desk.mark(taken).attempt == 1


# --- back to the queue ------------------------------------------------------------------------


def test_what_was_put_back_before_its_mark_keeps_its_count(desk: Desk) -> None:
    job = desk.submitting()
    back = desk.write(attempt.put_back, Grip.of(job), why="no route", backoff_s=60.0, by="w1")
    assert (back.state, back.attempt, back.deferrals) == (State.QUEUED, 0, 1)
    assert (back.error, back.error_kind, back.worker_id) == ("no route", None, None)
    assert desk.claim() == []


def test_what_was_put_back_after_its_mark_gets_its_attempt_back(desk: Desk) -> None:
    job = desk.sent()
    back = desk.write(attempt.put_back, Grip.of(job), why="too late", backoff_s=0.0, by="w1")
    assert (back.state, back.attempt, back.sent_at) == (State.QUEUED, 0, None)
    (again,) = desk.claim()
    assert desk.mark(again).attempt == 1


def test_a_deferral_refunds_and_counts_and_an_acceptance_forgets(desk: Desk) -> None:
    job = desk.sent()
    back = desk.apply(job, DEFERRED, backoff_s=0.0)
    assert (back.attempt, back.deferrals, back.error) == (0, 1, "HTTP 429")
    (again,) = desk.claim()
    running = desk.apply(desk.mark(again), accepted())
    assert (running.attempt, running.deferrals, running.error) == (1, 0, None)
    assert running.accepted_at is not None
    ids = (running.run_id, running.chat_id, running.session_id)
    assert ids == ("wrun_1", "chat-1", "session-1")


def test_a_back_off_is_kept_in_available_at(desk: Desk) -> None:
    back = desk.apply(desk.sent(), DEFERRED, backoff_s=120.0)
    assert 119 < (back.available_at - back.updated_at).total_seconds() <= 120


# --- in doubt and late answers ----------------------------------------------------------------


def test_a_doubt_is_held_without_a_worker(desk: Desk) -> None:
    job = desk.doubtful()
    assert (job.error_kind, job.worker_id, job.resubmit_at) == (ErrorKind.IN_DOUBT, None, None)
    assert (job.attempt, job.finished_at) == (1, None)
    assert job.sent_at is not None


def test_the_policy_resubmit_sets_a_time(desk: Desk) -> None:
    outcome = in_doubt("lost", Policy(OnInDoubt.RESUBMIT))
    job = desk.apply(desk.sent(), outcome)
    assert job.resubmit_at is not None
    assert 299 < (job.resubmit_at - job.updated_at).total_seconds() <= 300


def test_a_stop_goes_out_with_the_clocks_that_say_why(desk: Desk) -> None:
    job = desk.running()
    desk.write(
        attempt.begin_stop, Grip.of(job), why="stalled", followed_s=70.0, quiet_s=60.0, by="w1"
    )
    after = desk.get(job.id)
    assert (after.state, after.followed_s, after.quiet_s) == (State.RUNNING, 70.0, 60.0)
    last = desk.events(job.id)[-1]
    assert (last.event, last.detail) == ("stop.sent", {"why": "stalled"})


def test_a_late_answer_repairs_a_doubt_of_the_same_attempt(desk: Desk) -> None:
    job = desk.doubtful()
    repaired = desk.write(attempt.keep_late_answer, job.id, 1, accepted(), "w1")
    assert repaired is not None
    assert (repaired.state, repaired.run_id, repaired.worker_id) == (State.RUNNING, "wrun_1", None)
    assert (repaired.error_kind, repaired.error) == (None, None)
    assert repaired.lease > job.lease
    assert desk.event_names(job.id)[-2:] == ["submit.late_answer", "submit.accepted"]


@pytest.mark.parametrize(
    "outcome", [rejected("no"), DEFERRED, DOUBT, DONE], ids=lambda outcome: outcome.event
)
def test_any_late_answer_decides_a_doubt(desk: Desk, outcome: Outcome) -> None:
    job = desk.doubtful()
    repaired = desk.write(attempt.keep_late_answer, job.id, 1, outcome, "w1")
    assert repaired is not None
    assert repaired.state is outcome.state


def test_a_late_answer_of_the_synchronous_endpoint_keeps_its_text(desk: Desk) -> None:
    job = desk.doubtful(endpoint="generate")
    kept = [a_message("late")]
    repaired = desk.write(attempt.keep_late_answer, job.id, 1, DONE, "w1", kept)
    assert repaired is not None
    assert (repaired.state, repaired.result_text) == (State.COMPLETED, "done")
    assert desk.read(look.messages_of, job.id) == kept


@pytest.mark.parametrize("state", [state for state in State if state is not State.IN_DOUBT])
def test_a_late_answer_changes_no_other_job_but_is_written_down(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    assert desk.write(attempt.keep_late_answer, job.id, job.attempt, accepted(9), "w1") is None
    assert desk.get(job.id) == job
    event = desk.events(job.id)[-1]
    assert (event.event, event.from_state, event.to_state) == ("submit.late_answer", None, None)
    assert event.detail is not None
    assert event.detail["run_id"] == "wrun_9"


def test_a_late_answer_of_an_older_attempt_repairs_nothing(desk: Desk) -> None:
    job = desk.doubtful()
    desk.write(people.resubmit, job.id)
    (again,) = desk.claim()
    second = desk.apply(desk.mark(again), DOUBT)
    assert second.attempt == 2
    assert desk.write(attempt.keep_late_answer, job.id, 1, accepted(), "w1") is None
    assert desk.get(job.id) == second
    assert desk.event_names(job.id)[-1] == "submit.late_answer"


def test_a_late_answer_of_a_deleted_job_is_no_error(desk: Desk) -> None:
    job = desk.doubtful()
    desk.sql("DELETE FROM jobs WHERE id = :id", id=job.id)
    assert desk.write(attempt.keep_late_answer, job.id, 1, accepted(), "w1") is None


# --- settle -----------------------------------------------------------------------------------


def settle(desk: Desk, job: Job, outcome: Outcome = DONE, *kept: Message, **options: float) -> Job:
    return desk.write(outcomes.settle, Grip.of(job), outcome, kept, by="w1", **options)  # type: ignore[arg-type]  # only retry_after_s is given


def test_settling_keeps_the_messages_whole(desk: Desk) -> None:
    job = desk.running()
    kept = [a_message("a"), a_message("b", 1)]
    done = settle(desk, job, DONE, *kept)
    assert (done.state, done.result_text, done.error_kind) == (State.COMPLETED, "done", None)
    assert done.finished_at is not None
    assert desk.read(look.messages_of, job.id) == kept


def test_settling_again_keeps_one_version(desk: Desk) -> None:
    job = desk.running()
    desk.write(outcomes.save_messages, job, [a_message("old"), a_message("old", 1)])
    settle(desk, job, DONE, a_message("new"))
    assert [message.text for message in desk.read(look.messages_of, job.id)] == ["new"]


def test_settling_drops_the_checkpoints_of_the_attempt(desk: Desk) -> None:
    job, other = desk.running(), desk.running()
    for one in (job, other):
        desk.checkpoint(one, Segment(0, ["a"]), followed_s=1.0, quiet_s=0.0)
    settle(desk, job)
    assert desk.read(streams.segments, job.id, 1) == []
    assert desk.read(streams.segments, other.id, 1) == [Segment(0, ["a"])]


def test_a_late_writers_messages_roll_back(desk: Desk) -> None:
    job = desk.running()
    taken = desk.write(guarded.write, Grip.of(job), {}, seize=True)
    settle(desk, taken, DONE, a_message("right"))
    settled = desk.get(job.id)
    with pytest.raises(LeaseLost):
        settle(desk, job, FAILED, a_message("wrong"))
    assert desk.get(job.id) == settled
    assert [message.text for message in desk.read(look.messages_of, job.id)] == ["right"]


def test_a_difference_is_an_event(desk: Desk) -> None:
    job = desk.running()
    desk.write(outcomes.settle, Grip.of(job), DONE, [], difference={"kept": "server"})
    event = desk.events(job.id)[-1]
    assert (event.event, event.detail) == ("collect.difference", {"kept": "server"})


def test_text_that_no_column_holds_is_replaced_and_json_keeps_it(desk: Desk) -> None:
    job = desk.running()
    nasty = "a\x00b\ud800c"
    done = Outcome(State.COMPLETED, "run.completed", columns={"result_text": nasty})
    settled = settle(desk, job, done, a_message(nasty))
    assert settled.result_text == "a\ufffdb\ufffdc"
    (kept,) = desk.read(look.messages_of, job.id)
    assert kept.text == "a\ufffdb\ufffdc"
    assert kept.message == a_message(nasty).message


# --- a further attempt by policy --------------------------------------------------------------


def test_a_retry_by_policy_moves_what_the_attempt_left(desk: Desk) -> None:
    job = desk.running(max_attempts=2)
    columns = {"run_status": "failed", "cost_usd": 0.5, "total_tokens": 7, "result_text": "half"}
    failed = dataclasses.replace(FAILED, columns=columns)
    queued = settle(desk, job, failed, a_message("half"), retry_after_s=60.0)
    assert (queued.state, queued.attempt, queued.error) == (State.QUEUED, 1, FAILED.error)
    assert queued.lease > job.lease
    left = {name: getattr(queued, name) for name in ATTEMPT_COLUMNS if name != "error"}
    assert left == dict.fromkeys(left)
    assert 59 < (queued.available_at - queued.updated_at).total_seconds() <= 60
    (archived,) = desk.read(look.previous_attempts, job.id)
    assert (archived.attempt, archived.state, archived.error_kind) == (1, "failed", "run_failed")
    assert (archived.cost_usd, archived.total_tokens) == (0.5, 7)
    for name in ("run_id", "chat_id", "session_id", "sent_at", "accepted_at", "worker_id"):
        assert getattr(archived, name) == getattr(job, name), name
    assert archived.finished_at is not None
    assert [message.text for message in desk.read(look.messages_of, job.id, 1)] == ["half"]
    assert desk.event_names(job.id)[-2:] == ["run.run_failed", "job.retried"]


def test_a_wish_to_cancel_forbids_a_further_attempt(desk: Desk) -> None:
    job = desk.running(max_attempts=2)
    desk.write(people.cancel, job.id)
    settled = settle(desk, job, FAILED, a_message("half"), retry_after_s=60.0)
    assert (settled.state, settled.error_kind, settled.attempt) == (
        State.FAILED,
        ErrorKind.RUN_FAILED,
        1,
    )
    assert desk.read(look.previous_attempts, job.id) == []
    assert "job.retried" not in desk.event_names(job.id)


def test_cost_counts_earlier_attempts(desk: Desk) -> None:
    job = desk.running(max_attempts=2)
    cost = {"run_status": "failed", "cost_usd": 0.5, "total_tokens": 7}
    settle(desk, job, dataclasses.replace(FAILED, columns=cost), retry_after_s=0.0)
    (again,) = desk.claim()
    second = desk.apply(desk.mark(again), accepted(2))
    settle(desk, second, dataclasses.replace(DONE, columns={"cost_usd": 0.25, "total_tokens": 3}))
    total = desk.read(look.totals, look.Filter(ids=(job.id,)))
    assert total == {"cost_usd": 0.75, "total_tokens": 10, "of_unknown_cost": 0}


def test_runs_that_told_no_cost_are_counted(desk: Desk) -> None:
    first = desk.running(max_attempts=2)
    settle(
        desk, first, dataclasses.replace(FAILED, columns={"run_status": "failed"}), retry_after_s=0
    )
    (again,) = desk.claim()
    second = desk.apply(desk.mark(again), accepted(2))
    settle(desk, second, dataclasses.replace(DONE, columns={"total_tokens": 3}))
    desk.running()  # is not over: it may still tell
    assert desk.read(look.totals, look.Filter())["of_unknown_cost"] == 2


def test_a_run_that_may_have_been_started_is_no_run_without_cost(desk: Desk) -> None:
    doubtful, given_up = desk.doubtful(), desk.doubtful()
    assert desk.read(look.totals, look.Filter())["of_unknown_cost"] == 2
    desk.write(people.give_up, given_up.id)
    assert desk.read(look.totals, look.Filter())["of_unknown_cost"] == 2
    desk.write(people.resubmit, doubtful.id)
    (again,) = desk.claim()
    settle(desk, desk.apply(desk.mark(again), accepted(2)), DONE)
    assert desk.read(look.totals, look.Filter())["of_unknown_cost"] == 3
