"""A worker dies at each point at which its state and the world's differ; another goes on.

The points are those of `orchestrator.worker.points`; each act has a scenario that passes it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.states import TRANSITIONS, State
from orchestrator.testing import DevServer, Pace, Timing
from orchestrator.worker.points import Act, Point, Side

from ..baddays.night import Night

RESCUE = (
    "UPDATE jobs SET lease = lease + 1, worker_id = NULL, state = 'in_doubt',"
    " error_kind = 'in_doubt', error = 'its worker died' WHERE state = 'submitting'"
)


@dataclass(frozen=True)
class Scenario:
    """How a worker comes to pass certain acts. `then` is what happens once a run is live."""

    mode: str = "stream"
    prompt: str = '[text="The answer." tokens=12 delay=0.04 first=0.1]'
    faults: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    mischief: tuple[str, str, str] | None = None
    then: str = ""
    end: State = State.COMPLETED
    settings: Mapping[str, str] = field(default_factory=dict)


HANGS = "[hang stop_time=0.1]"

SCENARIOS: Mapping[str, Scenario] = {
    "stream": Scenario(),
    "poll": Scenario(mode="poll"),
    "cut": Scenario(
        mode="auto",
        prompt='[text="The answer." split=1 silence=3]',
        faults=(("drop", {"times": 1, "after": 0.3}),),
    ),
    "gate": Scenario(faults=(("unauthorized", {"route": "start", "times": 2}),)),
    "canary": Scenario(faults=(("payment-required", {"times": 1}),)),
    "cancel": Scenario(mode="poll", prompt=HANGS, then="cancel", end=State.CANCELLED),
    "sweep": Scenario(then="expire", end=State.FAILED),
    "drain": Scenario(mode="poll", prompt='[text="The answer." first=2]', then="drain"),
    "late": Scenario(mischief=("after", "POST body", RESCUE)),
    "fault": Scenario(mischief=("before", "POST", "raise"), end=State.FAILED),
}

SCENARIO_OF: Mapping[Act, str] = {
    Act.REGISTER: "stream",
    Act.BEAT: "stream",
    Act.SWEEP: "sweep",
    Act.CLAIM: "stream",
    Act.CANARY: "canary",
    Act.MARK: "stream",
    Act.ANSWER: "stream",
    Act.LATE_ANSWER: "late",
    Act.GATE: "gate",
    Act.OPEN_STREAM: "stream",
    Act.CHECKPOINT: "stream",
    Act.CLOSE_STREAM: "stream",
    Act.LEARN_LEAVING: "cut",
    Act.PROGRESS: "poll",
    Act.NOTE_STOP: "cancel",
    Act.SETTLE: "poll",
    Act.RELEASE: "drain",
    Act.RESCUE: "stream",
    Act.MEND: "fault",
    Act.BURY: "drain",
    Act.POST: "stream",
    Act.BODY: "stream",
    Act.STATUS: "poll",
    Act.STREAM: "stream",
    Act.CHUNKS: "stream",
    Act.CHAT: "cancel",
    Act.COLLECT: "poll",
    Act.STOP: "cancel",
    Act.PROBE: "gate",
    Act.DRAIN: "drain",
}

ELSEWHERE: Mapping[Act, str] = {
    Act.PUT_BACK: "tests/worker/test_submit.py: a lost lease or mark, and nothing sent",
    Act.FIND_CHAT: "tests/worker: a 202 whose body broke; until then the run has no chat",
    Act.LEARN_CHAT: "the same",
}
"""Acts at which no worker is killed here, and the tests of what they leave behind."""

POINTS = [Point(side, act) for act in Act if act not in ELSEWHERE for side in Side]

DATABASE_DECIDES = (Act.CLAIM, Act.MARK, Act.BODY, Act.ANSWER, Act.CHUNKS, Act.SETTLE, Act.RESCUE)
"""The acts whose points are passed on PostgreSQL too."""

DOUBTFUL = {
    Point(Side.AFTER, Act.MARK),
    Point(Side.BEFORE, Act.BODY),
    Point(Side.AFTER, Act.BODY),
    Point(Side.AFTER, Act.POST),
    Point(Side.BEFORE, Act.ANSWER),
    Point(Side.BEFORE, Act.LATE_ANSWER),
}
"""Between the mark and the ids: here alone may a death leave a job in doubt."""


def test_each_act_has_a_scenario() -> None:
    assert set(SCENARIO_OF) | set(ELSEWHERE) == set(Act)
    assert set(SCENARIO_OF.values()) == set(SCENARIOS)


class Zygote:
    """Forks workers that die at a point."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=10)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Case:
    """One night: a worker that dies at a point, and those that come after it."""

    def __init__(self, night: Night, scenario: Scenario, zygote: Zygote) -> None:
        self.night = night
        self.scenario = scenario
        self.zygote = zygote
        self.pids: list[int] = []

    def start(self, die: tuple[Point, str] | None, *, harm: bool = False) -> int:
        mischief = self.scenario.mischief if harm else None
        pid = self.zygote.fork(
            environ=self.night.environ,
            log=str(self.night.folder / f"worker-{len(self.pids)}.log"),
            once=False,
            die=[die[0].side, die[0].act, 1, die[1]] if die else None,
            mischief=mischief,
        )
        self.pids.append(pid)
        return pid

    def begin(self) -> None:
        """Enqueue the job, and what the scenario wants to happen to it."""
        for preset, changes in self.scenario.faults:
            self.night.server.faults.add(preset, **changes)
        job = {"prompt": self.scenario.prompt}
        if self.scenario.then == "expire":
            self.night.enqueue({**job, "queue": "closed", "expires_at": "2999-01-01T00:00:00Z"})
            self.night.write(
                "INSERT INTO queues (name, paused_at) SELECT 'closed', created_at FROM jobs"
            )
            self.night.write("UPDATE jobs SET expires_at = created_at")
        else:
            self.night.enqueue(job)

    def states(self) -> set[str]:
        return set(self.night.states())

    async def act(self, pid: int) -> None:
        """Do what the scenario wants once the run is live, unless the worker dies before."""
        if self.scenario.then in ("", "expire"):
            return
        await self.night.until(lambda: self.states() == {"running"} or not lives(pid), "a live run")
        self.night_act(pid)

    def night_act(self, pid: int) -> None:
        if self.scenario.then == "cancel":
            self.night.write(
                "UPDATE jobs SET cancel_requested_at = updated_at WHERE state = 'running'"
            )
        elif lives(pid):
            os.kill(pid, signal.SIGTERM)

    async def recover(self) -> None:
        """Let a worker without a wish to die finish everything."""
        pid = self.start(None)
        at_rest = {"completed", "failed", "cancelled", "in_doubt"}
        if self.scenario.then == "cancel":
            await self.night.until(
                lambda: self.states() <= {"running", *at_rest}, "a run to call off"
            )
            self.night_act(pid)
        await self.night.until(lambda: self.states() <= at_rest, "the end")

    def end(self) -> None:
        for pid in self.pids:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)

    def check(self, *, may_doubt: bool) -> None:
        """The promises, whatever died where."""
        night = self.night
        stats = night.server.stats
        refused = sum(changes.get("times", 0) for _, changes in self.scenario.faults)
        assert len(list(night.server.runs)) <= 1, "started twice"
        assert stats.posts_by_prompt[self.scenario.prompt] <= 1 + refused
        ((state, run_id, sent, text),) = night.sql(
            "SELECT state, run_id, sent_at IS NOT NULL, result_text FROM jobs"
        )
        if state == "in_doubt":
            assert may_doubt, night.logs()[-3000:]
            assert sent
        elif not may_doubt:
            # What did harm dies with its worker, so that the successor may complete the job.
            ends = {self.scenario.end} | ({State.COMPLETED} if self.scenario.mischief else set())
            assert state in ends, (state, night.logs()[-3000:])
        known = {row[0] for row in night.sql("SELECT run_id FROM jobs")}
        details = "".join(str(row[0]) for row in night.sql("SELECT detail FROM job_events"))
        for run in night.server.runs:
            assert run.order.run_id in known or run.order.run_id in details or state == "in_doubt"
        if state == "completed":
            (run,) = [run for run in night.server.runs if run.order.run_id == run_id]
            kept = [row[0] for row in night.sql("SELECT message FROM messages")]
            kept = [json.loads(row) if isinstance(row, str) else row for row in kept]
            assert kept == [json.loads(json.dumps(run.message))]
            assert text == "The answer."
        self._check_events()

    def _check_events(self) -> None:
        at, lease = State.QUEUED, 0
        for came, to, number in self.night.sql(
            "SELECT from_state, to_state, lease FROM job_events"
            " WHERE to_state IS NOT NULL ORDER BY id"
        ):
            if came is not None and came != to:
                assert State(to) in TRANSITIONS[State(came)]
                assert came in {at, "in_doubt"} or self.scenario.mischief
            at = State(to)
            assert (number or 0) >= lease
            lease = number or lease


