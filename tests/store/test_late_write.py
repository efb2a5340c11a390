"""The late-write probe: what a worker says that lost its job.

Worker A takes a job, a rescue gives it back, worker B takes it; then A reports. Many queues take
A's word: the row says `succeeded` while B is at work. Here nothing of it is written.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.errors import LeaseLost
from orchestrator.job import Job, Message
from orchestrator.store.verbs import attempt, outcomes
from orchestrator.store.verbs.attempt import Seen
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.outcomes import Applied
from orchestrator.store.verbs.streams import Segment

from .desk import DONE, DOUBT, FAILED, Desk, accepted

KEPT = [Message(0, "m", "assistant", "A's text", {"id": "m"}, "server")]

Report = Callable[[Desk, Job], object]

REPORTS: dict[str, Report] = {
    "success": lambda desk, job: desk.write(
        outcomes.settle, grip=Grip.of(job), outcome=DONE, kept=KEPT, retry_after_s=None
    ),
    "failure": lambda desk, job: desk.apply(job, FAILED),
    "end": lambda desk, job: desk.write(
        outcomes.apply_each, [Applied(job=job, outcome=DONE, by="a", kept=KEPT)]
    ),
    "progress": lambda desk, job: desk.write(
        attempt.progress_each, [Seen(job=job, run_status="running", followed_s=1.0, quiet_s=0.0)]
    ),
    "chunks": lambda desk, job: desk.checkpoint(job, Segment(0, [{}])),
    "stream": lambda desk, job: desk.open_stream(job),
    "stop": lambda desk, job: desk.write(
        attempt.begin_stop, Grip.of(job), why="stalled", followed_s=1.0, quiet_s=1.0, by="a"
    ),
}

EVERYTHING = (
    "SELECT * FROM jobs",
    "SELECT * FROM messages",
    "SELECT * FROM stream_checkpoints",
    "SELECT * FROM attempts",
    "SELECT * FROM job_events ORDER BY id",
)


def all_of(desk: Desk) -> list[object]:
    return [desk.rows(query) for query in EVERYTHING]


def taken_over(desk: Desk, job: Job, by: str) -> Job:
    """The job in the hands of another worker, which adopted it."""
    desk.sql("UPDATE jobs SET lease = lease + 1, worker_id = :by WHERE id = :id", by=by, id=job.id)
    return desk.get(job.id)


@pytest.mark.parametrize("report", REPORTS)
def test_a_worker_that_lost_a_run_reports_in_vain(desk: Desk, report: str) -> None:
    job = desk.running()
    held_by_b = taken_over(desk, job, "b")
    before = all_of(desk)
    with pytest.raises(LeaseLost):
        REPORTS[report](desk, job)
    assert all_of(desk) == before
    assert desk.get(job.id) == held_by_b
    settled = desk.apply(held_by_b, DONE)
    assert (settled.state.value, settled.result_text) == ("completed", "done")


@pytest.mark.parametrize("outcome", [accepted(9), DOUBT, DONE], ids=["ids", "doubt", "end"])
def test_a_worker_that_lost_a_submission_reports_in_vain(desk: Desk, outcome: object) -> None:
    """Rescued before anything was sent, taken by B; what A says then is about nobody's request."""
    job = desk.submitting()
    held_by_b = taken_over(desk, job, "b")
    before = all_of(desk)
    with pytest.raises(LeaseLost):
        desk.mark(job)
    with pytest.raises(LeaseLost):
        desk.apply(job, outcome)  # type: ignore[arg-type] # one of the outcomes above
    assert all_of(desk) == before
    assert desk.mark(held_by_b).attempt == 1
