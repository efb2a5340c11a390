"""One job, the workers that die over it one after another, and the promises that hold for it."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psycopg

from orchestrator.states import TRANSITIONS, State
from orchestrator.store.engine import parse_url
from orchestrator.testing import DevServer, Pace, Timing
from orchestrator.worker.points import Point

from ..baddays.night import Night
from .conftest import Rooms
from .forks import Zygote, halted, lives, send
from .scenarios import AT_REST, CLAIMED, DOUBT, LIVE, PASSES, SENT, Scenario

LAZY = {
    "WORKER__POLL_INTERVAL": "1",
    "WORKER__HEARTBEAT": "1",
    "WORKER__DEAD_AFTER": "10",
    "FOLLOW__POLL_MIN": "0.2",
    "LOG__FORMAT": "json",
}
"""A dead worker is seen by its process's end; whoever waits for less has less to do."""


class Case:
    """One night with one job."""

    def __init__(self, night: Night, scenario: Scenario, zygote: Zygote) -> None:
        self.night = night
        self.scenario = scenario
        self.zygote = zygote
        self.pids: list[int] = []
        url = parse_url(night.url)
        self._connection: Any  # a night asks often: one plain connection is cheap
        if url.get_backend_name() == "sqlite":
            self._connection = sqlite3.connect(str(url.database), isolation_level=None)
        else:
            plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
            self._connection = psycopg.connect(plain, autocommit=True)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._connection.execute(query).fetchall()]

    # --- lives --------------------------------------------------------------------------------

    def start(self, point: Point | None = None, how: str = "KILL") -> int:
        """Start a worker that dies at a point. Mischief befalls the first alone."""
        pid = self.zygote.fork(
            environ=self.night.environ,
            log=str(self.night.folder / f"worker-{len(self.pids):03}.log"),
            once=False,
            die=[point.side, point.act, PASSES.get(point, 1), how] if point else None,
            mischief=None if self.pids else self.scenario.mischief,
        )
        self.pids.append(pid)
        return pid

    def begin(self) -> None:
        """Enqueue the job, and what the scenario wants to happen to it."""
        for preset, changes in self.scenario.faults:
            self.night.server.faults.add(preset, **changes)
        job = {"prompt": self.scenario.prompt}
        if self.scenario.then != "expire":
            self.night.enqueue(job)
            return
        self.night.enqueue({**job, "queue": "closed", "expires_at": "2999-01-01T00:00:00Z"})
        self.night.write(
            "INSERT INTO queues (name, paused_at) SELECT 'closed', created_at FROM jobs"
        )
        self.night.write("UPDATE jobs SET expires_at = created_at")

    async def die_at(self, point: Point, how: str = "KILL") -> str:
        """Let a worker live until it dies or is halted at a point; tells how the row stands."""
        pid = self.start(point, how)
        if self.scenario.then in ("cancel", "drain"):
            await self.night.until(
                lambda: self.standing() == LIVE or not lives(pid) or halted(pid), "a live run"
            )
            self.intervene(pid)
        gone = (lambda: not lives(pid)) if how == "KILL" else (lambda: halted(pid))
        await self.night.until(gone, f"the end {point}")
        return self.standing()

    def intervene(self, pid: int) -> None:
        """Do what the scenario wants once a run is live."""
        if self.scenario.then == "cancel":
            self.call_off()
        elif self.scenario.then == "drain" and pid == self.pids[0] and not halted(pid):
            send(pid, signal.SIGTERM)

    def call_off(self) -> None:
        self.night.write("UPDATE jobs SET cancel_requested_at = updated_at WHERE state = 'running'")

    async def recover(self) -> None:
        """Let a worker without a wish to die finish everything."""
        self.start()
        if self.scenario.then == "cancel":
            await self.night.until(lambda: self.standing() in {LIVE, *AT_REST}, "a run to call off")
            self.call_off()
        await self.rest()

    async def rest(self) -> None:
        await self.night.until(lambda: self.standing() in AT_REST, "the end")

    def end(self) -> None:
        for pid in self.pids:
            send(pid, signal.SIGKILL)
        self._connection.close()

    # --- what must hold -----------------------------------------------------------------------

    def standing(self) -> str:
        """The job's state, and on which side of the mark and of its ids it stands."""
        ((state, sent, run_id),) = self.ask("SELECT state, sent_at IS NOT NULL, run_id FROM jobs")
        assert run_id or state != "running"
        if state == "submitting":
            return SENT if sent else CLAIMED
        return str(state)

    def check(self, stood: str) -> None:
        """The promises, whatever died where; `stood` is how the row was at the last death."""
        stats = self.night.server.stats
        runs = list(self.night.server.runs)
        assert len(runs) <= 1, "started twice"
        assert stats.posts_by_prompt[self.scenario.prompt] <= 1 + self.scenario.refusals
        ((state, run_id, sent, text),) = self.ask(
            "SELECT state, run_id, sent_at IS NOT NULL, result_text FROM jobs"
        )
        if stood in (SENT, DOUBT):
            assert state == DOUBT
            assert sent
        else:
            # What did harm dies with its worker, so that the successor may complete the job.
            harmed = self.scenario.mischief is not None
            ends = {self.scenario.end} | ({State.COMPLETED} if harmed else set())
            assert state in ends
            accounted = "".join(
                str(row[0])
                for row in self.ask("SELECT run_id FROM jobs UNION ALL SELECT run_id FROM attempts")
            )
            assert all(run.order.run_id in accounted for run in runs), "an accepted run is lost"
        self.check_messages(state, run_id, text)
        self.check_events()

    def check_messages(self, state: str, run_id: str, text: str) -> None:
        rows = [row[0] for row in self.ask("SELECT message FROM messages")]
        kept = [json.loads(row) if isinstance(row, str) else row for row in rows]
        if state == "completed":
            (run,) = [run for run in self.night.server.runs if run.order.run_id == run_id]
            assert kept == [json.loads(json.dumps(run.message))]
            assert text == "The answer."

    def check_events(self) -> None:
        """Each event follows from the one before it by the table, under a lease that only rises."""
        at, lease = State.QUEUED, 0
        for came, to, number in self.ask(
            "SELECT from_state, to_state, lease FROM job_events"
            " WHERE to_state IS NOT NULL ORDER BY id"
        ):
            if came is not None and came != to:
                assert State(to) in TRANSITIONS[State(came)]
                assert came in {at, DOUBT} or self.scenario.mischief
            at = State(to)
            assert (number or 0) >= lease
            lease = number or lease


