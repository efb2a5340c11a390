"""The simulation finds bugs: each of these, planted, is caught."""

from __future__ import annotations

import pytest

from .mutations import CAUGHT_BY, MUTATIONS
from .plan import plan
from .world import Laboratory


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_planted_bug_is_caught(
    name: str, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[name](monkeypatch)
    broken = [words for seed in CAUGHT_BY[name] for words in laboratory.run(plan(seed)).broken]
    assert broken, (
        f"no seed of {CAUGHT_BY[name]} catches it; `python -m tests.simulation --mutations` "
        "finds others after the plans have changed"
    )
