"""What a run's end and its message make of the job."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from orchestrator.decide import may_retry
from orchestrator.message import answer_text, message_columns, usage_columns, whole_text
from orchestrator.outcome import Outcome
from orchestrator.recoup.answers import RunStatus
from orchestrator.states import RETRYABLE_KINDS, TRANSITIONS, ErrorKind, State, kinds_of
from orchestrator.verdict import Collected, End, Stopping, after_adoption, after_end
from tests.builders import MOMENT, a_job

NOTHING: frozenset[str] = frozenset()
STOP_KINDS = {
    Stopping.CANCELLED: ErrorKind.CANCELLED,
    Stopping.TIMED_OUT: ErrorKind.TIMED_OUT,
    Stopping.STALLED: ErrorKind.STALLED,
}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "state": "done"}


STEP = {"type": "step-start"}
TOOL = {"type": "tool-search", "toolCallId": "t", "state": "output-available"}


def message(finish: str | None = "stop", words: str = "done") -> dict[str, Any]:
    metadata = {"lastStepFinishReason": finish} if finish else {}
    return {"id": "m", "parts": [STEP, text(words)], "metadata": metadata}


def kind_of(end: End, collected: Collected, accept: frozenset[str] = NOTHING) -> ErrorKind | None:
    return after_end(end, collected, accept).error_kind


COMPLETED = End(RunStatus.COMPLETED)


# --- completed runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        ("stop", None),
        (None, None),
        ("error", ErrorKind.MODEL_ERROR),
        ("length", ErrorKind.INCOMPLETE),
        ("content-filter", ErrorKind.INCOMPLETE),
        ("tool-calls", ErrorKind.INCOMPLETE),
        ("other", ErrorKind.INCOMPLETE),
    ],
)
def test_completed_means_a_good_end(finish: str | None, kind: ErrorKind | None) -> None:
    outcome = after_end(COMPLETED, Collected(message(finish)), NOTHING)
    assert outcome.error_kind == kind
    assert outcome.state is (State.FAILED if kind else State.COMPLETED)
    assert outcome.columns["result_text"] == "done", "the text is kept whatever the end"
    assert outcome.columns["run_status"] == "completed"
    if finish:
        accepted = after_end(COMPLETED, Collected(message(finish)), frozenset({finish}))
        assert accepted.state is State.COMPLETED


def test_no_message_is_no_output() -> None:
    assert kind_of(COMPLETED, Collected(None)) is ErrorKind.NO_OUTPUT


def test_a_message_that_only_the_stream_knows_is_no_output_but_kept() -> None:
    outcome = after_end(COMPLETED, Collected(message(), stored=False), NOTHING)
    assert outcome.error_kind is ErrorKind.NO_OUTPUT
    assert outcome.columns["result_text"] == "done"


@pytest.mark.parametrize(
    ("collected", "kind"),
    [
        (Collected(None, stored=False, trouble="503"), ErrorKind.COLLECT_FAILED),
        (Collected(message(), stored=False, whole=False, trouble="503"), ErrorKind.COLLECT_FAILED),
        (Collected(message(), stored=False, whole=True, trouble="503"), None),
        (Collected(message("length"), stored=False, trouble="503"), ErrorKind.INCOMPLETE),
    ],
)
def test_a_chat_that_cannot_be_read(collected: Collected, kind: ErrorKind | None) -> None:
    assert kind_of(COMPLETED, collected) == kind


# --- other ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (End(RunStatus.FAILED), ErrorKind.RUN_FAILED),
        (End(RunStatus.CANCELLED), ErrorKind.CANCELLED_REMOTELY),
        (End(RunStatus.CANCELLED, left_stream=True), ErrorKind.CANCELLED_BY_DISCONNECT),
        (End(None, lost="404 for 30 minutes"), ErrorKind.RUN_LOST),
        *(
            (End(status, stopping, left_stream=left), kind)
            for status in (RunStatus.FAILED, RunStatus.CANCELLED, None)
            for stopping, kind in STOP_KINDS.items()
            for left in (False, True)
        ),
    ],
)
def test_other_ends(end: End, kind: ErrorKind) -> None:
    outcome = after_end(end, Collected(message("tool-calls")), NOTHING)
    assert outcome.error_kind is kind
    assert outcome.state is (State.CANCELLED if kind is ErrorKind.CANCELLED else State.FAILED)
    assert outcome.columns["result_text"] == "done"
    if end.status is None and end.lost is None:
        assert "run_status" not in outcome.columns, "what it said last stays"
    else:
        assert outcome.columns["run_status"] == (end.status.value if end.status else None)


@pytest.mark.parametrize("stopping", Stopping)
def test_a_run_that_completed_after_all_is_completed(stopping: Stopping) -> None:
    end = End(RunStatus.COMPLETED, stopping)
    assert after_end(end, Collected(message()), NOTHING).state is State.COMPLETED


def test_a_lost_run_whose_message_is_whole_is_completed() -> None:
    assert kind_of(End(None, lost="404"), Collected(message())) is None
    assert kind_of(End(None, lost="404"), Collected(message(None))) is ErrorKind.RUN_LOST
    assert kind_of(End(None, lost="404"), Collected(None)) is ErrorKind.RUN_LOST


def test_a_run_that_would_not_stop_may_still_go_on() -> None:
    outcome = after_end(End(None, Stopping.CANCELLED), Collected(None), NOTHING)
    assert outcome.state is State.CANCELLED
    assert "may still go on" in (outcome.error or "")


def test_every_end_is_a_legal_and_explained_outcome() -> None:
    ends = itertools.product(
        [None, *(status for status in RunStatus if status.terminal)],
        [None, *Stopping],
        [False, True],
        [Collected(None), Collected(message()), Collected(message("length"), whole=False)],
    )
    for status, stopping, left, collected in ends:
        outcome = after_end(End(status, stopping, left), collected, NOTHING)
        assert outcome.state in TRANSITIONS[State.RUNNING]
        fits = kinds_of(outcome.state)
        assert outcome.error_kind in fits if fits else outcome.error_kind is None
        assert bool(outcome.error) == bool(fits)


@pytest.mark.parametrize(
    ("collected", "kind"),
    [
        (Collected(message()), None),
        (Collected(message("error")), ErrorKind.MODEL_ERROR),
        (Collected(None), ErrorKind.NO_OUTPUT),
    ],
)
def test_an_adopted_end(collected: Collected, kind: ErrorKind | None) -> None:
    outcome = after_adoption(collected, NOTHING)
    assert outcome.error_kind == kind
    assert outcome.state in TRANSITIONS[State.IN_DOUBT]


# --- a further attempt --------------------------------------------------------------------------


def failed(kind: ErrorKind, status: str | None = "failed") -> Outcome:
    return Outcome(State.FAILED, "x", kind, "x", columns={"run_status": status})


@pytest.mark.parametrize("kind", sorted(kinds_of(State.FAILED)))
@pytest.mark.parametrize("status", ["failed", "cancelled", "completed", "running", None])
def test_only_what_the_api_ended_is_tried_again(kind: ErrorKind, status: str | None) -> None:
    job = a_job(attempt=1, max_attempts=2)
    ended = kind in RETRYABLE_KINDS and status in ("failed", "cancelled")
    assert may_retry(job, failed(kind, status)) == ended


@pytest.mark.parametrize(
    ("columns", "again"),
    [
        ({"attempt": 1, "max_attempts": 1}, False),
        ({"attempt": 2, "max_attempts": 3}, True),
        ({"attempt": 3, "max_attempts": 3}, False),
        ({"attempt": 1, "max_attempts": 3, "retry_on": ["stalled"]}, False),
        ({"attempt": 1, "max_attempts": 3, "retry_on": ["run_failed"]}, True),
        ({"attempt": 1, "max_attempts": 3, "retry_on": []}, False),
        ({"attempt": 1, "max_attempts": 3, "cancel_requested_at": MOMENT}, False),
    ],
)
def test_the_jobs_own_policy(columns: dict[str, Any], again: bool) -> None:
    assert may_retry(a_job(**columns), failed(ErrorKind.RUN_FAILED)) == again


def test_what_did_not_fail_is_not_tried_again() -> None:
    job = a_job(attempt=1, max_attempts=9)
    for state in (State.COMPLETED, State.CANCELLED):
        assert not may_retry(job, Outcome(state, "x", columns={"run_status": "failed"}))


# --- what a message says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ([], ""),
        ([text("a"), text("b")], "ab"),
        ([STEP, text("talk"), TOOL, STEP, text("answer")], "answer"),
        ([STEP, text("talk"), STEP, text("a"), TOOL, text("b")], "ab"),
        ([STEP, text("answer"), STEP], "answer"),
        ([STEP, text("answer"), STEP, STEP], "answer"),
        ([STEP, text("talk"), STEP, TOOL], ""),
        ([STEP], ""),
        ([STEP, {"type": "reasoning", "text": "hm"}, text("a")], "a"),
        ([STEP, text("a"), {"type": "data-commit", "data": {}}], "a"),
        (["nonsense", None, {"type": "text"}, {"type": "text", "text": 5}, text("a")], "a"),
    ],
)
def test_the_answer_is_the_text_of_the_last_step(parts: list[Any], answer: str) -> None:
    assert answer_text({"parts": parts}) == answer


def test_a_message_without_parts_has_no_text() -> None:
    assert answer_text({}) == answer_text({"parts": None}) == whole_text({}) == ""


def test_the_whole_text_has_every_part() -> None:
    assert whole_text({"parts": [STEP, text("a"), TOOL, STEP, text("b")]}) == "a\n\nb"


def test_a_messages_figures() -> None:
    usage = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
    details = {
        "outputTokenDetails": {"reasoningTokens": 2},
        "inputTokenDetails": {"cacheReadTokens": 3},
    }
    metadata = {
        "selectedModelId": "asked",
        "modelId": "used",
        "lastStepFinishReason": "stop",
        "totalMessageUsage": {**usage, **details},
        "totalMessageCost": 0.25,
    }
    columns = message_columns({"parts": [text("a")], "metadata": metadata})
    assert columns == {
        "result_text": "a",
        "finish_reason": "stop",
        "model_used": "used",
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "reasoning_tokens": 2,
        "cached_tokens": 3,
        "cost_usd": 0.25,
    }
    flat = {**usage, **details, "reasoningTokens": 7, "cachedInputTokens": 8}
    assert usage_columns(flat)["reasoning_tokens"] == 7
    assert usage_columns(flat)["cached_tokens"] == 8


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
usage_keys = st.sampled_from(["inputTokens", "outputTokenDetails", "reasoningTokens"])


@given(
    st.dictionaries(st.sampled_from(["parts", "metadata", "id"]), anything),
    st.dictionaries(usage_keys, anything),
)
def test_no_message_of_the_server_breaks_the_reading(
    found: dict[str, Any], usage: dict[str, Any]
) -> None:
    found.setdefault("metadata", {"totalMessageUsage": usage, "totalMessageCost": usage})
    columns = message_columns(found)
    assert isinstance(columns["result_text"], str)
    for name, value in columns.items():
        if name.endswith("_tokens"):
            assert value is None or isinstance(value, int)
    assert columns["cost_usd"] is None or isinstance(columns["cost_usd"], float)
