"""The worst case of a write: it is committed, and the worker is told that the database is away.

PostgreSQL is asked what became of such a transaction (`store/transact.py`); this is what happens
where even that remained unknown. The job ends right all the same, and nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from orchestrator.errors import StoreUnavailable
from orchestrator.states import TRANSITIONS, State
from orchestrator.worker import duties
from orchestrator.worker.points import Act, Point, Side

from .harness import BOUND_S, Bench


@dataclass(frozen=True)
class Case:
    """A write whose answer is lost, and the job that comes by it."""

    prompt: str = '[text="Done." tokens=4 delay=0.02]'
    follow: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    cancel: bool = False
    end: State = State.COMPLETED
    runs: int = 1


STREAM = {"mode": "stream"}

CASES: Mapping[Act, Case] = {
    Act.BEAT: Case(),
    Act.CLAIM: Case(),
    Act.CANARY: Case(faults=(("payment-required", {"times": 1}),)),
    Act.MARK: Case(),
    Act.ANSWER: Case(),
    Act.GATE: Case(faults=(("payment-required", {"times": 1}),)),
    Act.LEARN_CHAT: Case('[text="Done." tail=4]', faults=(("broken-body", {"times": 1}),)),
    Act.OPEN_STREAM: Case(follow={"mode": "auto"}),
    Act.CHECKPOINT: Case('[text="Done." tokens=20 delay=0.05 tail=1]', follow=STREAM),
    Act.CLOSE_STREAM: Case(
        '[text="Done." tail=4]',
        follow=STREAM,
        faults=(("cut", {"times": 1, "chunks": 8}),),  # right behind its `finish`
    ),
    Act.PROGRESS: Case('[text="Done." tail=0.5]', follow={"mode": "poll"}),
    Act.NOTE_STOP: Case("[hang stop_time=0.1]", cancel=True, end=State.CANCELLED),
    Act.SETTLE: Case(),
    Act.RESCUE: Case(),
}

AGAIN = Case(
    "[fail=1]", options={"max_attempts": 2, "retry_on": ["run_failed"]}, end=State.FAILED, runs=2
)


def losing(act: Act) -> Callable[[Point], None]:
    """Lose the answer to the first commit of an act."""
    left = [1]

    def reach(point: Point) -> None:
        if point == Point(Side.AFTER, act) and left:
            left.clear()
            raise StoreUnavailable("the answer to the COMMIT was lost")

    return reach


@pytest.mark.parametrize(
    ("act", "case"),
    [*CASES.items(), (Act.SETTLE, AGAIN)],
    ids=[*map(str, CASES), "settle and again"],
)
async def test_a_commit_whose_answer_is_lost_costs_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, act: Act, case: Case
) -> None:
    monkeypatch.setattr(duties, "SELF_CHECK_EVERY_S", 0.3)
    for preset, changes in case.faults:
        bench.server.faults.add(preset, **changes)
    lost: list[Point] = []
    lose = losing(act)

    def reach(point: Point) -> None:
        try:
            lose(point)
        except StoreUnavailable:
            lost.append(point)
            raise

    bench.reach = reach
    (job_id,) = await bench.enqueue(case.prompt, **case.options)
    settings = bench.settings(follow=case.follow)
    with anyio.fail_after(BOUND_S), capture_logs() as logs:
        async with bench.working(settings):
            if case.cancel:
                await bench.until_state(job_id, "running")
                async with bench.orchestrator() as orc:
                    await orc.cancel(job_id)
            job = await bench.until(
                job_id,
                lambda job: job.state.settled and job.attempt == case.runs,
            )
    assert lost, f"no {act} happened: {[entry['event'] for entry in logs]}"
    assert job.state is case.end
    refused = sum(
        changes["times"] for preset, changes in case.faults if preset == "payment-required"
    )
    assert (
        bench.posts(case.prompt) - refused
        == bench.server.stats.runs_by_prompt[case.prompt]
        == case.runs
    )
    if job.state is State.COMPLETED:
        assert job.result_text == "Done."
        await bench.assert_kept(job)
    previous = await bench.sql("SELECT attempt FROM attempts WHERE job_id = :id", id=job_id)
    assert [row["attempt"] for row in previous] == list(range(1, case.runs))
    assert_is_a_path(
        await bench.sql(
            "SELECT from_state, to_state FROM job_events WHERE to_state IS NOT NULL ORDER BY id"
        )
    )


def assert_is_a_path(moves: list[dict[str, Any]]) -> None:
    """Check that the log goes by the table, and begins where it left off."""
    at = State.QUEUED
    for move in moves:
        came_from = move["from_state"] or at
        assert came_from == at
        assert move["to_state"] == at or State(move["to_state"]) in TRANSITIONS[at]
        at = State(move["to_state"])
