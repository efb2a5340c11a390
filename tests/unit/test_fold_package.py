"""The fold in odd corners, against answers that version 6.0.190 of the `ai` package gave."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.recoup import fold_message
from tests.unit.jsonvalues import canonical

START = {"type": "start", "messageId": "m"}
TEXT = {"type": "text", "text": "", "state": "streaming"}
UNNAMED_CALL = {"type": "tool-undefined", "state": "input-streaming"}

INHERITED = [
    "__defineGetter__",
    "__defineSetter__",
    "__lookupGetter__",
    "__lookupSetter__",
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "toLocaleString",
    "toString",
    "valueOf",
]


def text(kind: str, name: Any = "0", **fields: Any) -> dict[str, Any]:
    return {"type": f"text-{kind}", "id": name, **fields}


def call(kind: str, name: str = "c", **fields: Any) -> dict[str, Any]:
    return {"type": f"tool-{kind}", "toolCallId": name, **fields}


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], int | None]] = {
    # name -> chunks after START, parts of the message, index of the fatal chunk
    "a name that no object inherits is fatal": ([text("delta", "prototype", delta="x")], [], 1),
    "an inherited name opened as usual": (
        [text("start", "toString"), text("delta", "toString", delta="x"), text("end", "toString")],
        [{**TEXT, "text": "x", "state": "done"}],
        None,
    ),
    "an inherited name after its end": (
        [text("start", "valueOf"), text("end", "valueOf"), text("delta", "valueOf", delta="x")],
        [{**TEXT, "state": "done"}],
        None,
    ),
    "a prototype is not deleted by an end": (
        [
            text("start", "__proto__"),
            text("end", "__proto__"),
            text("delta", "__proto__", delta="late"),
        ],
        [{**TEXT, "text": "late", "state": "done"}],
        None,
    ),
    "a prototype goes with its step": (
        [
            text("start", "__proto__"),
            {"type": "finish-step"},
            text("delta", "__proto__", delta="late"),
        ],
        [TEXT],
        None,
    ),
    "an inherited name writes into a call that it finds": (
        [
            call("input-available", "toString", toolName="bash", input={"a": 1}),
            call("input-delta", "toString", inputTextDelta='{"b":2}'),
        ],
        [{"type": "tool-bash", "toolCallId": "toString", "state": "input-streaming"}],
        None,
    ),
    "an inherited name with a partial input of its own": (
        [
            call("input-start", "__proto__", toolName="bash", dynamic=True),
            call("input-delta", "__proto__", inputTextDelta='{"b":2'),
        ],
        [
            {
                "type": "dynamic-tool",
                "toolName": "bash",
                "toolCallId": "__proto__",
                "state": "input-streaming",
                "input": {"b": 2},
            }
        ],
        None,
    ),
    "an inherited name is no call that an output finds": (
        [call("output-available", "constructor", output=1)],
        [],
        1,
    ),
    "empty arrays and objects are true": (
        [
            call("input-available", toolName="bash", input=1, dynamic=[]),
            {"type": "data-x", "data": 1, "transient": {}},
        ],
        [
            {
                "type": "dynamic-tool",
                "toolName": "bash",
                "toolCallId": "c",
                "state": "input-available",
                "input": 1,
            }
        ],
        None,
    ),
    "fractions are written as JavaScript writes them": (
        [
            text("start"),
            *(
                text("delta", delta=number)
                for number in [0.5, 1e-6, 0.000015, -1e-7, 1.5e-10, 1e21, 1.5e300, 123456.789]
            ),
        ],
        [{**TEXT, "text": "0.50.0000010.000015-1e-71.5e-101e+211.5e+300123456.789"}],
        None,
    ),
    "ids that are written alike are one": (
        [text("start", 0.00001), text("delta", "0.00001", delta="x")],
        [{**TEXT, "text": "x"}],
        None,
    ),
}


@pytest.mark.parametrize(("chunks", "parts", "fatal"), CASES.values(), ids=CASES)
def test_equals_what_the_package_builds(
    chunks: list[dict[str, Any]], parts: list[dict[str, Any]], fatal: int | None
) -> None:
    folded = fold_message([START, *chunks])

    assert canonical(folded.message["parts"]) == canonical(parts)
    assert folded.fatal == fatal


@pytest.mark.parametrize("name", INHERITED)
@pytest.mark.parametrize("kind", ["text", "reasoning"])
def test_what_every_object_inherits_is_an_open_part_that_nobody_sees(kind: str, name: str) -> None:
    folded = fold_message(
        [{"type": f"{kind}-delta", "id": name, "delta": "x"}, {"type": f"{kind}-end", "id": name}]
    )

    assert folded.fatal is None
    assert folded.errors == []
    assert folded.message == {"id": "", "role": "assistant", "parts": []}


@pytest.mark.parametrize("name", INHERITED)
def test_what_every_object_inherits_is_a_call_without_a_name(name: str) -> None:
    delta = {"type": "tool-input-delta", "toolCallId": name, "inputTextDelta": "{}"}
    folded = fold_message([delta, delta])

    assert folded.fatal is None
    assert folded.message["parts"] == [{**UNNAMED_CALL, "toolCallId": name}]


@pytest.mark.parametrize("initial", [{"role": "user", "id": None}, {"role": "system"}])
def test_a_message_of_another_role_without_an_id_gives_the_empty_one(
    initial: dict[str, Any],
) -> None:
    folded = fold_message([{"type": "text-start", "id": "0"}], initial)

    assert folded.message == {"id": "", "role": "assistant", "parts": [TEXT]}
