"""What happened, and what becomes of the job: pure functions.

Each gives an `Outcome`; the worker takes it to the store, which applies it in one guarded write.
Nothing here asks for the time or does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

from orchestrator.job import Job
from orchestrator.outcome import Outcome, Signal
from orchestrator.recoup.answers import (
    Accepted,
    Answered,
    Generated,
    NoAnswer,
    NotSent,
    RunStatus,
    Submission,
)
from orchestrator.states import RETRYABLE_KINDS, ErrorKind, OnInDoubt, State

RESUBMIT_AFTER_S = 300.0
"""How long a job in doubt waits before the policy `resubmit` sends it again: time for a person to
find the run, and for the answer to come back to a worker that was only slow."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a job's own columns and the configuration say about doubt and about good ends."""

    on_in_doubt: OnInDoubt
    resubmits: int = 0
    accept_finish: frozenset[str] = frozenset()

    def of(self, job: Job) -> Policy:
        """This policy, the configuration's, as it applies to `job`, whose own word comes first."""
        return Policy(job.on_in_doubt or self.on_in_doubt, job.resubmits, self.accept_finish)


# --- after a submission -----------------------------------------------------------------------

_WAIT_AND_ASK_AGAIN = frozenset({408, 425, 429})
_REFUSALS = frozenset({400, 403, 404, 405, 409, 413, 415, 422})


def after_submit(answer: Submission, policy: Policy) -> Outcome:
    """Say what a submission's answer makes of the job.

    Only what proves that no run was started may lead back to `queued` or to `failed`; everything
    that is not listed is in doubt.
    """
    match answer:
        case Accepted():
            return _accepted(answer)
        case Generated(body=body):
            return generated(body, policy.accept_finish)
        case NotSent(error=error):
            return Outcome(
                State.QUEUED,
                "submit.not_sent",
                error=f"the request was not sent: {error}",
                defer=True,
                signal=Signal.UNREACHED,
            )
        case NoAnswer(error=error, status=status):
            return in_doubt(f"the answer was lost: {error}", policy, http_status=status)
        case Answered():
            return _answered(answer, policy)
        case _:
            assert_never(answer)


def _accepted(answer: Accepted) -> Outcome:
    return Outcome(
        State.RUNNING,
        "submit.accepted",
        http_status=202,
        columns={
            "run_id": answer.run_id,
            "chat_id": answer.chat_id,
            "session_id": answer.session_id,
        },
        signal=Signal.ACCEPTED,
    )


def _answered(answer: Answered, policy: Policy) -> Outcome:
    status = answer.status
    words = f"HTTP {status}: {answer.error}"
    if status in _WAIT_AND_ASK_AGAIN or (status == 503 and answer.retry_after is not None):
        return Outcome(
            State.QUEUED,
            "submit.deferred",
            error=words,
            http_status=status,
            defer=True,
            retry_after=answer.retry_after,
            refund=True,
        )
    if status == 401:
        return _shut(Signal.UNAUTHORIZED, words, status)
    if status == 402:
        return _shut(Signal.PAYMENT_REQUIRED, words, status)
    if 300 <= status < 400:
        where = f" to {answer.location}" if answer.location else ""
        return _shut(Signal.WRONG_HOST, f"{answer.url} redirects{where} ({words})", status)
    if status in _REFUSALS:
        if not answer.envelope:
            return _shut(Signal.WRONG_HOST, f"{answer.url} is not the Recoup API ({words})", status)
        kind = ErrorKind.FORBIDDEN if status == 403 else ErrorKind.REJECTED
        fields = f" (fields: {', '.join(answer.missing_fields)})" if answer.missing_fields else ""
        return Outcome(
            State.FAILED,
            "submit.refused",
            error_kind=kind,
            error=words + fields,
            http_status=status,
        )
    return in_doubt(f"the answer does not say whether a run started: {words}", policy, status)


def _shut(signal: Signal, error: str, status: int) -> Outcome:
    return Outcome(
        State.QUEUED,
        "submit.deferred",
        error=error,
        http_status=status,
        defer=True,
        refund=True,
        signal=signal,
    )


def endpoint_missing(answer: Answered) -> Outcome:
    """Say what becomes of a `generate` job at a host that speaks the API but not this endpoint.

    The service removed the endpoint, and its 404 there is a page. The host having been proved to
    be the API by another call, the gate stays open: one old job must not stop the others.
    """
    return Outcome(
        State.FAILED,
        "submit.refused",
        error_kind=ErrorKind.REJECTED,
        error=(
            f"HTTP {answer.status}: {answer.url} does not exist at this host; the synchronous "
            "endpoint was removed from the service: enqueue with endpoint='runs'"
        ),
        http_status=answer.status,
    )


def in_doubt(error: str, policy: Policy, http_status: int | None = None) -> Outcome:
    """Say what becomes of a submission whose outcome is unknown, by the policy."""
    if policy.on_in_doubt is OnInDoubt.FAIL:
        return Outcome(
            State.FAILED,
            "submit.in_doubt",
            error_kind=ErrorKind.RUN_LOST,
            error=f"{error}; a run may have been started (on_in_doubt = fail)",
            http_status=http_status,
            signal=Signal.AMBIGUOUS,
        )
    again = policy.on_in_doubt is OnInDoubt.RESUBMIT and policy.resubmits == 0
    return Outcome(
        State.IN_DOUBT,
        "submit.in_doubt",
        error_kind=ErrorKind.IN_DOUBT,
        error=f"{error}; a run may have been started",
        http_status=http_status,
        resubmit_after=RESUBMIT_AFTER_S if again else None,
        signal=Signal.AMBIGUOUS,
    )