async def die_at(night: Night, zygote: Zygote, point: Point, how: str = "KILL") -> Case:
    """Let a worker live until it dies (or stops) at a point; returns the night as it is then."""
    case = Case(night, SCENARIOS[SCENARIO_OF[point.act]], zygote)
    case.begin()
    pid = case.start((point, how), harm=True)
    await case.act(pid)
    gone = (lambda: not lives(pid)) if how == "KILL" else (lambda: stopped(pid))
    await night.until(gone, f"the death {point}")
    return case


def stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "T"


def night_of(folder: Path, dev: DevServer, url: str, scenario: Scenario, **more: str) -> Night:
    return Night(
        folder,
        dev,
        url,
        FOLLOW__MODE=scenario.mode,
        LOG__FORMAT="json",
        **scenario.settings,
        **more,
    )


def server() -> DevServer:
    return DevServer(timing=Timing(pace=Pace(chunk=0.001), stop_limit=0.5))


@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_a_kill_at_each_point(
    sqlite_url: str, tmp_path: Path, zygote: Zygote, point: Point
) -> None:
    await kill_and_recover(sqlite_url, tmp_path, zygote, point)


@pytest.mark.parametrize("point", [p for p in POINTS if p.act in DATABASE_DECIDES], ids=str)
async def test_a_kill_at_each_point_that_the_server_decides(
    postgres_url: str, tmp_path: Path, zygote: Zygote, point: Point
) -> None:
    await kill_and_recover(postgres_url, tmp_path, zygote, point)


