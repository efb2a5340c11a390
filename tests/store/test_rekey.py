"""A key that was replaced: its live and doubtful jobs go over to the key that replaced it."""

from __future__ import annotations

import pytest

from orchestrator.errors import LeaseLost, NotAllowed
from orchestrator.job import Job
from orchestrator.states import State
from orchestrator.store.verbs import crew, guarded, look, people
from orchestrator.store.verbs.guarded import Grip

from .desk import KEY, ORIGIN, Desk, who

MOVED = [State.RUNNING, State.IN_DOUBT]


def rekey(desk: Desk, *, origin: str = ORIGIN, limit: int = 10_000) -> list[Job]:
    return desk.write(people.rekey, api_origin=origin, old=KEY, new="k2", limit=limit)


@pytest.mark.parametrize("state", MOVED)
def test_what_the_old_key_started_belongs_to_the_new(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    (moved,) = rekey(desk)
    assert (moved.id, moved.state, moved.attempt) == (job.id, state, 1)
    assert (moved.key_fingerprint, moved.worker_id) == ("k2", None)
    assert (moved.run_id, moved.error_kind) == (job.run_id, job.error_kind)
    event = desk.events(job.id)[-1]
    assert (event.event, event.detail) == ("job.rekeyed", {"old": KEY, "new": "k2"})
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip.of(job), {})
    assert rekey(desk) == [], "nothing is left to give"


def test_a_worker_with_the_new_key_adopts_what_it_was_given(desk: Desk) -> None:
    job = desk.running()
    desk.start("w2", key="k2")
    rescuer = who("w2", key="k2")
    assert desk.write(crew.rescue, rescuer, desk.read(crew.peers), lambda _job: None) == ([], [])
    rekey(desk)
    (adopted,), _ = desk.write(crew.rescue, rescuer, [], lambda _job: None)
    assert (adopted.id, adopted.worker_id) == (job.id, "w2")


@pytest.mark.parametrize("state", [state for state in State if state not in MOVED])
def test_what_has_no_run_to_follow_stays(desk: Desk, state: State) -> None:
    job = desk.one_in(state)
    assert rekey(desk) == []
    assert desk.get(job.id) == job


def test_a_worker_with_the_old_key_that_lives_is_in_the_way(desk: Desk) -> None:
    job = desk.running()
    desk.start("w1")
    with pytest.raises(NotAllowed, match=f"a worker with key {KEY} lives"):
        rekey(desk)
    assert desk.get(job.id) == job
    desk.write(crew.bury, "w1")
    assert [moved.id for moved in rekey(desk)] == [job.id]


def test_workers_with_other_keys_are_not_in_the_way(desk: Desk) -> None:
    job = desk.running()
    desk.start("w2", key="k2")
    assert [moved.id for moved in rekey(desk)] == [job.id]


def test_another_origin_is_another_matter(desk: Desk) -> None:
    job = desk.running()
    desk.start("w1")
    assert rekey(desk, origin="https://elsewhere.example") == []
    assert desk.get(job.id) == job


def test_the_limit_takes_the_oldest(desk: Desk) -> None:
    ids = [desk.running().id for _ in range(3)]
    assert [job.id for job in rekey(desk, limit=2)] == ids[:2]
    assert [job.id for job in rekey(desk, limit=2)] == ids[2:]
    rows = desk.read(look.rows, "SELECT DISTINCT key_fingerprint AS key FROM jobs")
    assert rows == [{"key": "k2"}]
