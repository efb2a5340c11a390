from __future__ import annotations

from typing import Any

import pytest

from orchestrator.harvest import Folded, harvest, is_earlier, ours
from orchestrator.recoup.answers import SessionChat, Trouble, TroubleKind

STEP = {"type": "step-start"}
DATA = {"type": "data-commit", "id": "d", "data": {"status": "success"}}
TROUBLE = Trouble(TroubleKind.UNAVAILABLE, "HTTP 503", 503)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def a_message(*parts: Any, name: str = "m1", **more: Any) -> dict[str, Any]:
    return {"id": name, "role": "assistant", "parts": list(parts), **more}


def a_chat(*messages: dict[str, Any]) -> SessionChat:
    return SessionChat("c", "s", None, None, None, None, False, messages)


WHOLE = a_message(STEP, text("one"), STEP, text("two"))


# --- which message is ours ----------------------------------------------------------------------


def test_the_message_that_the_stream_named_is_ours() -> None:
    other = a_message(text("x"), name="m0")
    assert ours([other, WHOLE], "m1") is WHOLE


@pytest.mark.parametrize("message_id", ["", "unknown"])
def test_without_a_name_the_first_assistants_is_ours(message_id: str) -> None:
    user = {"id": "u", "role": "user", "parts": [text("hello")]}
    assert ours([user, WHOLE, a_message(text("later"), name="m2")], message_id) is WHOLE
    assert ours([user], message_id) is None
    assert ours([], message_id) is None


# --- which account is kept ----------------------------------------------------------------------


def test_the_stored_message_wins() -> None:
    found = harvest(a_chat(WHOLE), None, Folded(WHOLE, "m1", whole=True))
    assert found.collected.message == WHOLE
    assert found.collected.stored
    assert found.difference is None
    (row,) = found.kept
    assert (row.position, row.message_id, row.role, row.source) == (0, "m1", "assistant", "server")
    assert (row.text, row.message) == ("one\n\ntwo", WHOLE)


def test_the_stored_message_wins_over_a_fold_that_differs_and_it_is_told() -> None:
    folded = a_message(STEP, text("one"), STEP, text("2"))
    found = harvest(a_chat(WHOLE), None, Folded(folded, "m1", whole=True))
    assert found.collected.message == WHOLE
    assert found.difference == {
        "kept": "server",
        "why": "parts differ",
        "stored_parts": 4,
        "folded_parts": 4,
    }


def test_other_metadata_is_told_as_such() -> None:
    folded = {**WHOLE, "metadata": {"a": 1}}
    found = harvest(a_chat(WHOLE), None, Folded(folded, "m1", whole=True))
    assert found.difference is not None
    assert found.difference["why"] == "metadata differs"


def test_a_fold_that_did_not_see_all_is_no_difference() -> None:
    folded = a_message(STEP, text("on"))
    assert harvest(a_chat(WHOLE), None, Folded(folded, "m1")).difference is None


def test_data_parts_and_a_trailing_step_are_no_difference() -> None:
    folded = a_message(STEP, text("one"), DATA, STEP, text("two"), STEP)
    found = harvest(a_chat(WHOLE), None, Folded(folded, "m1", whole=True))
    assert (found.collected.message, found.difference) == (WHOLE, None)


def test_an_earlier_state_of_the_fold_gives_way_to_it() -> None:
    stored = a_message(STEP, text("one"))
    other = a_message(text("later"), name="m2")
    found = harvest(a_chat(stored, other), None, Folded(WHOLE, "m1", whole=True))
    assert found.collected.message == WHOLE
    assert found.collected.stored, "the server keeps a message of this run"
    assert [row.source for row in found.kept] == ["stream", "server"]
    assert found.difference == {
        "kept": "stream",
        "why": "the stored message is an earlier state",
    }


@pytest.mark.parametrize(
    ("stored", "earlier"),
    [
        (a_message(STEP, text("one")), True),
        (a_message(STEP, text("one"), STEP), True),
        (a_message(STEP, text("one"), DATA), True),
        (a_message(), True),
        (WHOLE, False),
        (a_message(STEP, text("other")), False),
        (a_message(STEP, text("one"), STEP, text("two"), text("three")), False),
        (a_message(STEP, text("one"), name="m9"), False),
        ({**a_message(), "parts": None}, True),
    ],
)
def test_what_is_visibly_earlier(stored: dict[str, Any], earlier: bool) -> None:
    assert is_earlier(stored, Folded(WHOLE, "m1", whole=True)) is earlier
    assert not is_earlier(stored, Folded(None))


TOLD = {"metadata": {"lastStepFinishReason": "stop", "totalMessageUsage": {"totalTokens": 7}}}


def test_a_step_that_ran_twice_alike_is_no_later_state() -> None:
    """The stream keeps both runs of a step, the server one; both have the last call's metadata."""
    stored = {**a_message(STEP, text("OK.")), **TOLD}
    twice = {**a_message(STEP, text("OK."), STEP, text("OK.")), **TOLD}
    assert not is_earlier(stored, Folded(twice, "m1", whole=True))
    found = harvest(a_chat(stored), None, Folded(twice, "m1", whole=True))
    assert found.collected.message == stored
    # One whose end was not seen may lack the metadata of its last call, and says more by its parts.
    assert is_earlier(stored, Folded(twice, "m1", whole=False))


def test_where_the_chat_cannot_be_read_the_fold_stands_in() -> None:
    found = harvest(None, TROUBLE, Folded(WHOLE, "m1", whole=True))
    assert found.collected.message == WHOLE
    assert (found.collected.stored, found.collected.whole) == (False, True)
    assert found.collected.trouble == "HTTP 503"
    assert [row.source for row in found.kept] == ["stream"]
    assert found.difference == {"kept": "stream", "why": "HTTP 503"}


def test_where_the_chat_is_empty_the_fold_stands_in() -> None:
    found = harvest(a_chat(), None, Folded(WHOLE, "m1", whole=True))
    assert not found.collected.stored
    assert found.difference == {"kept": "stream", "why": "the chat holds no message"}


def test_where_nothing_is_there_is_nothing() -> None:
    found = harvest(None, TROUBLE, Folded())
    assert found.collected.message is None
    assert (found.kept, found.difference) == ((), None)


def test_messages_of_others_are_kept_with_their_places() -> None:
    user = {"role": "user", "parts": [text("more")]}
    found = harvest(a_chat(WHOLE, user), None, Folded())
    assert [(row.position, row.role, row.message_id) for row in found.kept] == [
        (0, "assistant", "m1"),
        (1, "user", None),
    ]
