"""A soak of some sixty jobs: the command works, its invariants hold, and each of them can break."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks.soak.__main__ import arguments
from benchmarks.soak.checks import CHECKS
from benchmarks.soak.evidence import Evidence, Row
from benchmarks.soak.journal import Journal
from benchmarks.soak.plan import Plan
from benchmarks.soak.report import Report
from benchmarks.soak.run import Soak
from benchmarks.soak.watch import Excess, Watch
from tests import postgres

PLAN = Plan(
    jobs=60,
    seed=3,
    workers=2,
    recipes=("plain", "tools", "unicode", "no-stream", "as-messages", "generate"),
    kill_every_s=3.0,
    restart_every_s=5.0,
    episode_every_s=0,
    cancel_every_s=3.0,
    revoke_at=(),
    calm_at=0.9,  # of so few jobs: the last ones may need longer than their workers live
    storm_s=40.0,
    calm_s=60.0,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    folder = tmp_path_factory.mktemp("soak")
    with postgres.own_server() as server, postgres.database(server) as url:
        yield anyio.run(Soak(plan=PLAN, url=url, server=server, folder=folder).run)


def test_every_invariant_holds(report: Report) -> None:
    assert report.violations == {name: [] for name in CHECKS}, report.as_text()
    assert report.held
    assert report.figures["soak"]["jobs"] == PLAN.jobs
    assert report.figures["jobs by end"]["completed"] > PLAN.jobs / 2
    assert report.figures["what happened to workers"]["started"] >= PLAN.workers
    assert "BROKEN" not in report.as_text()
    assert json.loads(report.as_json())["held"] is True


# --- each check sees what it is there for -------------------------------------------------------

Doctor = Callable[[Evidence], Evidence]


def _completed(evidence: Evidence) -> int:
    """A job that completed with a run and a message of the server's."""
    with_message = {row["job_id"] for row in evidence.messages if row["source"] == "server"}
    return next(
        job_id
        for job_id, job in evidence.jobs.items()
        if job["state"] == "completed" and job_id in with_message
    )


def _with_job(evidence: Evidence, **changes: Any) -> Evidence:
    job_id = _completed(evidence)
    job = {**evidence.jobs[job_id], **changes}
    return replace(evidence, jobs={**evidence.jobs, job_id: job})


def _without_a_row(evidence: Evidence) -> Evidence:
    gone = _completed(evidence)
    kept = {job_id: job for job_id, job in evidence.jobs.items() if job_id != gone}
    return replace(evidence, jobs=kept)


def _with_a_second_run(evidence: Evidence) -> Evidence:
    run = evidence.run_of[evidence.jobs[_completed(evidence)]["run_id"]]
    twin = {**run, "run_id": "wrun_twin", "created_at": run["created_at"] + 1}
    return replace(evidence, runs=[*evidence.runs, twin])


def _with_another_message(evidence: Evidence) -> Evidence:
    job_id = _completed(evidence)
    rows = [
        {**row, "message": {**row["message"], "id": "another"}} if row["job_id"] == job_id else row
        for row in evidence.messages
    ]
    return replace(evidence, messages=rows)


def _with_event(evidence: Evidence, **values: Any) -> Evidence:
    job_id = _completed(evidence)
    last = evidence.events_of[job_id][-1]
    return replace(evidence, events=[*evidence.events, {**last, "id": last["id"] + 1, **values}])


def _with_a_doubt_of_its_own(evidence: Evidence) -> Evidence:
    doubt = {"event": "submit.in_doubt", "from_state": "running", "to_state": "in_doubt"}
    return _with_event(replace(evidence, submissions=[], journal=Journal()), **doubt)


def _with_too_many_live(evidence: Evidence) -> Evidence:
    excess = Excess(0.0, "narrow", 9, tuple(range(1, 10)))
    watch = Watch(evidence.watch.books, excesses=[excess])
    return replace(evidence, watch=watch)


def _with_a_death(evidence: Evidence) -> Evidence:
    log: list[Row] = [
        {"event": "worker.started", "pid": 1},
        {"event": "worker.was_declared_dead", "timestamp": "2026-01-01T00:00:00Z"},
    ]
    return replace(evidence, logs=[log])


def _untold(evidence: Evidence) -> Evidence:
    exits = [act for act in evidence.journal.acts if act.deed == "exit"]
    return replace(evidence, journal=Journal(exits))


@pytest.mark.parametrize(
    ("name", "doctor"),
    [
        ("nothing lost", _without_a_row),
        ("nothing lost", lambda evidence: _with_job(evidence, state="running")),
        ("every run known", _with_a_second_run),
        ("started once", _with_a_second_run),
        ("doubts explained", _with_a_doubt_of_its_own),
        ("messages exact", _with_another_message),
        ("messages exact", lambda evidence: _with_job(evidence, result_text="else")),
        ("verdicts right", lambda evidence: _with_job(evidence, error_kind="run_lost")),
        ("paths legal", lambda evidence: _with_event(evidence, lease=0)),
        ("paths legal", lambda evidence: _with_event(evidence, from_state="in_doubt")),
        ("paths legal", lambda evidence: _with_event(evidence, to_state="running")),
        ("limits held", _with_too_many_live),
        ("nobody buried alive", _with_a_death),
        ("ended when told", _untold),
    ],
)
def test_a_broken_promise_is_seen(report: Report, name: str, doctor: Doctor) -> None:
    assert list(CHECKS[name](doctor(report.evidence)))


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        arguments().parse_args(["--help"])
    assert "--kill-every-s" in capsys.readouterr().out
    given = arguments().parse_args(["--jobs", "7", "--json", "out.json"])
    assert (given.jobs, given.json) == (7, Path("out.json"))
