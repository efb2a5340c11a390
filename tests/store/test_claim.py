from __future__ import annotations

import pytest

from orchestrator.errors import LeaseLost
from orchestrator.states import ErrorKind, State
from orchestrator.store.verbs import claim, due, gate, outcomes, people
from orchestrator.store.verbs.gate import Reason
from orchestrator.store.verbs.guarded import Grip

from .desk import FAILED, KEY, ORIGIN, Desk, who


def test_a_claim_takes_the_job_under_a_fresh_lease(desk: Desk) -> None:
    queued = desk.enqueue()
    (job,) = desk.claim("w7")
    assert (job.id, job.state, job.worker_id) == (queued.id, State.SUBMITTING, "w7")
    assert job.lease == queued.lease + 1
    assert (job.sent_at, job.attempt) == (None, 0)
    assert (job.api_origin, job.key_fingerprint) == (ORIGIN, KEY)
    last = desk.events(job.id)[-1]
    assert (last.event, last.from_state, last.to_state) == ("job.claimed", "queued", "submitting")
    assert (last.worker_id, last.lease) == ("w7", job.lease)


def test_a_claimed_job_is_not_claimed_again(desk: Desk) -> None:
    desk.enqueue_all({}, {})
    assert len(desk.claim("w1", limit=1)) == 1
    assert len(desk.claim("w2")) == 1
    assert desk.claim("w3") == []


def test_the_old_lease_writes_no_more(desk: Desk) -> None:
    queued = desk.enqueue()
    desk.claim()
    with pytest.raises(LeaseLost):
        desk.write(outcomes.apply, Grip.of(queued), FAILED)


def test_order_is_priority_then_time_then_id(desk: Desk) -> None:
    done = desk.enqueue_all({}, {"priority": 1}, {}, {"priority": -1}, {"priority": 1}, {})
    a, b, c, d, e, f = (job_id for job_id, _ in done)
    desk.age(f, available_at=60)
    desk.age(e, available_at=60)
    assert [job.id for job in desk.claim()] == [e, b, f, a, c, d]


def test_the_limit_holds(desk: Desk) -> None:
    ids = [job_id for job_id, _ in desk.enqueue_all({}, {}, {})]
    assert desk.claim(limit=0) == []
    assert desk.claim(limit=-1) == []
    assert [job.id for job in desk.claim(limit=2)] == ids[:2]


def test_a_job_waits_for_its_time(desk: Desk) -> None:
    later = desk.enqueue(scheduled_at="2999-01-31T08:00:00Z")
    assert desk.claim() == []
    # A back-off may be shorter than the wish, and the wish still holds.
    desk.age(later.id, available_at=1000 * 366 * 86_400)
    assert desk.claim() == []
    desk.age(later.id, scheduled_at=1000 * 366 * 86_400)
    assert [job.id for job in desk.claim()] == [later.id]


def test_a_job_waits_for_its_back_off(desk: Desk) -> None:
    job = desk.enqueue()
    desk.age(job.id, available_at=-60)
    assert desk.claim() == []
    desk.age(job.id, available_at=60)
    assert [taken.id for taken in desk.claim()] == [job.id]


def test_a_paused_queue_is_left_alone(desk: Desk) -> None:
    held, free = (job_id for job_id, _ in desk.enqueue_all({"queue": "a"}, {"queue": "b"}))
    desk.write(people.pause, "a")
    assert [job.id for job in desk.claim()] == [free]
    desk.write(people.resume, "a")
    assert [job.id for job in desk.claim()] == [held]


def test_a_queues_limit_counts_live_jobs_of_all_workers(desk: Desk) -> None:
    desk.enqueue_all(*[{"queue": "a"}] * 4, {"queue": "b"})
    desk.write(people.limit_queue, "a", 2)
    first = desk.claim("w1")
    assert sorted(job.queue for job in first) == ["a", "a", "b"]
    assert desk.claim("w2") == []
    held = next(job for job in first if job.queue == "a")
    desk.write(people.cancel, held.id)
    assert [job.queue for job in desk.claim("w2")] == ["a"]
    desk.write(people.limit_queue, "a", None)
    assert [job.queue for job in desk.claim("w2")] == ["a"]


