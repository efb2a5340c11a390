"""What seeds have found, each as a small plan of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.worker.poll import Poller

from .command import explain
from .plan import Act, Plan, PlannedJob, plan
from .world import Laboratory, Verdict

QUIET = replace(plan(0), workers=1, jobs=(), acts=(), ambushes=(), limits={}, calm_at=1.0)


def _plans_of_a_late_stop() -> Iterator[Plan]:
    """The database is away between the decision to stop a run and the note of it."""
    settings = {**QUIET.settings, "worker": {**QUIET.settings["worker"], "dead_after": 15.0}}
    job = PlannedJob(0.0, {"prompt": "job 1. [hang]", "run_timeout": 25.0})
    away = {"slot": 0}
    for seed in range(8):
        acts = (
            Act(24.0, "database partition", away),
            Act(44.0 + seed / 10, "database partition ends", away),
        )
        yield replace(QUIET, seed=seed, settings=settings, jobs=(job,), acts=acts, calm_at=60.0)


def _broken(laboratory: Laboratory) -> list[Verdict]:
    verdicts = map(laboratory.run, _plans_of_a_late_stop())
    return [verdict for verdict in verdicts if verdict.broken]


def test_no_stop_goes_out_after_a_long_wait_for_the_database(laboratory: Laboratory) -> None:
    assert not [explain(verdict) for verdict in _broken(laboratory)]


def test_a_stop_that_nothing_fences_is_caught(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Poller, "_is_fenced", lambda *_: False)
    assert [words for verdict in _broken(laboratory) for words in verdict.broken]
