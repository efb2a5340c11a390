from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.recoup import EventParser, MessageFold, fold_message
from orchestrator.recoup.resume import Remainder, ResponseReader
from tests.unit.jsonvalues import canonical

STREAMS = Path(__file__).parent.parent / "streams"
RECORDED = json.loads((STREAMS / "wire/resume.json").read_text("utf-8"))
RUN = "wrun_TEST0001"

START = {"type": "tool-input-start", "toolCallId": "c", "toolName": "bash"}
INPUT = {"type": "tool-input-available", "toolCallId": "c", "toolName": "bash", "input": {"x": 1}}
EMPTY_INPUT = {**INPUT, "input": {}}
CANCELLED = {"type": "tool-output-error", "toolCallId": "c", "errorText": "Cancelled"}
OUTPUT = {"type": "tool-output-available", "toolCallId": "c", "output": 1}
FINISH = {"type": "finish"}
COMMIT = {"type": "data-commit", "id": "1", "data": {"status": "pending"}}


def reader(
    *, own_run: bool = True, turn_open: bool = False, finished: bool = False
) -> ResponseReader:
    return ResponseReader(own_run=own_run, turn_open=turn_open, finished=finished)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in RECORDED])
@pytest.mark.parametrize("read", [1, 7, 1 << 20])
def test_recorded_responses_count_exactly_the_stored_chunks(
    case: dict[str, Any], read: int
) -> None:
    fold = MessageFold()
    for response, stored_after in zip(case["responses"], case["storedAfter"], strict=True):
        assert fold.count == response["startIndex"]
        own_run = response["headers"].get("x-workflow-run-id") == RUN
        parser = EventParser()
        one = reader(own_run=own_run, turn_open=fold.turn_open, finished=fold.finished)
        body = base64.b64decode(response["bodyBase64"])
        for index in range(0, len(body), read):
            for chunk in one.feed(parser.feed(body[index : index + read])):
                fold.feed(chunk)
        assert parser.close() == []
        assert fold.count == stored_after

    assert fold.fatal is None
    assert canonical(fold.message) == canonical(case["message"])
    assert canonical(fold.state) == canonical(case.get("state", case["message"]))


def test_the_end_that_the_server_makes_up_for_an_open_call_is_held_back() -> None:
    one = reader()

    assert one.feed([START, INPUT, CANCELLED]) == [START, INPUT]
    assert one.close() == Remainder(held=(CANCELLED,))


@pytest.mark.parametrize(
    "made_up",
    [
        EMPTY_INPUT,
        {"type": "tool-input-available", "toolCallId": "c", "input": {}},
        {**EMPTY_INPUT, "dynamic": True},
    ],
)
def test_an_input_made_up_before_it_is_held_back_too(made_up: dict[str, Any]) -> None:
    one = reader()

    assert one.feed([START]) == [START]
    assert one.feed([made_up]) == []
    assert one.feed([CANCELLED]) == []
    assert one.close().held == (made_up, CANCELLED)


@pytest.mark.parametrize("opened", [[START], []])
def test_a_call_with_a_bad_input_is_still_open(opened: list[dict[str, Any]]) -> None:
    bad = {**INPUT, "type": "tool-input-error", "errorText": "no JSON"}
    one = reader()

    assert one.feed([*opened, bad, EMPTY_INPUT, CANCELLED]) == [*opened, bad]
    assert one.close().held == (EMPTY_INPUT, CANCELLED)


def test_ends_of_several_calls_are_held_back_together() -> None:
    other = {**START, "toolCallId": "d"}
    other_end = {**CANCELLED, "toolCallId": "d"}
    one = reader()

    assert one.feed([START, INPUT, other, CANCELLED, other_end]) == [START, INPUT, other]
    assert one.close().held == (CANCELLED, other_end)


def test_what_another_chunk_follows_was_real() -> None:
    one = reader()

    assert one.feed([START, EMPTY_INPUT, CANCELLED]) == [START]
    assert one.feed([COMMIT]) == [EMPTY_INPUT, CANCELLED, COMMIT]
    assert one.close() == Remainder()


