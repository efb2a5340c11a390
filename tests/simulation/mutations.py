"""Bugs to plant: each breaks one promise in the code of the worker or of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import ColumnElement, and_

from orchestrator import decide
from orchestrator.decide import Policy
from orchestrator.errors import StoreUnavailable
from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.recoup.resume import ResponseReader
from orchestrator.states import State
from orchestrator.store.commit import GroupCommit
from orchestrator.store.rows import Row
from orchestrator.store.schema import jobs
from orchestrator.store.verbs import attempt, guarded, jointly
from orchestrator.worker import progress, rescue, stream, submit
from orchestrator.worker.lease import Heartbeat

Plant = Callable[[pytest.MonkeyPatch], None]


def _send_without_mark(patch: pytest.MonkeyPatch) -> None:
    """A mark that could not be committed counts as made."""
    real = submit._Sending.mark

    async def mark(self: submit._Sending) -> bool:
        try:
            return await real(self)
        except StoreUnavailable:
            return True

    patch.setattr(submit._Sending, "mark", mark)


def _guard_without_lease(patch: pytest.MonkeyPatch) -> None:
    """A guarded write names the job and its state, and not the lease."""

    def of_any_lease(row: Row) -> ColumnElement[bool]:
        lease = row.c["lease"]
        return and_(jobs.c.id == row.key("id"), lease == lease)

    for module in (guarded, jointly):
        patch.setattr(module, "held_as", of_any_lease)
        patch.setattr(module, "_update", module._update.__wrapped__)  # none that was made before


def _late_answer_dropped(patch: pytest.MonkeyPatch) -> None:
    """What a worker learns after it lost the lease is thrown away."""
    patch.setattr(attempt, "keep_late_answer", lambda *_args, **_kwargs: None)


def _fence_ignored(patch: pytest.MonkeyPatch) -> None:
    """A worker acts however old its last heartbeat is."""
    patch.setattr(Heartbeat, "may_act", property(lambda _self: True))


def _requeued_after_death(patch: pytest.MonkeyPatch) -> None:
    """A dead worker's submission is queued again, sent or not."""

    def after_death(job: Job, _policy: Policy) -> Outcome | None:
        if job.state is State.RUNNING:
            return None
        return Outcome(State.QUEUED, "rescue.requeued", error="its worker died")

    patch.setattr(decide, "after_death", after_death)


def _lost_answer_requeued(patch: pytest.MonkeyPatch) -> None:
    """A lost answer counts as a request that was not sent."""
    real = decide.after_submit

    def after_submit(answer: Any, policy: Policy) -> Outcome:
        outcome = real(answer, policy)
        if outcome.state is not State.IN_DOUBT:
            return outcome
        return Outcome(
            State.QUEUED, "submit.not_sent", error=outcome.error, defer=True, refund=True
        )

    patch.setattr(decide, "after_submit", after_submit)


def _dead_at_once(patch: pytest.MonkeyPatch) -> None:
    """A worker is declared dead by one that has itself not beaten for long."""
    patch.setattr(Heartbeat, "may_judge", property(lambda _self: True))
    patch.setattr(rescue.Watch, "silent_s", lambda _self, peer: peer.silent_s)


def _made_up_ends_counted(patch: pytest.MonkeyPatch) -> None:
    """The tool ends that a server makes up at a cut count as chunks of the stream."""
    real = ResponseReader.close

    def close(self: ResponseReader) -> Any:
        remainder = real(self)
        self_counted.extend(remainder.held)
        return remainder

    self_counted: list[Any] = []
    real_read = stream.StreamFollower._read_body

    async def read_body(self: stream.StreamFollower, opened: Any) -> Any:
        self_counted.clear()
        response = await real_read(self, opened)
        self._take(list(self_counted))
        return response

    patch.setattr(ResponseReader, "close", close)
    patch.setattr(stream.StreamFollower, "_read_body", read_body)


def _successor_from_the_start(patch: pytest.MonkeyPatch) -> None:
    """A successor folds what was saved, and reads the stream from its start all the same."""
    real = stream.StreamFollower.load

    async def load(self: stream.StreamFollower) -> None:
        await real(self)
        self.count = 0

    patch.setattr(stream.StreamFollower, "load", load)


def _failed_commit_believed(patch: pytest.MonkeyPatch) -> None:
    """A batch that could not be committed is reported as committed to those who wait for it."""
    real = GroupCommit._commit

    async def commit(self: GroupCommit, batch: list[Any]) -> None:
        await real(self, batch)
        for entry in batch:
            if isinstance(entry.error, StoreUnavailable) and entry.result is not None:
                entry.error = None

    patch.setattr(GroupCommit, "_commit", commit)


def _unknown_run_is_lost(patch: pytest.MonkeyPatch) -> None:
    """The first 404 of the status route ends a run."""
    patch.setattr(progress, "LOST_AFTER_S", 0.0)


def _stop_is_the_end(patch: pytest.MonkeyPatch) -> None:
    """A run that was told to stop counts as ended, without asking for its status."""
    patch.setattr(progress, "STOP_PATIENCE_S", 0.0)


def _retried_whatever_happened(patch: pytest.MonkeyPatch) -> None:
    """A new attempt begins after any failure, whatever the API said of the old run."""

    def may_retry(job: Job, outcome: Outcome) -> bool:
        return outcome.state is State.FAILED and job.attempt < job.max_attempts

    patch.setattr(decide, "may_retry", may_retry)


def _polls_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A run's terminal status is not taken for its end."""
    real = progress.step

    def step(*args: Any) -> Any:
        after, act = real(*args)
        return (after, progress.Act.WAIT) if after.status == "cancelled" else (after, act)

    patch.setattr("orchestrator.worker.poll.step", step)


MUTATIONS: Mapping[str, Plant] = {
    plant.__name__.lstrip("_"): plant
    for plant in (
        _send_without_mark,
        _guard_without_lease,
        _late_answer_dropped,
        _fence_ignored,
        _requeued_after_death,
        _lost_answer_requeued,
        _dead_at_once,
        _made_up_ends_counted,
        _successor_from_the_start,
        _failed_commit_believed,
        _unknown_run_is_lost,
        _stop_is_the_end,
        _retried_whatever_happened,
        _polls_for_ever,
    )
}

CAUGHT_BY: Mapping[str, tuple[int, ...]] = {
    "send_without_mark": (53, 67),
    "guard_without_lease": (34,),
    "late_answer_dropped": (20,),
    "requeued_after_death": (19,),
    "lost_answer_requeued": (41, 47),
    "dead_at_once": (3,),
    "made_up_ends_counted": (14,),
    "successor_from_the_start": (25,),
    "retried_whatever_happened": (20,),
}
"""Seeds that catch them; `python -m tests.simulation --mutations` finds others. What is rarer has
a scene of its own."""
