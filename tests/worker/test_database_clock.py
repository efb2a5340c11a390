"""The database's clock is set by an hour while runs are live; on SQLite it is the machine's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from orchestrator.request import job_values
from orchestrator.states import State
from orchestrator.store import sqlite
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.testing import DevServer, Fault, Kind, Timing

from .harness import Bench, eventually

HOUR_S = 3600.0
LIVE = '[first=inf text="Done {0}."]'


class Settable:
    """A machine's clock that can be set."""

    ahead_s = 0.0

    def now(self) -> datetime:
        return sqlite.system_now() + timedelta(seconds=self.ahead_s)


@pytest.fixture
def clock() -> Settable:
    return Settable()


@pytest.fixture
async def bench(sqlite_url: str, timing: Timing, clock: Settable) -> AsyncIterator[Bench]:
    async with (
        DevServer(timing=timing) as server,
        Store.open(parse_url(sqlite_url), now=clock.now) as store,
    ):
        yield Bench(server=server, store=store, url=sqlite_url)


SOON_DEAD = {"heartbeat": 0.1, "dead_after": 1.0}


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_nobody_is_thought_dead_and_nothing_runs_twice(
    bench: Bench, clock: Settable, step_s: float
) -> None:
    """Two workers on one file, which have beaten long enough to judge each other."""
    settings = bench.settings(worker=SOON_DEAD)
    async with bench.working(settings) as one, bench.working(settings) as two:

        async def judges() -> bool:
            return one._heartbeat.may_judge and two._heartbeat.may_judge

        async def buried() -> list[dict[str, Any]]:
            return await bench.sql("SELECT id FROM workers WHERE stopped_at IS NOT NULL")

        await eventually(judges, lambda: "two workers that may declare each other dead")
        ids = await bench.enqueue(*(LIVE.format(number) for number in range(6)))
        await bench.until_states(running=6)
        clock.ahead_s += step_s
        with anyio.move_on_after(1.5 * SOON_DEAD["dead_after"]):
            await eventually(buried, lambda: "a worker that was declared dead")
        for number, job_id in enumerate(ids):
            bench.release(await bench.job(job_id))
            await bench.until_settled(job_id)
            await bench.assert_completed(job_id, f"Done {number}.")
        assert await buried() == []
    assert await bench.sql("SELECT id FROM job_events WHERE event = 'run.adopted'") == []
    assert bench.all_posts() == 6


async def test_a_dead_worker_is_found_although_its_heartbeat_lies_in_the_future(
    bench: Bench, clock: Settable
) -> None:
    """Its process is out of sight, as in another container; the clock went back two hours."""
    (job_id,) = await bench.enqueue(LIVE.format(1))
    settings = bench.settings(worker=SOON_DEAD)
    clock.ahead_s = HOUR_S
    async with bench.dying(settings):
        await bench.until_state(job_id, "running")
    # A container of this machine: its processes are out of sight, and the file is one.
    await bench.execute("UPDATE workers SET pid_namespace = 'another', process_started = NULL")
    clock.ahead_s = -HOUR_S
    async with bench.working(settings):
        await bench.until_event(job_id, "run.adopted")
        bench.release(await bench.job(job_id))
        await bench.until_settled(job_id)
    await bench.assert_completed(job_id, "Done 1.")
    assert (await bench.events(job_id)).count("run.adopted") == 1


async def test_due_times_go_by_the_clock_as_it_is_set(bench: Bench, clock: Settable) -> None:
    soon = (sqlite.system_now() + timedelta(minutes=30)).isoformat()
    bench.server.faults.add(
        Fault(
            kind=Kind.ANSWER,
            route="start",
            status=503,
            error="busy",
            headers={"Retry-After": "900"},
            prompt="busy",
            times=1,
        )
    )
    (later,) = await bench.enqueue('later [text="Later."]', scheduled_at=soon)
    async with bench.working():
        (busy,) = await bench.enqueue('busy [text="Busy."]')
        await bench.until_event(busy, "submit.deferred")
        clock.ahead_s = -HOUR_S
        # The Python API is another program on this machine: it has the real clock.
        row = job_values({"prompt": 'first [text="First."]'})
        first = (await bench.store.write(lambda c: enqueue_many(c, [row])))[0].id
        await bench.until_settled(first)
        assert {(await bench.job(job_id)).state for job_id in (later, busy)} == {State.QUEUED}
        clock.ahead_s = HOUR_S
        await bench.until_settled(later, busy)
    await bench.assert_completed(first, "First.")
    await bench.assert_completed(later, "Later.")
    assert (await bench.job(busy)).attempt == 1
    assert bench.posts('busy [text="Busy."]') == 2