@pytest.mark.parametrize(
    "real",
    [
        {**CANCELLED, "errorText": "cancelled"},
        {**CANCELLED, "providerExecuted": True},
        {**CANCELLED, "toolCallId": "opened in an earlier response"},
        {**EMPTY_INPUT, "toolCallId": "opened in an earlier response"},
        INPUT,
        "no object",
        {"toolCallId": "c"},
    ],
)
def test_other_shapes_count_at_once(real: Any) -> None:
    one = reader()

    assert one.feed([START, real]) == [START, real]
    assert one.close() == Remainder()


@pytest.mark.parametrize("end", [OUTPUT, {**CANCELLED, "errorText": "no"}])
def test_a_call_with_a_result_has_no_end_to_be_made_up(end: dict[str, Any]) -> None:
    assert reader().feed([START, INPUT, end, CANCELLED]) == [START, INPUT, end, CANCELLED]


def test_a_preliminary_output_leaves_its_call_open() -> None:
    preliminary = {**OUTPUT, "preliminary": True}

    assert reader().feed([INPUT, preliminary, CANCELLED]) == [INPUT, preliminary]


@pytest.mark.parametrize(
    ("own_run", "turn_open", "finished", "real"),
    [
        (True, False, False, True),
        (True, True, False, False),
        (True, False, True, False),
        (False, False, False, False),
        (False, True, False, False),
    ],
)
def test_a_lone_finish_is_real_only_where_the_run_can_have_come_to_it(
    own_run: bool, turn_open: bool, finished: bool, real: bool
) -> None:
    one = reader(own_run=own_run, turn_open=turn_open, finished=finished)

    assert one.feed([FINISH]) == ([FINISH] if real else [])
    assert one.close() == Remainder(lone_finish=not real)


def test_a_first_finish_that_is_not_alone_was_real() -> None:
    one = reader(own_run=False)

    assert one.feed([FINISH]) == []
    assert one.feed([COMMIT, FINISH]) == [FINISH, COMMIT, FINISH]
    assert one.close() == Remainder()


def made_up_ends(response: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the server appends to a response that it ends before the run has ended."""
    calls: dict[str, dict[str, Any] | None] = {}
    for chunk in response:
        call = chunk.get("toolCallId", "")
        match chunk["type"]:
            case "tool-input-start":
                calls[call] = {**chunk, "type": "tool-input-available", "input": {}}
            case "tool-input-available":
                calls[call] = None
            case "tool-output-available" | "tool-output-error" | "tool-output-denied":
                calls.pop(call, None)
    return [
        chunk
        for call, missing in calls.items()
        for chunk in (missing, {**CANCELLED, "toolCallId": call})
        if chunk is not None
    ]


STORED = [
    case["chunks"]
    for path in sorted(STREAMS.glob("*.json"))
    if path.stat().st_size < 50_000
    for case in [json.loads(path.read_text("utf-8"))]
    if "fatal" not in case and "initialMessage" not in case
]


@settings(deadline=None)  # other work may hold the machine
@given(stored=st.sampled_from(STORED), data=st.data())
def test_cutting_a_stream_anywhere_changes_neither_count_nor_message(
    stored: list[dict[str, Any]], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stored)), unique=True, max_size=6).map(sorted))
    fold = MessageFold()
    for cut in cuts:
        response = stored[fold.count : cut]
        one = reader(turn_open=fold.turn_open, finished=fold.finished)
        for chunk in one.feed([*response, *made_up_ends(response)]):
            fold.feed(chunk)
        one.close()
        assert fold.count <= cut
        prefix = fold_message(stored[: fold.count])
        assert canonical([fold.message, fold.state]) == canonical([prefix.message, prefix.state])

    last = reader(turn_open=fold.turn_open, finished=fold.finished)
    counted = last.feed(stored[fold.count :])
    for chunk in [*counted, *last.close().held]:
        fold.feed(chunk)
    whole = fold_message(stored)
    assert fold.fatal is None
    assert canonical([fold.message, fold.state]) == canonical([whole.message, whole.state])
    assert fold.count == len(stored) - last.close().lone_finish
