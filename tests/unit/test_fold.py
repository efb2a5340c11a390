"""The fold against what the `ai` package built from the same chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recoup import MessageFold, fold_message
from tests.unit.jsonvalues import canonical

STREAMS = Path(__file__).parent.parent / "streams"


def recorded() -> list[dict[str, Any]]:
    named = [json.loads(path.read_text("utf-8")) for path in sorted(STREAMS.glob("*.json"))]
    # Lines end at LF only: the texts hold U+2028 and its like.
    fuzzed = (STREAMS / "fuzz.jsonl").read_text("utf-8").strip("\n").split("\n")
    return [*named, *map(json.loads, fuzzed)]


def params(limit: float = float("inf")) -> list[Any]:
    cases = [case for case in recorded() if len(case["chunks"]) < limit]
    return [pytest.param(case, id=case["name"]) for case in cases]


CASES = params()
SHORT_CASES = params(limit=400)


@pytest.mark.parametrize("case", CASES)
def test_equals_what_the_package_builds(case: dict[str, Any]) -> None:
    folded = fold_message(case["chunks"], case.get("initialMessage"))

    assert canonical(folded.message) == canonical(case["message"])
    if case["message"] is not None:
        assert canonical(folded.state) == canonical(case.get("state", case["message"]))
    assert folded.errors == [error["message"] for error in case.get("errors", [])]
    assert folded.fatal == case.get("fatal", {}).get("index")


@pytest.mark.parametrize("case", SHORT_CASES)
def test_looking_at_a_message_on_the_way_changes_neither_it_nor_the_outcome(
    case: dict[str, Any],
) -> None:
    fold = MessageFold(case.get("initialMessage"))
    seen = []
    for chunk in case["chunks"]:
        fold.feed(chunk)
        seen.append((fold.message, canonical(fold.message), fold.state, canonical(fold.state)))

    assert canonical(fold.message) == canonical(case["message"])
    assert fold.count == len(case["chunks"])
    for message, then, state, state_then in seen:
        assert canonical(message) == then
        assert canonical(state) == state_then


def test_the_comparison_tells_json_values_apart() -> None:
    assert canonical({"a": 1, "b": [2]}) == canonical({"b": [2.0], "a": 1})
    assert canonical(True) != canonical(1)
    assert canonical({"a": None}) != canonical({})
