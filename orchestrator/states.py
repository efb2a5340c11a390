"""The states of a job, the kinds of trouble, and the one table of transitions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """Waits for its time, a free slot, its queue, or the gate."""
    SUBMITTING = "submitting"
    """A worker is about to send its request (`sent_at` empty) or has begun to."""
    IN_DOUBT = "in_doubt"
    """It may have started a run; a person or a policy decides."""
    RUNNING = "running"
    """The run's ids are committed; it is followed, then collected."""
    COMPLETED = "completed"
    """The run ended well; its text is in the row."""
    FAILED = "failed"
    """It ended otherwise; `error_kind` and `error` say how."""
    CANCELLED = "cancelled"
    """A person called it off."""

    @property
    def settled(self) -> bool:
        """True for the states that only a person's `retry` leaves."""
        return self in SETTLED


SETTLED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

CLAIMED = frozenset({State.SUBMITTING, State.RUNNING})
"""The states in which a worker holds the job."""

TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.QUEUED: frozenset({State.SUBMITTING, State.CANCELLED, State.FAILED}),
        State.SUBMITTING: frozenset(
            {
                State.RUNNING,
                State.QUEUED,
                State.IN_DOUBT,
                State.FAILED,
                State.CANCELLED,
                State.COMPLETED,
            }
        ),
        State.IN_DOUBT: frozenset(
            {State.QUEUED, State.RUNNING, State.COMPLETED, State.FAILED, State.CANCELLED}
        ),
        State.RUNNING: frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.QUEUED}),
        State.COMPLETED: frozenset({State.QUEUED}),
        State.FAILED: frozenset({State.QUEUED}),
        State.CANCELLED: frozenset({State.QUEUED}),
    }
)
"""Each state with the states that it may leave to; a job never changes in any other way."""


class ErrorKind(StrEnum):
    """Why a job is in doubt, failed or cancelled; one word from a fixed list."""

    IN_DOUBT = "in_doubt"
    """The answer to the request was lost after it began to go out."""
    CANCELLED = "cancelled"
    """A person called the job off."""
    REJECTED = "rejected"
    """The request is one that the server refuses."""
    FORBIDDEN = "forbidden"
    """The key may not use the account, organization or artist that the job names."""
    RUN_FAILED = "run_failed"
    """The run ended as failed; the API gives no reason."""
    RUN_LOST = "run_lost"
    """The run cannot be found: the server does not know it any more, or its answer was lost
    and the job was told to fail then."""
    CANCELLED_REMOTELY = "cancelled_remotely"
    """Somebody else stopped the run."""
    CANCELLED_BY_DISCONNECT = "cancelled_by_disconnect"
    """The run was cancelled when a stream of ours broke or was left."""
    STALLED = "stalled"
    """Nothing new came from the run for `stall_timeout`."""
    TIMED_OUT = "timed_out"
    """The run took longer than `run_timeout`."""
    MODEL_ERROR = "model_error"
    """The run ended, and the model's last call ended with an error."""
    INCOMPLETE = "incomplete"
    """The answer is cut: the model's token limit, a filter, or the limit of calls."""
    NO_OUTPUT = "no_output"
    """The run completed and kept no message."""
    EXPIRED = "expired"
    """`expires_at` passed before the job could be sent."""
    COLLECT_FAILED = "collect_failed"
    """The run completed and its message could not be read."""
    INTERNAL = "internal"
    """A fault of this program; the text names it."""


FAILED_KINDS = frozenset(ErrorKind) - {ErrorKind.IN_DOUBT, ErrorKind.CANCELLED}

RETRYABLE_KINDS = frozenset(
    {
        ErrorKind.RUN_FAILED,
        ErrorKind.CANCELLED_REMOTELY,
        ErrorKind.CANCELLED_BY_DISCONNECT,
        ErrorKind.STALLED,
        ErrorKind.TIMED_OUT,
    }
)
"""The kinds that a job may name in `retry_on`: in each the API itself can have said that the old
run failed or was cancelled. An answer that is merely bad does not start a second run by itself."""


def kinds_of(state: State) -> frozenset[ErrorKind]:
    """The values that `error_kind` may have in `state`; empty where it must be NULL."""
    match state:
        case State.IN_DOUBT:
            return frozenset({ErrorKind.IN_DOUBT})
        case State.FAILED:
            return FAILED_KINDS
        case State.CANCELLED:
            return frozenset({ErrorKind.CANCELLED})
        case _:
            return frozenset()


class OnInDoubt(StrEnum):
    """What becomes of a job in doubt when nobody decides."""

    HOLD = "hold"
    """It waits for a person."""
    RESUBMIT = "resubmit"
    """It is sent again after five minutes, at most once."""
    FAIL = "fail"
    """It fails."""


class Endpoint(StrEnum):
    """Which endpoint of the API a job uses."""

    RUNS = "runs"
    GENERATE = "generate"
