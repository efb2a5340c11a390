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

UNTOLD_PATIENCE_S = 1800.0
"""How long a run goes on saying `running` that cannot be told to stop, before it is settled anyway:
its chat may point at it again, be readable again, or the run may end by itself."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one job's clocks, in seconds.

    `longest_tick` is the longest time between two answers that counts as followed.
    """

    run_timeout: float
    stall_timeout: float
    longest_tick: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What following knows. `seen_at`: when the API last answered, None while it is out of reach.

    `followed_s` and `quiet_s` are the two clocks; `moved_at` is when something new last came.
    `missing_s` adds up the time in which the status route knew nothing of the run. A run that is
    `stopping` is so for us since `to_stop_since`; the last try to tell it was at `stop_tried_at`,
    and `told_at` is when the first stop request went out.
    """

    followed_s: float = 0.0
    quiet_s: float = 0.0
    status: RunStatus | None = None
    seen_at: float | None = None
    moved_at: float = 0.0
    missing_s: float = 0.0
    missing_at: float | None = None
    stopping: Stopping | None = None
    to_stop_since: float | None = None
    stop_tried_at: float | None = None
    told_at: float | None = None


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
    TOLD = "told"
    """A stop request goes out."""


Observation: TypeAlias = Seen | Sign


class Act(Enum):
    """What to do next."""

    WAIT = "wait"
    STOP = "stop"
    """Tell the run to stop, if it can be told."""


def resumed(followed_s: float, quiet_s: float, now: float, limits: Limits) -> Progress:
    """The progress of a run as its row tells it. A clock that is saved as run out was so beside a
    status that said `running`: whoever followed then was stopping the run, and so do we."""
    saved = Progress(followed_s=followed_s, quiet_s=quiet_s, moved_at=now)
    return replace(saved, stopping=_ran_out(saved, limits))


def step(
    progress: Progress, observation: Observation, now: float, limits: Limits
) -> tuple[Progress, Act | End]:
    """Take an observation made at `now` (seconds of a steady clock) and say what follows."""
    match observation:
        case Sign.NEWS:
            quiet_s = 0.0 if progress.stopping is None else progress.quiet_s
            return replace(progress, quiet_s=quiet_s, moved_at=now), Act.WAIT
        case Sign.OUT_OF_REACH:
            return replace(progress, seen_at=None, missing_at=None), Act.WAIT
        case Sign.CANCEL:
            return replace(progress, stopping=progress.stopping or Stopping.CANCELLED), Act.WAIT
        case Sign.TOLD:
            told_at = progress.told_at if progress.told_at is not None else now
            return replace(progress, told_at=told_at), Act.WAIT
        case Sign.MISSING:
            return _missing(progress, now, limits)
        case Seen(status=status):
            return _seen(_tick(progress, status, now, limits), now, limits)


def _missing(progress: Progress, now: float, limits: Limits) -> tuple[Progress, Act | End]:
    missing_s = progress.missing_s
    if progress.missing_at is not None:
        missing_s += min(now - progress.missing_at, limits.longest_tick)
    if missing_s >= LOST_AFTER_S:
        lost = f"the status route did not know the run for {round(missing_s / 60)} minutes"
        return progress, End(None, progress.stopping, lost=lost)
    return replace(progress, missing_s=missing_s, missing_at=now, seen_at=None), Act.WAIT


def _tick(progress: Progress, status: RunStatus, now: float, limits: Limits) -> Progress:
    """Let the clocks run from the last answer to this one, if nothing lies between them.

    A gap longer than any wait of ours is a suspended machine, and counts as little. The
    clocks stand at the end, and the quiet lasts once the run is to stop: what is saved of them
    tells a successor whether we stopped the run, and why.
    """
    followed, quiet = progress.followed_s, progress.quiet_s
    if progress.seen_at is not None and not status.terminal:
        followed += min(now - progress.seen_at, limits.longest_tick)
        quiet += min(max(0.0, now - max(progress.seen_at, progress.moved_at)), limits.longest_tick)
    if progress.status not in (None, status) and not status.terminal and progress.stopping is None:
        quiet = 0.0
    return replace(
        progress,
        followed_s=followed,
        quiet_s=quiet,
        status=status,
        seen_at=now,
        missing_s=0.0,
        missing_at=None,
    )


def _seen(progress: Progress, now: float, limits: Limits) -> tuple[Progress, Act | End]:
    if progress.status is not None and progress.status.terminal:
        return progress, End(progress.status, progress.stopping)
    stopping = progress.stopping or _ran_out(progress, limits)
    if stopping is None:
        return progress, Act.WAIT
    since = progress.to_stop_since if progress.to_stop_since is not None else now
    progress = replace(progress, stopping=stopping, to_stop_since=since)
    if progress.told_at is not None and now - progress.told_at >= STOP_PATIENCE_S:
        return progress, End(None, stopping)
    if progress.told_at is None and now - since >= UNTOLD_PATIENCE_S:
        return progress, End(None, stopping, untold=True)
    if progress.stop_tried_at is not None and now - progress.stop_tried_at < STOP_EVERY_S:
        return progress, Act.WAIT
    return replace(progress, stop_tried_at=now), Act.STOP


def _ran_out(progress: Progress, limits: Limits) -> Stopping | None:
    if progress.followed_s >= limits.run_timeout:
        return Stopping.TIMED_OUT
    if progress.quiet_s >= limits.stall_timeout:
        return Stopping.STALLED
    return None
