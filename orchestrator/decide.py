"""What happened, and what becomes of the job: pure functions.

Each gives an `Outcome`; the worker takes it to the store, which applies it in one guarded write.
Nothing here asks for the time or does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

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
from orchestrator.verdict import generated

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
            signal=Signal.REFUSED,
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
    """Say what becomes of a job at which this program itself failed.

    Of the error's text the first line: those after it may quote what the error was about.
    """
    words = next(iter(str(error).splitlines()), "")
    return Outcome(
        State.FAILED,
        "job.internal_error",
        error_kind=ErrorKind.INTERNAL,
        error=f"a fault of the orchestrator: {type(error).__name__}: {words}",
    )