def test_a_limit_holds_for_a_queue_whose_name_is_no_text(sqlite_desk: Desk) -> None:
    """Any program may have written bytes into a SQLite file."""
    desk = sqlite_desk
    desk.enqueue_all(*[{"queue": "a"}] * 3, *[{"queue": "b"}] * 3)
    for queue, limit in (("a", 1), ("b", 2)):
        desk.write(people.limit_queue, queue, limit)
    desk.sql("UPDATE jobs SET queue = CAST(x'ff' AS TEXT) WHERE queue = 'a'")
    desk.sql("UPDATE queues SET name = CAST(x'ff' AS TEXT) WHERE name = 'a'")
    assert sorted(job.queue for job in desk.claim("w1")) == ["b", "b", "\udcff"]
    assert desk.claim("w2") == []


def test_a_limited_queue_keeps_the_order_of_all(desk: Desk) -> None:
    done = desk.enqueue_all({"queue": "a"}, {}, {"queue": "a", "priority": 1}, {})
    a, b, c, _ = (job_id for job_id, _ in done)
    desk.write(people.limit_queue, "a", 5)
    assert [job.id for job in desk.claim(limit=3)] == [c, a, b]


def test_a_worker_takes_only_from_its_queues(desk: Desk) -> None:
    ids = [job_id for job_id, _ in desk.enqueue_all({"queue": "a"}, {"queue": "b"}, {})]
    desk.write(people.limit_queue, "b", 9)
    assert [job.id for job in desk.claim(queues=("a",))] == ids[:1]
    assert [job.id for job in desk.claim(queues=("b", "nothing"))] == ids[1:2]
    assert desk.claim(queues=("nothing",)) == []


def test_a_paused_queue_of_ones_own_leaves_nothing(desk: Desk) -> None:
    desk.enqueue_all({"queue": "a"}, {})
    desk.write(people.pause, "a")
    assert desk.claim(queues=("a",)) == []


# --- the gate ---------------------------------------------------------------------------------


def test_a_closed_gate_lets_only_the_canary_through(desk: Desk) -> None:
    me = desk.start()
    first, _ = desk.enqueue_all({}, {})
    assert desk.write(gate.close, me, Reason.OUTAGE, "down", probe_s=1.0)
    assert desk.claim() == []
    assert [job.id for job in desk.write(claim.claim, me, 1, canary=True)] == [first[0]]
    assert desk.write(gate.open_gate, me)
    assert len(desk.claim()) == 1


def test_a_canary_is_a_run_and_no_synchronous_call(desk: Desk) -> None:
    """That call may take an hour to answer, and its endpoint need not even exist."""
    me = desk.start()
    desk.write(gate.close, me, Reason.OUTAGE, "down", probe_s=1.0)
    call = desk.enqueue(endpoint="generate", priority=9)
    limited = desk.enqueue(endpoint="generate", priority=9, queue="limited")
    desk.write(people.limit_queue, "limited", 5)
    assert desk.write(claim.claim, me, 1, canary=True) == []
    run = desk.enqueue()
    assert [job.id for job in desk.write(claim.claim, me, 1, canary=True)] == [run.id]
    desk.write(gate.open_gate, me)
    assert {job.id for job in desk.claim()} == {call.id, limited.id}


def test_a_gate_without_a_row_is_open(desk: Desk) -> None:
    desk.start()
    found = desk.read(gate.read, who(key="another"))
    assert found.open
    assert (found.api_origin, found.key_fingerprint) == (ORIGIN, "another")
    assert (found.reason, found.leaving) == (None, "unknown")
    assert [row.key_fingerprint for row in desk.read(gate.all_gates)] == [KEY], "nothing is written"