async def kill_and_recover(url: str, folder: Path, zygote: Zygote, point: Point) -> None:
    async with server() as dev:
        night = night_of(folder, dev, url, SCENARIOS[SCENARIO_OF[point.act]])
        case = await die_at(night, zygote, point)
        try:
            await case.recover()
            case.check(may_doubt=point in DOUBTFUL)
        finally:
            case.end()


HALTED = [
    Point(Side.AFTER, Act.MARK),
    Point(Side.BEFORE, Act.BODY),
    Point(Side.AFTER, Act.BODY),
    Point(Side.BEFORE, Act.CHUNKS),
]
"""Where a worker is halted: while it holds no lock of the file, which would halt all others."""


@pytest.mark.parametrize("point", HALTED, ids=str)
async def test_a_worker_that_was_stopped_past_its_lease_changes_nothing(
    sqlite_url: str, tmp_path: Path, zygote: Zygote, point: Point
) -> None:
    """SIGSTOP, another takes over (a worker on the same host waits for `dead_after`), SIGCONT."""
    scenario = SCENARIOS[SCENARIO_OF[point.act]]
    short = {"WORKER__HEARTBEAT": "0.4", "WORKER__DEAD_AFTER": "1.5"}
    async with server() as dev:
        night = night_of(tmp_path, dev, sqlite_url, scenario, **short)
        case = await die_at(night, zygote, point, "STOP")
        try:
            await case.recover()
            before = night.sql("SELECT * FROM jobs"), night.sql("SELECT * FROM messages")
            os.kill(case.pids[0], signal.SIGCONT)
            await night.until(
                lambda: (
                    "worker.was_declared_dead" in night.logs()
                    or "lease.lost" in night.logs()
                    or "submit.withheld" in night.logs()
                ),
                "the stopped one's awakening",
            )
            repaired = night.sql("SELECT event FROM job_events WHERE event = 'submit.late_answer'")
            if not repaired and before[0][0] and "in_doubt" not in case.states():
                assert (
                    night.sql("SELECT * FROM jobs"),
                    night.sql("SELECT * FROM messages"),
                ) == before
            case.check(may_doubt=point in DOUBTFUL)
        finally:
            case.end()
