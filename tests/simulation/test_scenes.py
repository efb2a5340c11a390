"""Scenes made by hand: every promise is kept in them, and the bug that each is for is caught."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from .command import explain
from .mutations import CAUGHT_BY, MUTATIONS
from .plan import Plan
from .scenes import SCENES
from .world import Laboratory


def _failures(laboratory: Laboratory, plans: Sequence[Plan]) -> list[str]:
    return [explain(verdict) for verdict in map(laboratory.run, plans) if verdict.broken]


@pytest.mark.parametrize("bug", SCENES)
def test_a_scene_shows_its_bug_and_only_that(
    bug: str, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = _failures(laboratory, SCENES[bug])
    assert not sound, "\n\n".join(sound)
    MUTATIONS[bug](monkeypatch)
    assert _failures(laboratory, SCENES[bug])


def test_every_bug_has_a_seed_or_a_scene() -> None:
    assert CAUGHT_BY.keys() | SCENES.keys() == MUTATIONS.keys()