def test_a_suspected_key_holds_claims_until_the_second_look(desk: Desk) -> None:
    me = desk.start()
    desk.enqueue()
    desk.write(gate.suspect, me, look_again_s=5.0)
    assert desk.claim() == []
    assert desk.write(gate.open_gate, me)
    assert len(desk.claim()) == 1


def test_the_gate_of_another_key_holds_nobody_else(desk: Desk) -> None:
    desk.start()
    other = desk.start("w2", key="k2")
    desk.enqueue()
    desk.write(gate.close, other, Reason.PAYMENT_REQUIRED, "no credits", probe_s=60.0)
    assert desk.claim("w2", key="k2") == []
    assert len(desk.claim()) == 1


def test_only_a_person_opens_what_an_operator_closed(desk: Desk) -> None:
    me = desk.start()
    desk.write(gate.close, me, Reason.OPERATOR, "stop", probe_s=None)
    assert not desk.write(gate.open_gate, me)
    assert not desk.write(gate.begin_probe, me, for_s=60.0, now=True)
    assert desk.write(gate.open_gate, me, by_person=True)
    assert desk.read(gate.read, me).open


def test_a_closed_gate_keeps_its_first_reason(desk: Desk) -> None:
    me = desk.start()
    assert desk.write(gate.close, me, Reason.OUTAGE, "down", probe_s=1.0)
    assert not desk.write(gate.close, me, Reason.WRONG_HOST, "a proxy", probe_s=1.0)
    found = desk.read(gate.read, me)
    assert (found.reason, found.detail) == (Reason.OUTAGE, "down")


def test_one_worker_probes_at_a_time(desk: Desk) -> None:
    one, two = desk.start("w1"), desk.start("w2")
    desk.write(gate.close, one, Reason.OUTAGE, "down", probe_s=60.0)
    assert not desk.write(gate.begin_probe, one, for_s=60.0)
    assert desk.write(gate.begin_probe, one, for_s=60.0, now=True)
    assert not desk.write(gate.begin_probe, two, for_s=60.0, now=True)
    desk.write(gate.end_probe, two, next_s=0.0, detail="not its own")
    assert desk.read(gate.read, one).probes == 0
    desk.write(gate.end_probe, one, next_s=0.0, detail="still down")
    assert desk.write(gate.begin_probe, two, for_s=60.0)
    found = desk.read(gate.read, one)
    assert (found.probes, found.detail) == (1, "still down")


# --- what may not run any more ----------------------------------------------------------------


def test_an_expired_job_is_failed_and_never_claimed(desk: Desk) -> None:
    job = desk.enqueue(expires_at="2999-01-31T08:00:00Z")
    assert desk.write(due.expire) == []
    desk.age(job.id, expires_at=1000 * 366 * 86_400)
    assert desk.claim() == []
    assert desk.read(due.waiting, who()).sweep
    (expired,) = desk.write(due.expire)
    assert (expired.id, expired.state, expired.error_kind) == (
        job.id,
        State.FAILED,
        ErrorKind.EXPIRED,
    )
    assert expired.finished_at is not None
    assert not desk.read(due.waiting, who()).sweep


def test_once_waits_for_back_offs_and_not_for_wishes(desk: Desk) -> None:
    backing_off = desk.enqueue()
    desk.age(backing_off.id, available_at=-600)
    desk.enqueue(scheduled_at="2999-01-31T08:00:00Z")
    desk.enqueue(queue="paused")
    desk.write(people.pause, "paused")
    desk.enqueue(queue="limited to none")
    desk.write(people.limit_queue, "limited to none", 0)
    desk.enqueue(queue="other")
    assert desk.read(due.count_due) == 2
    assert desk.read(due.count_due, ["default"]) == 1
    assert desk.read(due.count_due, ["paused"]) == 0


def test_once_waits_for_a_resubmission_and_not_for_a_person(desk: Desk) -> None:
    held = desk.doubtful()
    assert desk.read(due.count_due) == 0
    desk.sql("UPDATE jobs SET resubmit_at = available_at WHERE id = :id", id=held.id)
    assert desk.read(due.count_due) == 1
    assert desk.claim(queues=who().queues) == []
