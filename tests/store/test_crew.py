from __future__ import annotations

import pytest

from orchestrator.decide import after_death, internal
from orchestrator.errors import LeaseLost
from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.states import SETTLED, ErrorKind, State
from orchestrator.store.verbs import crew, guarded, people, streams
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.streams import Segment

from .desk import HOLD, KEY, ORIGIN, Desk, who


def decide(job: Job) -> Outcome | None:
    return after_death(job, HOLD.of(job))


def rescue(desk: Desk, *dead: str, by: str = "w2", key: str = KEY) -> tuple[list[Job], list[Job]]:
    peers = [peer for peer in desk.read(crew.peers) if peer.identity.worker_id in dead]
    return desk.write(crew.rescue, who(by, key=key), peers, decide)


def test_a_submission_with_nothing_sent_goes_back(desk: Desk) -> None:
    desk.start("w1")
    job = desk.submitting()
    adopted, (mended,) = rescue(desk, "w1")
    assert adopted == []
    assert (mended.id, mended.state, mended.attempt) == (job.id, State.QUEUED, 0)
    assert mended.worker_id is None
    with pytest.raises(LeaseLost):
        desk.mark(job)


def test_a_submission_that_went_out_is_in_doubt(desk: Desk) -> None:
    desk.start("w1")
    job = desk.sent()
    adopted, (mended,) = rescue(desk, "w1")
    assert adopted == []
    assert (mended.id, mended.state, mended.attempt) == (job.id, State.IN_DOUBT, 1)


def test_a_run_is_adopted_under_a_new_lease(desk: Desk) -> None:
    desk.start("w1")
    job = desk.running()
    (adopted,), mended = rescue(desk, "w1")
    assert mended == []
    assert (adopted.id, adopted.state, adopted.worker_id) == (job.id, State.RUNNING, "w2")
    assert adopted.lease == job.lease + 1
    assert (adopted.run_id, adopted.attempt) == (job.run_id, 1)
    assert desk.read(crew.held_by, "w2") == [adopted]
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip.of(job), {})


def test_the_living_are_left_alone(desk: Desk) -> None:
    desk.start("w1")
    job = desk.running()
    assert rescue(desk) == ([], [])
    assert desk.get(job.id) == job


def test_two_rescuers_share_the_work(desk: Desk) -> None:
    desk.start("w1")
    desk.running()
    desk.start("w2")
    desk.start("w3")
    assert len(rescue(desk, "w1", by="w2")[0]) == 1
    assert rescue(desk, "w1", by="w3") == ([], [])


def test_the_dead_are_buried_once(desk: Desk) -> None:
    desk.start("w1")
    desk.start("w2")
    rescue(desk, "w1")
    assert [peer.identity.worker_id for peer in desk.read(crew.peers)] == ["w2"]
    (buried, _) = desk.read(crew.peers, stopped=True)
    rescue(desk, "w1")
    assert desk.read(crew.peers, stopped=True)[0].stopped_at == buried.stopped_at
    assert not desk.beat("w1")


def test_a_run_of_another_key_waits_for_its_own_workers(desk: Desk) -> None:
    desk.start("w1")
    job = desk.running()
    assert rescue(desk, "w1", by="w2", key="k2") == ([], [])
    assert desk.get(job.id) == job
    (adopted,), _ = rescue(desk, by="w3")
    assert (adopted.id, adopted.worker_id) == (job.id, "w3")


def test_a_submission_of_another_key_is_mended_by_anyone(desk: Desk) -> None:
    desk.start("w1")
    desk.sent()
    _, (mended,) = rescue(desk, "w1", by="w2", key="k2")
    assert mended.state is State.IN_DOUBT


def test_a_released_run_is_adopted(desk: Desk) -> None:
    desk.start("w1")
    job = desk.running()
    released = desk.write(crew.release, Grip.of(job), "w1")
    assert (released.worker_id, released.lease) == (None, job.lease + 1)
    (adopted,), _ = rescue(desk)
    assert adopted.id == job.id


