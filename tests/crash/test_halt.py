"""A worker is halted at each point for longer than its lease; another takes over; it wakes up."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial

import pytest

from orchestrator.testing import Fault, Kind
from orchestrator.worker.points import POINTS, Act, Point, Side

from .case import Case, night_of, side_by_side
from .conftest import Rooms
from .forks import Zygote, lives, send
from .scenarios import DOUBT, LIVE, SCENARIO_OF, SCENARIOS, SENT, Scenario, standing

SHORT = {
    "WORKER__HEARTBEAT": "0.5",
    "WORKER__DEAD_AFTER": "1.6",
    "WORKER__POLL_INTERVAL": "0.5",
    "WORKER__DRAIN_TIMEOUT": "5",
    "WORKER__CONCURRENCY": "1",  # with a job in hand there are no rounds of claims
}
"""A worker whose process lives is dead to others of its host only after `dead_after`."""

TRIES = 12
"""Nights for a point, until a worker is halted there that holds no lock.

A point lies outside the transaction of its own act. Another task of that worker may be inside
one (a beat, a round of claims), and then nobody can write to the file until the worker goes on
or dies: SQLite has one writer, and no worker can take that from another.
"""

LATE_STATUS = Fault(kind=Kind.DELAY, route="status", delay=0.3, times=1)

FOLLOWING = [
    Point(side, act)
    for act in (
        *(Act.OPEN_STREAM, Act.STREAM, Act.CHUNKS, Act.CHECKPOINT),
        *(Act.STATUS, Act.PROGRESS),
    )
    for side in Side
]
"""Points at which a worker follows a run."""

HANDFUL = 8
HANDFULS = [tuple(Act)[first : first + HANDFUL] for first in range(0, len(Act), HANDFUL)]


@pytest.mark.parametrize("acts", HANDFULS, ids="-".join)
async def test_a_worker_that_was_halted_past_its_lease_changes_nothing(
    files: Rooms, zygote: Zygote, acts: Sequence[Act]
) -> None:
    await side_by_side(
        partial(halt_and_wake, files, zygote, point) for point in POINTS if point.act in acts
    )


async def test_a_worker_that_wakes_while_another_follows_its_run_changes_nothing(
    files: Rooms, zygote: Zygote
) -> None:
    """The job's state is still what the woken one believes: the lease alone stands against it."""
    await side_by_side(partial(wake_beside, files, zygote, point) for point in FOLLOWING)


async def wake_beside(files: Rooms, zygote: Zygote, point: Point) -> None:
    # A stream that needs no trial takes its place together with the ids of its run.
    name = "held on trial" if point.act is Act.OPEN_STREAM else "held"
    async with halted_at(files, zygote, point, SCENARIOS[name]) as case:
        ((halted, lease),) = case.ask("SELECT worker_id, lease FROM jobs")
        case.start()
        await case.night.until(
            lambda: case.ask("SELECT lease FROM jobs WHERE worker_id IS NOT NULL")[0][0] > lease,
            "another's lease",
        )
        ((successor, lease),) = case.ask("SELECT worker_id, lease FROM jobs")
        assert successor != halted
        written = f"SELECT count(*) FROM job_events WHERE worker_id = '{halted}'"  # noqa: S608
        before = case.ask(written)
        await wake(case, point)
        assert case.ask(written) == before
        assert case.ask("SELECT worker_id, lease, state FROM jobs") == [(successor, lease, LIVE)]
        case.call_off()
        await case.rest()
        case.check(LIVE)


async def halt_and_wake(files: Rooms, zygote: Zygote, point: Point) -> None:
    scenario = SCENARIOS[SCENARIO_OF[point.act]]
    async with halted_at(files, zygote, point, scenario) as case:
        await outlive(case, point, standing(point, scenario))


@asynccontextmanager
async def halted_at(
    files: Rooms, zygote: Zygote, point: Point, scenario: Scenario
) -> AsyncIterator[Case]:
    """A night in which a worker is halted at a point, and holds no lock."""
    for number in range(TRIES):
        name = f"{point} {number}"
        async with night_of(files, zygote, "sqlite", name, scenario, **SHORT) as case:
            # The first status is saved: that should not happen just while a stream is opened.
            case.night.server.faults.add(LATE_STATUS)
            stood = await case.die_at(point, "STOP")
            assert stood == standing(point, scenario)
            if not holds_the_file(case):
                yield case
                return
    raise AssertionError(f"{point}: the halted worker held the file each time")


async def outlive(case: Case, point: Point, stood: str) -> None:
    """Let another worker finish the job, and then the halted one go on."""
    await case.recover()
    if point != Point(Side.BEFORE, Act.REGISTER):
        await case.night.until(lambda: declared_dead(case), "the halted one's death")
    before = account(case)
    await wake(case, point)
    if case.ask("SELECT 1 FROM job_events WHERE event = 'submit.late_answer'"):
        # What it learned of its own run is no change by a dead lease: it repairs the doubt.
        assert stood in (SENT, DOUBT, LIVE)
        await case.rest()
        case.check(LIVE)
    else:
        assert account(case) == before
        case.check(stood)


async def wake(case: Case, point: Point) -> None:
    """Let the halted worker go on, and hear of its lost lease before it is asked to end."""
    pid = case.pids[0]
    send(pid, signal.SIGCONT)
    heard = "worker.started" if point.act is Act.REGISTER else "worker.was_declared_dead"
    log = case.night.folder / "worker-000.log"
    await case.night.until(
        lambda: not lives(pid) or heard in log.read_text(), "the halted one's awakening"
    )
    send(pid, signal.SIGTERM)
    await case.night.until(lambda: not lives(pid), "the halted one's end")


def declared_dead(case: Case) -> bool:
    return bool(case.ask("SELECT 1 FROM workers WHERE stopped_at IS NOT NULL"))


def account(case: Case) -> list[list[tuple[object, ...]]]:
    return [case.ask(f"SELECT * FROM {table}") for table in ("jobs", "messages", "attempts")]  # noqa: S608


def holds_the_file(case: Case) -> bool:
    """Whether nobody else can write."""
    path = case.night.folder / "jobs.db"
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                return True
            raise
    return False
