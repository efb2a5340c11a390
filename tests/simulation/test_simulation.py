"""Two hundred seeds keep every promise, and a seed replays exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from .command import explain, run_seeds
from .world import Laboratory, Verdict

SEEDS_OF_A_TEST = 25

EVENTFUL = 50
"""The first of as many seeds that meet every trouble between them."""


@pytest.mark.parametrize("first", range(0, 200, SEEDS_OF_A_TEST))
def test_seeds_keep_every_promise(first: int, laboratory: Laboratory) -> None:
    verdicts = list(run_seeds(range(first, first + SEEDS_OF_A_TEST), laboratory))
    failed = [explain(verdict) for verdict in verdicts if verdict.broken]
    assert not failed, "\n\n".join(failed)
    if first == EVENTFUL:
        assert_they_met_what_they_are_for(verdicts)


def assert_they_met_what_they_are_for(verdicts: Sequence[Verdict]) -> None:
    """Faults strike while it matters: else the promises would be kept for want of trouble."""
    states = set[str]().union(*(verdict.states for verdict in verdicts))
    counts = set[str]().union(*(verdict.counts for verdict in verdicts))
    assert states >= {"completed", "failed", "cancelled", "in_doubt"}
    assert counts >= {
        "crash",
        "freeze",
        "connection refused",
        "connection was held up by a partition",
        "the connection broke after the transaction",
        "the transaction was rolled back",
    }


def test_a_seed_replays_exactly_in_another_process() -> None:
    traces = {_trace_of(seed=3, hash_seed=hash_seed) for hash_seed in ("1", "2")}
    assert len(traces) == 1
    assert traces.pop().startswith("trace: ")


def _trace_of(*, seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout.splitlines()[-1]
