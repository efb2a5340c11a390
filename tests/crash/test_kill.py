"""SIGKILL at each act of a job; a second worker finishes what the first left."""

from __future__ import annotations

import random
import socket

from orchestrator.testing import Fault, Kind

from .crew import CrewNight

JOBS = 40


async def test_a_worker_that_dies_while_it_connects_has_sent_nothing(night: CrewNight) -> None:
    [job] = night.enqueue("connects")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # It accepts connections and never answers the TLS handshake: the job stays connecting.
        slow = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with night.fork(API__BASE_URL=slow) as first:
            await night.until(lambda: night.states() == {"submitting": 1}, what="submitting")
            night.kill(first)
    assert night.sql("SELECT sent_at, attempt FROM jobs") == [(None, 0)]
    with night.fork(once=True) as second:
        assert await night.ended(second) == 0
    assert night.sql("SELECT id, state, attempt FROM jobs") == [(job, "completed", 1)]
    assert night.posts() == [1]


async def test_a_worker_that_dies_after_it_began_to_send_leaves_a_doubt(night: CrewNight) -> None:
    night.server.faults.add(Fault(kind=Kind.DELAY, route="start", when="after", delay=20.0))
    night.enqueue(*(f"sent {number}" for number in range(5)))
    with night.fork() as first:
        await night.until(lambda: len(night.posts()) == 5, what="five requests at the server")
        night.kill(first)
    assert night.sql("SELECT count(*) FROM jobs WHERE sent_at IS NOT NULL") == [(5,)]
    night.server.faults.clear()
    with night.fork(once=True) as second:
        assert await night.ended(second) == 3
    assert night.sql("SELECT DISTINCT state, error_kind, attempt FROM jobs") == [
        ("in_doubt", "in_doubt", 1)
    ]
    assert night.posts() == [1] * 5


async def test_a_run_survives_its_worker(either_night: CrewNight) -> None:
    night = either_night
    night.enqueue(*(f"runs {n} [steps=3 tokens=30 delay=0.03]" for n in range(12)))
    with night.fork() as first:
        await night.until(lambda: night.states() == {"running": 12}, what="all running")
        night.kill(first)
    with night.fork(once=True) as second:
        assert await night.ended(second) == 0
    assert night.states() == {"completed": 12}
    assert night.posts() == [1] * 12
    assert night.sql("SELECT count(*) FROM job_events WHERE event = 'run.adopted'") == [(12,)]


async def test_a_worker_that_dies_while_it_collects_loses_no_result(night: CrewNight) -> None:
    night.server.faults.add("no-messages")
    night.enqueue("collects")
    with night.fork() as first:
        await night.until(
            lambda: night.sql("SELECT state, run_status FROM jobs") == [("running", "completed")],
            what="collecting",
        )
        night.kill(first)
    night.server.faults.clear()
    with night.fork(once=True) as second:
        assert await night.ended(second) == 0
    [(state, text, messages)] = night.sql(
        "SELECT state, result_text, (SELECT count(*) FROM messages) FROM jobs"
    )
    assert (state, bool(text), messages) == ("completed", True, 1)
    assert night.posts() == [1]


async def test_a_stream_goes_on_behind_its_checkpoint(night: CrewNight) -> None:
    night.change(FOLLOW__MODE="stream")
    night.enqueue("long [steps=2 tokens=120 delay=0.03]")
    with night.fork() as first:
        await night.until(
            lambda: bool(night.sql("SELECT 1 FROM stream_checkpoints WHERE first_index > 20")),
            what="checkpoints",
        )
        night.kill(first)
    [(saved,)] = night.sql("SELECT max(first_index + count) FROM stream_checkpoints")
    before = len(night.server.stats.requests("stream"))
    with night.fork(once=True) as second:
        assert await night.ended(second) == 0
    assert night.server.stats.requests("stream")[before].start_index == str(saved)
    [(text, source)] = night.sql(
        "SELECT result_text, source FROM jobs JOIN messages ON job_id = jobs.id"
    )
    assert text
    assert source == "server"
    assert night.sql("SELECT count(*) FROM stream_checkpoints") == [(0,)]
    assert night.sql("SELECT count(*) FROM job_events WHERE event = 'collect.difference'") == [(0,)]


async def test_killed_again_and_again_no_job_is_lost_or_sent_twice(night: CrewNight) -> None:
    night.change(FOLLOW__MODE="auto")
    chance = random.Random(7)  # noqa: S311 - a repeatable mix of jobs, no secret
    night.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=0.2, probability=0.5))
    night.enqueue(
        *(
            f"job {number} [steps={chance.randint(1, 3)} tokens=20 delay=0.02]"
            for number in range(JOBS)
        )
    )
    for _ in range(3):
        with night.fork() as worker:
            done = night.states().get("completed", 0)
            await night.until(
                lambda done=done: night.states().get("completed", 0) >= done + 5,  # type: ignore[misc] # bound now
                what="five more completed",
            )
            night.kill(worker)
        doubtful = {
            row[0]
            for row in night.sql(
                "SELECT id FROM jobs WHERE state = 'in_doubt'"
                " OR (state = 'submitting' AND sent_at IS NOT NULL)"
            )
        }
    with night.fork(once=True) as last:
        assert await night.ended(last, within=60) in (0, 3)
    in_doubt = {row[0] for row in night.sql("SELECT id FROM jobs WHERE state = 'in_doubt'")}
    assert in_doubt == doubtful
    assert night.states() == {
        "completed": JOBS - len(in_doubt),
        **({"in_doubt": len(in_doubt)} if in_doubt else {}),
    }
    assert max(night.posts()) == 1
    assert len(night.posts()) >= JOBS - len(in_doubt)
