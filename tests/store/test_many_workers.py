"""Several workers on one database: what they share, and what they must not do to each other."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from orchestrator.decide import after_death
from orchestrator.errors import NotAllowed
from orchestrator.job import Job
from orchestrator.store.verbs import claim, crew, people
from orchestrator.store.verbs.claim import Order
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.store.verbs.turns import Turns

from .desk import DONE, HOLD, Desk, who

CROWD = [f"w{number}" for number in range(6)]


def all_at_once(act: partial[list[Job]], names: list[str]) -> list[Job]:
    """Let each worker do the same at the same moment, on a connection of its own."""
    start = threading.Barrier(len(names))

    def one(name: str) -> list[Job]:
        start.wait(timeout=10)
        return act(name)

    with ThreadPoolExecutor(len(names)) as pool:
        return [job for found in pool.map(one, names) for job in found]


def test_no_job_is_claimed_by_two(desk: Desk) -> None:
    desk.enqueue_all(*[{}] * 60)
    taken: list[Job] = []
    while len(taken) < 60:
        found = all_at_once(partial(desk.claim, limit=7), CROWD)
        assert found, "jobs are left and nobody gets one"
        taken += found
    assert len({job.id for job in taken}) == 60
    assert {job.lease for job in taken} == {1}


def test_a_limit_holds_while_all_claim_at_once(desk: Desk) -> None:
    desk.enqueue_all(*[{"queue": "narrow"}] * 40, *[{"queue": "wide"}] * 10)
    desk.write(people.limit_queue, "narrow", 5)
    live: list[Job] = []
    for _ in range(4):
        live += all_at_once(partial(desk.claim, limit=4), CROWD)
        narrow = [job for job in live if job.queue == "narrow"]
        assert len(narrow) == 5
        assert Counter(job.queue for job in live)["wide"] <= 10
        for job in narrow[:3]:
            desk.apply(desk.mark(job), DONE)
        live = [job for job in live if job not in narrow[:3]]


def test_a_limit_that_is_lowered_lets_nothing_in_until_there_is_room(desk: Desk) -> None:
    desk.enqueue_all(*[{"queue": "q"}] * 6)
    assert len(desk.claim(limit=3)) == 3
    desk.write(people.limit_queue, "q", 2)
    assert desk.claim() == []


def test_one_death_is_mended_once_however_many_see_it(desk: Desk) -> None:
    desk.start("dead")
    ids = {desk.running().id for _ in range(12)}
    desk.sql("UPDATE jobs SET worker_id = 'dead'")
    peers = desk.read(crew.peers)
    for name in CROWD:
        desk.start(name)

    def rescue(name: str) -> list[Job]:
        decide = lambda job: after_death(job, HOLD)  # noqa: E731 - one line says it
        adopted, mended = desk.write(crew.rescue, who(name), peers, decide)
        assert mended == []
        return adopted

    adopted = all_at_once(partial(rescue), CROWD)
    # The winner of one job may be not the winner of the next, but each has one winner.
    assert Counter(job.id for job in adopted) == Counter(ids)
    for job in adopted:
        assert desk.get(job.id).worker_id == job.worker_id
        assert desk.event_names(job.id).count("run.adopted") == 1


def test_one_key_enqueued_by_all_at_once_is_one_job(desk: Desk) -> None:
    row = desk.enqueue_all({"unique_key": "before"})  # the table is warm
    start = threading.Barrier(len(CROWD))

    def enqueue(_: str) -> tuple[int, bool]:
        start.wait(timeout=10)
        ((job_id, created),) = desk.enqueue_all({"unique_key": "the same", "prompt": "x"})
        return job_id, created

    with ThreadPoolExecutor(len(CROWD)) as pool:
        done = list(pool.map(enqueue, CROWD))
    assert len({job_id for job_id, _ in done}) == 1
    assert Counter(created for _, created in done)[True] == 1
    assert desk.rows("SELECT count(*) AS n FROM jobs") == [{"n": 2}]
    assert row[0][0] != done[0][0]


# --- fair shares and priorities -----------------------------------------------------------------


def test_queues_share_slots_by_weight(desk: Desk) -> None:
    desk.enqueue_all(*[{"queue": "a"}] * 40, *[{"queue": "b"}] * 40, *[{"queue": "c"}] * 40)
    desk.write(people.weigh_queue, "a", 3)
    order = Order()
    taken = [
        job.queue for _ in range(25) for job in desk.write(claim.claim, who("w1"), 1, order=order)
    ]
    assert Counter(taken) == {"a": 15, "b": 5, "c": 5}
    rest = desk.write(claim.claim, who("w1"), 500, order=order)
    assert Counter(job.queue for job in rest) == {"a": 25, "b": 35, "c": 35}


def test_a_long_queue_does_not_hold_up_a_short_one(desk: Desk) -> None:
    desk.enqueue_all(*[{"queue": "long", "priority": 9}] * 50)
    late = desk.enqueue_all({"queue": "short"})[0][0]
    assert late in [job.id for job in desk.claim(limit=2)]


def test_slots_that_one_queue_cannot_use_go_to_the_others(desk: Desk) -> None:
    desk.enqueue_all(*[{"queue": "a"}] * 2, *[{"queue": "b"}] * 20, {"queue": "c"})
    desk.write(people.limit_queue, "b", 12)
    desk.write(people.pause, "c")
    taken = desk.claim(limit=16)
    assert Counter(job.queue for job in taken) == {"a": 2, "b": 12}


def test_a_job_that_waited_long_enough_comes_before_a_higher_priority(desk: Desk) -> None:
    done = desk.enqueue_all({}, {"priority": 1}, {}, {"priority": 2})
    old, first, young, top = (job_id for job_id, _ in done)
    desk.age(old, available_at=45 * 60)
    assert [job.id for job in desk.claim()] == [top, old, first, young]


def test_without_steps_priority_alone_decides(desk: Desk) -> None:
    done = desk.enqueue_all({}, {"priority": 1}, {"priority": -5})
    low, high, lowest = (job_id for job_id, _ in done)
    desk.age(low, available_at=86_400)
    order = Order(step_s=0)
    claimed = desk.write(claim.claim, who("w1"), 9, order=order)
    assert [job.id for job in claimed] == [high, low, lowest]


def test_many_priorities_merge_in_order(desk: Desk) -> None:
    desk.enqueue_all(*[{"priority": priority} for priority in [3, 1, 2, 3, 1, 2, 3]])
    assert [job.priority for job in desk.claim(limit=4)] == [3, 3, 3, 2]
    assert [job.priority for job in desk.claim(limit=4)] == [2, 1, 1]


def test_what_is_scheduled_for_later_hides_nothing_that_is_due(desk: Desk) -> None:
    desk.enqueue_all(*[{"priority": 9, "scheduled_at": "2999-01-01T00:00:00Z"}] * 30)
    due = desk.enqueue_all({}, {"priority": 9})
    assert sorted(job.id for job in desk.claim()) == sorted(job_id for job_id, _ in due)


def test_a_weight_below_one_is_refused(desk: Desk) -> None:
    with pytest.raises(NotAllowed, match="weight: 0"):
        desk.write(people.weigh_queue, "a", 0)


def test_a_failed_claim_owes_nobody_a_turn_for_ever() -> None:
    turns = Turns()
    turns.deal({"a": 1, "b": 5}, 3, {})
    assert turns.deal({"c": 1}, 2, {}) == {"c": 2}


def test_a_thousand_jobs_in_one_call(desk: Desk) -> None:
    rows = [{"prompt": f"p{number}", "priority": number % 3} for number in range(1000)]
    done = desk.write(enqueue_many, rows)
    assert len({each.id for each in done}) == 1000
    taken = desk.claim(limit=1000)
    in_order = sorted((number % 3 for number in range(1000)), reverse=True)
    assert [job.priority for job in taken] == in_order
