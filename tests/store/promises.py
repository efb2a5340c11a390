"""What holds of every row, whatever was done to it: one query for each table, not for each job."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select, union_all

from orchestrator.job import Job
from orchestrator.states import TRANSITIONS, State, kinds_of
from orchestrator.store.schema import attempts, job_events, jobs, messages, stream_checkpoints

LOGGED = ("job_id", "event", "from_state", "to_state", "attempt", "lease")


def each_row_is_consistent(connection: Connection, jobs_by_id: Mapping[int, Job]) -> None:
    archived: dict[int, list[int]] = {job_id: [] for job_id in jobs_by_id}
    old = select(attempts.c.job_id, attempts.c.attempt).order_by(attempts.c.attempt)
    for job_id, number in connection.execute(old):
        archived[job_id].append(number)
    for job in jobs_by_id.values():
        assert (job.finished_at is not None) == job.state.settled
        assert job.error_kind in kinds_of(job.state) or not kinds_of(job.state)
        assert job.error_kind is None or kinds_of(job.state)
        if job.state in (State.QUEUED, State.IN_DOUBT):
            assert job.worker_id is None
        if job.state is State.QUEUED:
            assert (job.sent_at, job.run_id) == (None, None)
        if job.state in (State.IN_DOUBT, State.RUNNING, State.COMPLETED):
            assert job.sent_at is not None
            assert job.attempt >= 1
        newest = job.attempt - 1 if job.sent_at is not None else job.attempt
        assert archived[job.id] == list(range(1, newest + 1))


def the_log_tells_every_move_and_only_legal_ones(
    connection: Connection, jobs_by_id: Mapping[int, Job]
) -> None:
    told: dict[int, tuple[State | None, int, int]] = dict.fromkeys(jobs_by_id, (None, 0, 0))
    log = select(*(job_events.c[name] for name in LOGGED)).order_by(job_events.c.id)
    for event in connection.execute(log):
        if event.event == "submit.late_answer":
            assert event.to_state is None
            continue
        state, number, lease = told[event.job_id]
        come_from = State(event.from_state) if event.from_state else state
        to = State(event.to_state)
        assert state is None or come_from is state
        assert to is come_from or state is None or to in TRANSITIONS[state]
        refunded = event.event in ("submit.deferred", "submit.not_sent")
        step = event.attempt - number
        marked = 1 if event.event == "submit.marked" else 0
        assert step == marked or (refunded and step == -1)
        assert (event.lease or 0) >= lease
        told[event.job_id] = (to, event.attempt, event.lease or 0)
    for job in jobs_by_id.values():
        assert told[job.id][:2] == (job.state, job.attempt)


def what_belongs_to_attempts_stays_with_them(connection: Connection) -> None:
    kept = select(jobs.c.id).join(messages, messages.c.job_id == jobs.c.id)
    saved = select(jobs.c.id).join(stream_checkpoints, stream_checkpoints.c.job_id == jobs.c.id)
    stray = (jobs.c.state != State.RUNNING.value) | (stream_checkpoints.c.attempt != jobs.c.attempt)
    wrong = union_all(kept.where(messages.c.attempt > jobs.c.attempt), saved.where(stray))
    assert not connection.execute(wrong).all()