async def side_by_side(nights: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Let all nights go on to their end, and tell of all that failed."""
    failed: list[Exception] = []

    async def pass_one(night: Callable[[], Awaitable[None]]) -> None:
        try:
            await night()
        except Exception as error:  # noqa: BLE001 - the other nights still have something to say
            failed.append(error)

    async with anyio.create_task_group() as tasks:
        for night in nights:
            tasks.start_soon(pass_one, night)
    if failed:
        raise ExceptionGroup("nights went wrong", failed)


@asynccontextmanager
async def night_of(
    rooms: Rooms, zygote: Zygote, dialect: str, name: str, scenario: Scenario, **settings: str
) -> AsyncIterator[Case]:
    """A night with a room and a dev server of its own; what fails in it is said by its name."""
    async with (
        rooms.room(dialect, name) as (folder, url),
        DevServer(timing=Timing(pace=Pace(chunk=0.001), stop_limit=0.5)) as server,
    ):
        night = Night(
            folder,
            server,
            url,
            **{"FOLLOW__MODE": scenario.mode, **LAZY, **scenario.settings, **settings},
        )
        case = Case(night, scenario, zygote)
        try:
            case.begin()
            yield case
        except Exception as error:
            error.add_note(f"{dialect}, {name}:\n{night.logs()[-3000:]}")
            raise
        finally:
            case.end()
