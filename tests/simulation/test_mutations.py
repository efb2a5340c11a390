"""The simulation finds bugs: each of these, planted, is caught."""

from __future__ import annotations

from itertools import chain

import pytest

from .mutations import CAUGHT_BY, MUTATIONS
from .plan import plan
from .world import Laboratory

ENOUGH = 60
"""The seeds that are tried where those that once caught a bug meet it no more."""


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_planted_bug_is_caught(
    name: str, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[name](monkeypatch)
    seeds = chain(CAUGHT_BY[name], range(ENOUGH))
    assert any(laboratory.run(plan(seed)).broken for seed in seeds), (
        f"none of {ENOUGH} seeds catches it; `python -m tests.simulation --mutations` looks further"
    )