def test_only_a_run_is_released(desk: Desk) -> None:
    job = desk.sent()
    with pytest.raises(AssertionError, match="only a running job"):
        desk.write(crew.release, Grip.of(job), "w1")
    assert desk.get(job.id) == job


def test_a_worker_that_nobody_knows_holds_nothing(desk: Desk) -> None:
    job = desk.running()
    (adopted,), _ = rescue(desk)
    assert adopted.id == job.id


def test_settled_and_queued_jobs_are_nobodys(desk: Desk) -> None:
    desk.start("w1")
    desk.doubtful()
    for state in (*SETTLED, State.QUEUED):
        desk.one_in(state)
    assert desk.read(crew.abandoned) == []


def test_a_stream_that_was_open_counts_as_lost(desk: Desk) -> None:
    desk.start("w1")
    job = desk.running()
    desk.open_stream(job)
    (adopted,), _ = rescue(desk, "w1")
    assert adopted.stream_opened_at is None
    assert adopted.stream_left_at is not None


# --- beats ------------------------------------------------------------------------------------


def test_a_beat_moves_the_heartbeat(desk: Desk) -> None:
    desk.start("w1")
    (before,) = desk.read(crew.peers)
    assert desk.beat("w1")
    (after,) = desk.read(crew.peers)
    assert after.last_heartbeat_at > before.last_heartbeat_at
    assert 0 <= after.silent_s < 5


def test_a_worker_that_lives_takes_its_death_back(desk: Desk) -> None:
    desk.start("w1")
    desk.write(crew.bury, "w1")
    assert not desk.beat("w1")
    assert desk.beat("w1")


def test_a_worker_whose_row_was_deleted_comes_back(desk: Desk) -> None:
    desk.start("w1")
    desk.sql("DELETE FROM workers")
    assert not desk.beat("w1")
    assert desk.beat("w1")
    (peer,) = desk.read(crew.peers)
    assert peer.identity.pid == 1


def test_a_worker_that_beat_after_we_looked_is_not_dead(desk: Desk) -> None:
    desk.start("w1")
    job = desk.running()
    seen = desk.read(crew.peers)
    desk.beat("w1")
    assert desk.write(crew.rescue, who("w2"), seen, decide) == ([], [])
    assert desk.get(job.id) == job
    assert [peer.identity.worker_id for peer in desk.read(crew.peers)] == ["w1"]


def test_cancellations_are_told_to_the_holder(desk: Desk) -> None:
    job, other = desk.running(), desk.running()
    desk.write(people.cancel, job.id)
    assert desk.read(crew.cancellations, "w1") == [job.id]
    assert desk.read(crew.cancellations, "w2") == []
    assert [held.id for held in desk.read(crew.held_by, "w1")] == [job.id, other.id]


def test_a_job_at_which_we_failed_is_settled(desk: Desk) -> None:
    job = desk.running()
    segment = Segment(0, ["a"])
    desk.checkpoint(job, segment)
    fault = internal(RuntimeError("boom"))
    with pytest.raises(LeaseLost):
        desk.write(
            crew.mend_own, job_id=job.id, lease=job.lease + 1, decide=lambda _: fault, by="w1"
        )
    mended = desk.write(
        crew.mend_own, job_id=job.id, lease=job.lease, decide=lambda _: fault, by="w1"
    )
    assert (mended.state, mended.error_kind) == (State.FAILED, ErrorKind.INTERNAL)
    assert "boom" in (mended.error or "")
    assert desk.read(streams.segments, job.id, 1) == []


def test_a_gates_row_is_made_once(desk: Desk) -> None:
    desk.start("w1")
    desk.start("w2")
    desk.start("w3", key="k3")
    rows = desk.rows("SELECT api_origin, key_fingerprint AS k FROM gates ORDER BY k")
    assert rows == [{"api_origin": ORIGIN, "k": "k1"}, {"api_origin": ORIGIN, "k": "k3"}]
