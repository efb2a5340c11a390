"""The clocks of a run, as a pure reducer: (progress, observation, now) -> (progress, act).

Only a terminal status ends a run. The clocks measure time in which the run was followed and the
API answered; an outage, or a night without a worker, does not count against it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from orchestrator.recoup.answers import RunStatus
from orchestrator.verdict import End, Stopping

LOST_AFTER_S = 1800.0
"""A 404 for a run that was accepted may be a fault of the look-up: it means lost only after half an
hour of nothing else."""

STOP_PATIENCE_S = 120.0
"""How long a run that was told to stop may go on saying `running` before it is settled anyway."""

STOP_EVERY_S = 10.0
"""The stop request is sent again at this distance while the run goes on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one job's clocks, in seconds."""

    run_timeout: float
    stall_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What following knows. `seen_at`: when the API last answered, None while it is out of reach.

    `followed_s` and `quiet_s` are the two clocks; `moved_at` is when something new last came.
    """

    followed_s: float = 0.0
    quiet_s: float = 0.0
    status: RunStatus | None = None
    seen_at: float | None = None
    moved_at: float = 0.0
    missing_since: float | None = None
    stopping: Stopping | None = None
    stopping_since: float = 0.0
    stop_sent_at: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The status route answered."""

    status: RunStatus


class Sign(Enum):
    """What else can be observed."""

    NEWS = "news"
    """A chunk came, or the stored message changed."""
    MISSING = "missing"
    """The status route answered that it does not know the run."""
    OUT_OF_REACH = "out_of_reach"
    """The status route gave no usable answer."""
    CANCEL = "cancel"
    """A person asked for the job's cancellation."""


Observation: TypeAlias = Seen | Sign


class Act(Enum):
    """What to do next."""

    WAIT = "wait"
    STOP = "stop"


def step(
    progress: Progress, observation: Observation, now: float, limits: Limits
) -> tuple[Progress, Act | End]:
    """Take an observation made at `now` (seconds of a steady clock) and say what follows."""
    match observation:
        case Sign.NEWS:
            return replace(progress, quiet_s=0.0, moved_at=now), Act.WAIT
        case Sign.OUT_OF_REACH:
            return replace(progress, seen_at=None), Act.WAIT
        case Sign.CANCEL:
            return _cancelled(progress, now), Act.WAIT
        case Sign.MISSING:
            return _missing(progress, now)
        case Seen(status=status):
            return _seen(_tick(progress, status, now), now, limits)


def _cancelled(progress: Progress, now: float) -> Progress:
    if progress.stopping is not None:
        return progress
    return replace(progress, stopping=Stopping.CANCELLED, stopping_since=now)


def _missing(progress: Progress, now: float) -> tuple[Progress, Act | End]:
    since = progress.missing_since if progress.missing_since is not None else now
    if now - since >= LOST_AFTER_S:
        minutes = round((now - since) / 60)
        return progress, End(None, progress.stopping, lost=f"404 for {minutes} minutes")
    return replace(progress, missing_since=since, seen_at=None), Act.WAIT


def _tick(progress: Progress, status: RunStatus, now: float) -> Progress:
    """Let the clocks run from the last answer to this one, if nothing lies between them."""
    followed, quiet = progress.followed_s, progress.quiet_s
    if progress.seen_at is not None:
        followed += now - progress.seen_at
        quiet += max(0.0, now - max(progress.seen_at, progress.moved_at))
    if progress.status is not None and status is not progress.status:
        quiet = 0.0
    return replace(
        progress,
        followed_s=followed,
        quiet_s=quiet,
        status=status,
        seen_at=now,
        missing_since=None,
    )


def _seen(progress: Progress, now: float, limits: Limits) -> tuple[Progress, Act | End]:
    if progress.status is not None and progress.status.terminal:
        return progress, End(progress.status, progress.stopping)
    if progress.stopping is None:
        stopping = _ran_out(progress, limits)
        if stopping is None:
            return progress, Act.WAIT
        progress = replace(progress, stopping=stopping, stopping_since=now)
    elif now - progress.stopping_since >= STOP_PATIENCE_S:
        return progress, End(None, progress.stopping)
    if progress.stop_sent_at is not None and now - progress.stop_sent_at < STOP_EVERY_S:
        return progress, Act.WAIT
    return replace(progress, stop_sent_at=now), Act.STOP


def _ran_out(progress: Progress, limits: Limits) -> Stopping | None:
    if progress.followed_s >= limits.run_timeout:
        return Stopping.TIMED_OUT
    if progress.quiet_s >= limits.stall_timeout:
        return Stopping.STALLED
    return None
