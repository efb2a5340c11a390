"""What a run's end, and the message it left, make of a job: pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

from orchestrator.message import a_mapping, a_text, message_columns, texts, usage_columns
from orchestrator.outcome import Outcome, Signal
from orchestrator.recoup.answers import RunStatus
from orchestrator.states import ErrorKind, State


class Stopping(StrEnum):
    """Why we stopped a run."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class End:
    """How following ended.

    `status` is the run's terminal status, or None where it never said one: it was lost
    (`lost`), or would not stop (`stopping`), or could not even be told to (`untold`). `left_stream`
    says that a stream of ours had broken or was left shortly before a cancellation that we did not
    ask for.
    """

    status: RunStatus | None
    stopping: Stopping | None = None
    left_stream: bool = False
    lost: str | None = None
    untold: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """What was read after the end: our message, or None.

    `stored` says that the server keeps it; otherwise it is what the stream gave, `whole` if that
    was read from its first chunk to its `finish`. `trouble` says why the chat could not be read.
    """

    message: Mapping[str, Any] | None
    stored: bool = True
    whole: bool = True
    trouble: str | None = None


_BAD_ENDINGS = frozenset({"length", "content-filter", "tool-calls", "other"})


def after_end(end: End, collected: Collected, accept_finish: frozenset[str]) -> Outcome:
    """Say what a run's end and its message make of the job."""
    columns = message_columns(collected.message) if collected.message is not None else {}
    if end.status is not None or end.lost is not None:  # else what it said last stays
        columns["run_status"] = end.status.value if end.status else None
    kind, error = _verdict(end, collected, columns.get("finish_reason"), accept_finish)
    if kind is None:
        return Outcome(State.COMPLETED, "run.completed", columns=columns)
    state = State.CANCELLED if kind is ErrorKind.CANCELLED else State.FAILED
    return Outcome(state, f"run.{kind.value}", error_kind=kind, error=error, columns=columns)


def _verdict(
    end: End, collected: Collected, finish: str | None, accept: frozenset[str]
) -> tuple[ErrorKind | None, str | None]:
    match end.status:
        case RunStatus.COMPLETED:
            return _good_end(collected, finish, accept)
        case RunStatus.FAILED:
            if end.stopping is not None:
                return _stopped(end.stopping, "then the run failed")
            return ErrorKind.RUN_FAILED, "the run failed; the API gives no reason"
        case RunStatus.CANCELLED:
            if end.stopping is not None:
                return _stopped(end.stopping, "then the run was cancelled")
            if end.left_stream:
                return (
                    ErrorKind.CANCELLED_BY_DISCONNECT,
                    "the run was cancelled within a minute of a stream of ours that broke or was "
                    'left; follow.mode = "poll" avoids that',
                )
            return ErrorKind.CANCELLED_REMOTELY, "the run was cancelled, not by us"
        case _:
            if end.stopping is not None and end.untold:
                return _stopped(end.stopping, "and it could not be told to; it may still go on")
            if end.stopping is not None:
                return _stopped(end.stopping, "and it did not end when told to; it may still go on")
            if collected.message is not None and finish == "stop":
                return None, None
            return ErrorKind.RUN_LOST, end.lost or "the server does not know the run any more"


def _good_end(
    collected: Collected, finish: str | None, accept: frozenset[str]
) -> tuple[ErrorKind | None, str | None]:
    if collected.trouble is not None and not (collected.message and collected.whole):
        return (
            ErrorKind.COLLECT_FAILED,
            f"the run completed, but its message could not be read: {collected.trouble}",
        )
    if collected.message is None:
        return ErrorKind.NO_OUTPUT, "the run completed and the chat holds no message of it"
    if not collected.stored and collected.trouble is None:
        return (
            ErrorKind.NO_OUTPUT,
            "the run completed and the chat holds no message of it; the text here was saved from "
            "the stream",
        )
    if finish is None or finish in accept:
        return None, None
    if finish == "error":
        return ErrorKind.MODEL_ERROR, "the model's last call ended with an error"
    if finish in _BAD_ENDINGS:
        return ErrorKind.INCOMPLETE, f"the answer is not whole: finish reason {finish!r}"
    return None, None


def _stopped(stopping: Stopping, then: str) -> tuple[ErrorKind, str]:
    match stopping:
        case Stopping.CANCELLED:
            return ErrorKind.CANCELLED, f"cancelled on request, {then}"
        case Stopping.TIMED_OUT:
            return ErrorKind.TIMED_OUT, f"run_timeout ran out, {then}"
        case Stopping.STALLED:
            return ErrorKind.STALLED, f"nothing new came for stall_timeout, {then}"
        case _:
            assert_never(stopping)


def after_adoption(collected: Collected, accept_finish: frozenset[str]) -> Outcome:
    """Say what a person's adoption of a run that is over makes of the job.

    The run's id, and so its status, is not known any more: its message alone decides.
    """
    columns = message_columns(collected.message) if collected.message is not None else {}
    kind, error = _good_end(collected, columns.get("finish_reason"), accept_finish)
    state = State.COMPLETED if kind is None else State.FAILED
    return Outcome(state, f"doubt.{state.value}", error_kind=kind, error=error, columns=columns)


def generated(body: Mapping[str, Any], accept: frozenset[str]) -> Outcome:
    """Say what the synchronous endpoint's answer makes of a job; the whole answer is kept."""
    text = body.get("text")
    if isinstance(text, list):
        text = "".join(texts([part for part in text if isinstance(part, Mapping)]))
    finish = a_text(body.get("finishReason"))
    message = {"parts": [{"type": "text", "text": text}]} if isinstance(text, str) else None
    kind, error = _good_end(Collected(message), finish, accept)
    response = a_mapping(body.get("response"))
    columns = {
        "result_text": text if isinstance(text, str) else None,
        "finish_reason": finish,
        "model_used": a_text(response.get("modelId")),
        **usage_columns(body.get("usage")),
        "cost_usd": None,
    }
    state = State.COMPLETED if kind is None else State.FAILED
    return Outcome(
        state,
        "generate.answered",
        error_kind=kind,
        error=error,
        http_status=200,
        columns=columns,
        signal=Signal.ACCEPTED,
    )
