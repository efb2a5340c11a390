"""What the fold does with chunks that no server of the pinned version sends."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.recoup import BadEvent, MessageFold, fold_message

START = {"type": "start", "messageId": "m"}
CALL = {"type": "tool-input-start", "toolCallId": "c", "toolName": "bash"}


def parts(*chunks: Any) -> list[dict[str, Any]]:
    folded = fold_message([START, *chunks])
    assert folded.fatal is None
    found: list[dict[str, Any]] = folded.message["parts"]
    return found


@pytest.mark.parametrize(
    "chunk",
    [
        None,
        7,
        "text-start",
        [],
        {},
        {"type": None},
        {"type": ["start"]},
        {"type": "custom", "data": 1},
        {"type": "start-step "},
        BadEvent(data="{", reason="cut"),
    ],
)
def test_what_is_no_known_chunk_is_counted_and_changes_nothing(chunk: Any) -> None:
    fold = MessageFold()
    fold.feed(START)
    before = fold.message

    assert fold.feed(chunk)
    assert fold.count == 2
    assert fold.message == before
    assert fold.state == before


def test_null_is_absence_for_optional_fields_and_a_value_for_the_others() -> None:
    nulls = dict.fromkeys(["title", "providerMetadata", "toolMetadata", "providerExecuted"])

    [call] = parts({**CALL, "type": "tool-input-available", **nulls, "input": None})
    assert call == {
        "type": "tool-bash",
        "toolCallId": "c",
        "state": "input-available",
        "input": None,
    }
    [call] = parts(
        CALL,
        {"type": "tool-output-available", "toolCallId": "c", "output": None, "preliminary": None},
    )
    assert call == {
        "type": "tool-bash",
        "toolCallId": "c",
        "state": "output-available",
        "output": None,
    }
    assert parts({"type": "data-x", "id": None, "data": None}) == [
        {"type": "data-x", "id": None, "data": None}
    ]
    assert parts({"type": "file", "url": "u", "mediaType": "t", "providerMetadata": None}) == [
        {"type": "file", "url": "u", "mediaType": "t"}
    ]


def test_values_become_the_text_that_javascript_makes_of_them() -> None:
    assert parts(
        {"type": "text-start", "id": 0},
        {"type": "text-delta", "id": "0", "delta": 1},
        {"type": "text-delta", "id": 0, "delta": None},
        {"type": "text-delta", "id": 0, "delta": True},
        {"type": "text-delta", "id": 0, "delta": {}},
        {"type": "text-delta", "id": 0},
    ) == [{"type": "text", "text": "1nulltrue[object Object]undefined", "state": "streaming"}]
    assert parts({"type": "tool-input-start", "toolCallId": "c"}) == [
        {"type": "tool-undefined", "toolCallId": "c", "state": "input-streaming"}
    ]


def test_ids_are_compared_without_conversion_where_javascript_does() -> None:
    numbered = {**CALL, "toolCallId": 1}

    assert len(parts(numbered, {**CALL, "toolCallId": "1"}, {**CALL, "toolCallId": True})) == 3
    assert len(parts(numbered, {**CALL, "toolCallId": 1.0})) == 1
    assert fold_message([numbered, {"type": "tool-output-denied", "toolCallId": "1"}]).fatal == 1


def test_metadata_merges_deeply_and_leaves_given_values_alone() -> None:
    first = {"a": {"b": 1, "c": [1]}, "n": None}
    fold = MessageFold()
    fold.feed({"type": "start", "messageMetadata": first})
    taken = fold.message
    fold.feed({"type": "finish", "messageMetadata": {"a": {"c": {}, "constructor": 1}, "n": 2}})
    fold.feed({"type": "message-metadata", "messageMetadata": None})

    assert fold.message["metadata"] == {"a": {"b": 1, "c": {}}, "n": 2}
    assert taken["metadata"] == {"a": {"b": 1, "c": [1]}, "n": None}
    assert first == {"a": {"b": 1, "c": [1]}, "n": None}


def test_surrogate_halves_join_over_deltas_and_a_lone_one_stays() -> None:
    assert parts(
        {"type": "reasoning-start", "id": "0"},
        {"type": "reasoning-delta", "id": "0", "delta": "\ud83d"},
        {"type": "reasoning-delta", "id": "0", "delta": "\ude00 \udc00"},
    ) == [{"type": "reasoning", "text": "\U0001f600 \udc00", "state": "streaming"}]


def test_a_fatal_chunk_stops_folding_but_not_counting() -> None:
    fold = MessageFold()

    assert fold.feed(START)
    assert not fold.feed({"type": "tool-output-denied", "toolCallId": "ghost"})
    assert not fold.feed({"type": "text-start", "id": "0"})
    assert (fold.fatal, fold.count) == (1, 3)
    assert fold.message == {"id": "m", "role": "assistant", "parts": []}
    assert fold.errors == ['No tool invocation found for tool call ID "ghost".']


@pytest.mark.parametrize("kind", ["text", "reasoning"])
def test_a_finished_step_closes_its_ids_and_leaves_its_parts_streaming(kind: str) -> None:
    step = [{"type": f"{kind}-start", "id": "0"}, {"type": "finish-step"}]
    folded = fold_message([*step, {"type": f"{kind}-delta", "id": "0", "delta": "late"}])

    assert folded.fatal == 2
    assert folded.state["parts"] == [{"type": kind, "text": "", "state": "streaming"}]


def test_a_follower_can_see_where_the_turn_stands() -> None:
    fold = MessageFold()
    seen = []
    for kind in ("start", "start-step", "finish-step", "start-step", "finish"):
        fold.feed({"type": kind, "messageId": "msg_1"} if kind == "start" else {"type": kind})
        seen.append((fold.message_id, fold.turn_open, fold.finished))

    assert MessageFold().message_id == ""
    assert seen == [
        ("msg_1", False, False),
        ("msg_1", True, False),
        ("msg_1", False, False),
        ("msg_1", True, False),
        ("msg_1", True, True),
    ]


def test_an_initial_message_of_any_shape_is_taken() -> None:
    shapes: list[Any] = [7, [], {}, {"role": "assistant"}]
    for initial in [*shapes, {"role": "assistant", "parts": [None, 1]}]:
        assert fold_message([START], initial).message["id"] == "m"
    given_message = {"id": "i", "role": "assistant", "parts": [{"type": "data-x", "id": "1"}]}
    folded = fold_message([{"type": "data-x", "id": "1", "data": 2}], given_message)
    assert folded.message["parts"] == [{"type": "data-x", "id": "1", "data": 2}]
    assert given_message["parts"] == [{"type": "data-x", "id": "1"}]


def test_the_time_for_a_chunk_does_not_grow_with_those_before() -> None:
    text = json.dumps({"content": "some text\n" * 100_000})
    fold = MessageFold()
    began = time.monotonic()
    fold.feed(CALL)
    for start in range(0, len(text), 40):
        piece = text[start : start + 40]
        fold.feed({"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": piece})
    [call] = fold.message["parts"]

    assert call["input"] == json.loads(text)
    # A parse for each of the 27,500 deltas would take minutes.
    assert time.monotonic() - began < 10


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "a", "1", "tool-x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
TYPES = st.sampled_from(
    [
        "start",
        "finish",
        "message-metadata",
        "start-step",
        "finish-step",
        "abort",
        "error",
        "text-start",
        "text-delta",
        "text-end",
        "reasoning-start",
        "reasoning-delta",
        "reasoning-end",
        "tool-input-start",
        "tool-input-delta",
        "tool-input-available",
        "tool-input-error",
        "tool-approval-request",
        "tool-output-available",
        "tool-output-error",
        "tool-output-denied",
        "source-url",
        "source-document",
        "file",
        "data-x",
        "data-",
    ]
)
FIELDS = st.sampled_from(
    [
        "id",
        "toolCallId",
        "toolName",
        "delta",
        "inputTextDelta",
        "input",
        "output",
        "data",
        "dynamic",
        "preliminary",
        "transient",
        "title",
        "messageId",
        "messageMetadata",
        "providerMetadata",
        "providerExecuted",
        "errorText",
        "url",
    ]
)


@settings(deadline=None)  # other work may hold the machine
@given(
    chunks=st.lists(
        st.builds(
            lambda kind, fields: {**fields, "type": kind},
            TYPES,
            st.dictionaries(FIELDS, VALUES, max_size=6),
        ),
        max_size=12,
    ),
    initial=VALUES | st.fixed_dictionaries({"role": st.just("assistant"), "parts": VALUES}),
)
def test_no_chunk_of_any_shape_raises_and_every_message_is_json(
    chunks: list[dict[str, Any]], initial: Any
) -> None:
    fold = MessageFold(initial)
    results = [fold.feed(chunk) for chunk in chunks]

    json.dumps([fold.message, fold.state, fold.errors], allow_nan=False)
    assert fold.count == len(chunks)
    assert fold.fatal == (results.index(False) if False in results else None)
