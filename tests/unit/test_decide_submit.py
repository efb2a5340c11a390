"""What a submission's answer makes of its job: the documented table, row by row."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from orchestrator import decide
from orchestrator.decide import RESUBMIT_AFTER_S, Policy, after_submit
from orchestrator.outcome import Outcome, Signal
from orchestrator.recoup.answers import Accepted, Answered, Generated, NoAnswer, NotSent
from orchestrator.states import TRANSITIONS, ErrorKind, OnInDoubt, State, kinds_of
from tests.builders import MOMENT, a_job

HOLD = Policy(OnInDoubt.HOLD)
RESUBMIT = Policy(OnInDoubt.RESUBMIT)
FAIL = Policy(OnInDoubt.FAIL)

URL = "https://api.example/api/chat/runs"
REFUSALS = {400, 403, 404, 405, 409, 413, 415, 422}
WAITS = {408, 425, 429}


def answered(status: int, *, envelope: bool, retry_after: float | None) -> Outcome:
    return after_submit(Answered(status, envelope, "words", URL, retry_after), HOLD)


def expected(status: int, *, envelope: bool, retry_after: float | None) -> tuple[Any, ...]:
    """State, kind and signal by the table; written here a second time, on purpose."""
    if status in WAITS or (status == 503 and retry_after is not None):
        return State.QUEUED, None, Signal.NEUTRAL
    if status == 401:
        return State.QUEUED, None, Signal.UNAUTHORIZED
    if status == 402:
        return State.QUEUED, None, Signal.PAYMENT_REQUIRED
    if status // 100 == 3 or (status in REFUSALS and not envelope):
        return State.QUEUED, None, Signal.WRONG_HOST
    if status == 403:
        return State.FAILED, ErrorKind.FORBIDDEN, Signal.REFUSED
    if status in REFUSALS:
        return State.FAILED, ErrorKind.REJECTED, Signal.REFUSED
    return State.IN_DOUBT, ErrorKind.IN_DOUBT, Signal.AMBIGUOUS


@pytest.mark.parametrize("retry_after", [None, 0.0, 17.0])
@pytest.mark.parametrize("envelope", [True, False])
def test_every_status(envelope: bool, retry_after: float | None) -> None:
    for status in range(100, 600):
        check_status(status, envelope=envelope, retry_after=retry_after)


def check_status(status: int, *, envelope: bool, retry_after: float | None) -> None:
    outcome = answered(status, envelope=envelope, retry_after=retry_after)
    found = (outcome.state, outcome.error_kind, outcome.signal)
    assert found == expected(status, envelope=envelope, retry_after=retry_after), status
    assert outcome.http_status == status
    assert f"HTTP {status}" in (outcome.error or "")
    assert outcome.state in TRANSITIONS[State.SUBMITTING]
    assert outcome.error_kind in kinds_of(outcome.state) or not kinds_of(outcome.state)
    if outcome.state is State.QUEUED:
        assert outcome.defer
        assert outcome.refund
    if status in WAITS or status == 503:
        assert outcome.retry_after == (retry_after if outcome.state is State.QUEUED else None)


def test_a_run_that_was_accepted() -> None:
    outcome = after_submit(Accepted("wrun_1", "c", "s"), HOLD)
    assert (outcome.state, outcome.signal) == (State.RUNNING, Signal.ACCEPTED)
    assert outcome.columns == {"run_id": "wrun_1", "chat_id": "c", "session_id": "s"}


def test_an_acceptance_that_named_only_the_run() -> None:
    outcome = after_submit(Accepted("wrun_1", None, None), HOLD)
    assert outcome.state is State.RUNNING
    assert outcome.columns["chat_id"] is None


def test_what_was_not_sent_backs_off_without_an_attempt() -> None:
    outcome = after_submit(NotSent("refused"), HOLD)
    assert (outcome.state, outcome.signal) == (State.QUEUED, Signal.UNREACHED)
    assert outcome.defer
    assert not outcome.refund, "no attempt was counted"
    assert "refused" in (outcome.error or "")


@pytest.mark.parametrize("status", [None, 202, 500])
def test_a_lost_answer_is_in_doubt(status: int | None) -> None:
    outcome = after_submit(NoAnswer("reset", status), HOLD)
    assert (outcome.state, outcome.http_status) == (State.IN_DOUBT, status)
    assert outcome.signal is Signal.AMBIGUOUS
    assert "may have been started" in (outcome.error or "")


def test_a_refusal_has_the_servers_words_and_fields() -> None:
    answer = Answered(400, True, "Invalid artistId", URL, missing_fields=("artistId", "model"))
    outcome = after_submit(answer, HOLD)
    assert outcome.error == "HTTP 400: Invalid artistId (fields: artistId, model)"


def test_a_wrong_host_is_named_with_its_answer() -> None:
    moved = Answered(301, False, "Moved", URL, location="https://elsewhere.example/")
    error = after_submit(moved, HOLD).error or ""
    assert URL in error
    assert "https://elsewhere.example/" in error
    assert URL in (after_submit(Answered(404, False, "a page", URL), HOLD).error or "")


def test_an_endpoint_that_was_removed_fails_its_job_only() -> None:
    outcome = decide.endpoint_missing(Answered(404, False, "a page", URL))
    assert (outcome.state, outcome.error_kind) == (State.FAILED, ErrorKind.REJECTED)
    assert outcome.signal is Signal.NEUTRAL
    assert "endpoint='runs'" in (outcome.error or "")


# --- in doubt -----------------------------------------------------------------------------------


def test_a_doubt_is_held() -> None:
    outcome = decide.in_doubt("lost", HOLD)
    assert (outcome.state, outcome.resubmit_after) == (State.IN_DOUBT, None)


def test_a_doubt_is_sent_again_at_most_once() -> None:
    assert decide.in_doubt("lost", RESUBMIT).resubmit_after == RESUBMIT_AFTER_S == 300
    assert decide.in_doubt("lost", RESUBMIT.of(a_job(resubmits=1))).resubmit_after is None


def test_a_doubt_may_fail_and_says_that_a_run_may_go_on() -> None:
    outcome = decide.in_doubt("lost", FAIL)
    assert (outcome.state, outcome.error_kind) == (State.FAILED, ErrorKind.RUN_LOST)
    assert "may have been started" in (outcome.error or "")
    assert outcome.signal is Signal.AMBIGUOUS


@pytest.mark.parametrize("own", [None, *OnInDoubt])
@pytest.mark.parametrize("policy", [HOLD, RESUBMIT, FAIL])
def test_the_jobs_own_word_comes_first(policy: Policy, own: OnInDoubt | None) -> None:
    assert policy.of(a_job(on_in_doubt=own)).on_in_doubt is (own or policy.on_in_doubt)


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({"state": State.SUBMITTING}, State.QUEUED),
        ({"state": State.SUBMITTING, "sent_at": MOMENT}, State.IN_DOUBT),
        ({"state": State.RUNNING, "sent_at": MOMENT}, None),
    ],
)
def test_after_a_workers_death(columns: dict[str, Any], state: State | None) -> None:
    outcome = decide.after_death(a_job(**columns), HOLD)
    assert (outcome.state if outcome else None) is state


def test_after_a_death_the_policy_counts() -> None:
    job = a_job(state=State.SUBMITTING, sent_at=MOMENT + timedelta(seconds=1))
    outcome = decide.after_death(job, FAIL)
    assert outcome is not None
    assert outcome.state is State.FAILED


# --- the synchronous endpoint -------------------------------------------------------------------

ANSWER: dict[str, Any] = {
    "text": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}],
    "reasoningText": "hm",
    "finishReason": "stop",
    "usage": {
        "inputTokens": 10,
        "outputTokens": 5,
        "totalTokens": 15,
        "reasoningTokens": 2,
        "cachedInputTokens": 1,
    },
    "response": {"modelId": "m", "messages": []},
}


def generated(**changes: Any) -> Outcome:
    return after_submit(Generated({**ANSWER, **changes}), HOLD)


def test_a_generated_answer_fills_the_same_columns() -> None:
    outcome = generated()
    assert (outcome.state, outcome.http_status) == (State.COMPLETED, 200)
    assert outcome.signal is Signal.ACCEPTED
    assert outcome.columns == {
        "result_text": "Hi there",
        "finish_reason": "stop",
        "model_used": "m",
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "reasoning_tokens": 2,
        "cached_tokens": 1,
        "cost_usd": None,
    }


def test_a_generated_text_may_be_plain() -> None:
    assert generated(text="Hi").columns["result_text"] == "Hi"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"finishReason": "length"}, ErrorKind.INCOMPLETE),
        ({"finishReason": "error"}, ErrorKind.MODEL_ERROR),
        ({"text": None}, ErrorKind.NO_OUTPUT),
        ({"finishReason": None}, None),
        ({"usage": "none", "response": None}, None),
    ],
)
def test_a_generated_answer_is_judged_like_a_run(
    changes: dict[str, Any], kind: ErrorKind | None
) -> None:
    outcome = generated(**changes)
    assert outcome.error_kind == kind
    assert outcome.state is (State.FAILED if kind else State.COMPLETED)


def test_a_generated_answer_may_be_accepted_by_choice() -> None:
    policy = Policy(OnInDoubt.HOLD, accept_finish=frozenset({"length"}))
    answer = Generated({**ANSWER, "finishReason": "length"})
    assert after_submit(answer, policy).state is State.COMPLETED