def after_death(job: Job, policy: Policy) -> Outcome | None:
    """Say what becomes of a claimed job whose worker died; None: the run is to be adopted."""
    if job.state is State.RUNNING:
        return None
    if job.sent_at is None:
        return Outcome(
            State.QUEUED, "rescue.requeued", error="its worker died before anything was sent"
        )
    return in_doubt("its worker died after the request began to go out", policy)


# --- after a run's end ------------------------------------------------------------------------


class Stopping(StrEnum):
    """Why we stopped a run."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class End:
    """How following ended.

    `status` is the run's terminal status, or None where it never said one: it was lost
    (`lost`), or would not stop (`stopping`). `left_stream` says that a stream of ours had broken
    or was left shortly before a cancellation that we did not ask for.
    """

    status: RunStatus | None
    stopping: Stopping | None = None
    left_stream: bool = False
    lost: str | None = None


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


def may_retry(job: Job, outcome: Outcome) -> bool:
    """True if the job's policy starts a new attempt after `outcome`.

    Only where the API itself said that the old run failed or was cancelled: anything else could
    do the work twice.
    """
    if outcome.state is not State.FAILED or outcome.error_kind not in RETRYABLE_KINDS:
        return False
    if outcome.columns.get("run_status") not in (RunStatus.FAILED, RunStatus.CANCELLED):
        return False
    if job.attempt >= job.max_attempts or job.cancel_requested_at is not None:
        return False
    return job.retry_on is None or outcome.error_kind in job.retry_on


def rejected(error: str) -> Outcome:
    """Say what becomes of a row whose request the server would refuse."""
    return Outcome(
        State.FAILED, "job.rejected", error_kind=ErrorKind.REJECTED, error=f"not sent: {error}"
    )


def internal(error: BaseException) -> Outcome:
    """Say what becomes of a job at which this program itself failed."""
    return Outcome(
        State.FAILED,
        "job.internal_error",
        error_kind=ErrorKind.INTERNAL,
        error=f"a fault of the orchestrator: {type(error).__name__}: {error}",
    )


# --- what a message says ----------------------------------------------------------------------


def answer_text(message: Mapping[str, Any]) -> str:
    """The answer: the text parts after the last `step-start` that has a part after it, joined."""
    parts = [part for part in message.get("parts") or [] if isinstance(part, Mapping)]
    while parts and parts[-1].get("type") == "step-start":
        parts.pop()
    starts = [index for index, part in enumerate(parts) if part.get("type") == "step-start"]
    last = parts[starts[-1] + 1 :] if starts else parts
    return "".join(_texts(last))


def whole_text(message: Mapping[str, Any]) -> str:
    """All text parts of a message, joined by blank lines."""
    parts = [part for part in message.get("parts") or [] if isinstance(part, Mapping)]
    return "\n\n".join(_texts(parts))


def _texts(parts: list[Mapping[str, Any]]) -> list[str]:
    return [
        part["text"]
        for part in parts
        if part.get("type") == "text" and isinstance(part.get("text"), str)
    ]


def message_columns(message: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `jobs` that a stored or folded message gives. Missing figures are None."""
    metadata = _mapping(message.get("metadata"))
    return {
        "result_text": answer_text(message),
        "finish_reason": _text(metadata.get("lastStepFinishReason")),
        "model_used": _text(metadata.get("modelId")) or _text(metadata.get("selectedModelId")),
        **usage_columns(metadata.get("totalMessageUsage")),
        "cost_usd": _number(metadata.get("totalMessageCost")),
    }


def usage_columns(usage: Any) -> dict[str, int | None]:
    """The token columns of a usage object; details stand in for the flat figures."""
    usage = _mapping(usage)
    output_details = _mapping(usage.get("outputTokenDetails"))
    input_details = _mapping(usage.get("inputTokenDetails"))
    reasoning = usage.get("reasoningTokens", output_details.get("reasoningTokens"))
    cached = usage.get("cachedInputTokens", input_details.get("cacheReadTokens"))
    return {
        "input_tokens": _count(usage.get("inputTokens")),
        "output_tokens": _count(usage.get("outputTokens")),
        "reasoning_tokens": _count(reasoning),
        "cached_tokens": _count(cached),
        "total_tokens": _count(usage.get("totalTokens")),
    }


def generated(body: Mapping[str, Any], accept: frozenset[str]) -> Outcome:
    """Say what the synchronous endpoint's answer makes of a job; the whole answer is kept."""
    text = body.get("text")
    if isinstance(text, list):
        text = "".join(_texts([part for part in text if isinstance(part, Mapping)]))
    finish = _text(body.get("finishReason"))
    message = {"parts": [{"type": "text", "text": text}]} if isinstance(text, str) else None
    kind, error = _good_end(Collected(message), finish, accept)
    response = _mapping(body.get("response"))
    columns = {
        "result_text": text if isinstance(text, str) else None,
        "finish_reason": finish,
        "model_used": _text(response.get("modelId")),
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


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if ok and abs(value) < 1e15 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
