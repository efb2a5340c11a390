from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.recoup import BadEvent, EventParser

WIRE = json.loads((Path(__file__).parent.parent / "streams/wire/sse.json").read_text("utf-8"))


def events_of(*pieces: bytes) -> list[Any]:
    parser = EventParser()
    return [*(event for piece in pieces for event in parser.feed(piece)), *parser.close()]


def is_bad(event: Any) -> bool:
    return isinstance(event, BadEvent)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in WIRE])
def test_equals_what_the_package_parses(case: dict[str, Any]) -> None:
    events = events_of(*map(base64.b64decode, case["piecesBase64"]))

    assert [not is_bad(event) for event in events] == [event["ok"] for event in case["events"]]
    for found, expected in zip(events, case["events"], strict=True):
        if expected["ok"]:
            assert found == expected["value"]


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: 1\n\ndata: 2\n\n", [1, 2]),
        (b"data: 1\r\rdata: 2\r\n\r\ndata: 3\n\r\n", [1, 2, 3]),
        (b"data: 1\r\rdata: 2\r\r", [1]),
        (b"data: 1\n\ndata: 2\n\r", [1]),
        (b"data: 1\n\ndata: 2\r\n\r", [1]),
        (b"data: 1\r\r\r", [1]),
        (b"data:1\n\n", [1]),
        (b"data:  1\n\n", [1]),
        (b"data: [1,\ndata: 2]\n\n", [[1, 2]]),
        (b'data: "a\ndata\n\n', [BadEvent('"a\n', "")]),
        (b"data\n\n", [BadEvent("", "")]),
        (b"data :1\n\ndatabase: 1\n\ndata1\n\n", []),
        (b": stream-open\n\n: keep-alive\ndata: 1\n\n", [1]),
        (b"event: x\nid: 1\nretry: 5\nfoo\ndata: 1\n\n", [1]),
        (b"\n\nevent: only\n\n", []),
        (b"data: 1\n", []),
        (b"data: 1", []),
        (b"data: 1\n\ndata: 2\n", [1]),
        (b"\xef\xbb\xbfdata: 1\n\n", [1]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n", []),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\ndata: 3\n\n", [1, 3]),
        (b"data: [DONE]\n\ndata: 1\n\n", [1]),
        (b"data:  [DONE]\n\n", [BadEvent(" [DONE]", "")]),
        (b"data: [DONE] \n\n", [BadEvent("[DONE] ", "")]),
        (b'data: "\xff\xe2\x82 \xf0\x9f\x98\x80"\n\n', ["\ufffd\ufffd \U0001f600"]),
        (
            'data: "\u2028\u2029\u0085\u007f\u00e9"\n\n'.encode(),
            ["\u2028\u2029\u0085\u007f\u00e9"],
        ),
        (b'data: "\\ud83d\\ude00 \\ud83d"\n\n', ["\U0001f600 \ud83d"]),
        (b'data: {"\\ud83d\\ude00":1.0}\n\n', [{"\U0001f600": 1}]),
        (b"data: {\n\n", [BadEvent("{", "")]),
        (b"data: NaN\n\n", [BadEvent("NaN", "")]),
        (b"data: [-Infinity]\n\n", [BadEvent("[-Infinity]", "")]),
        (b'data: {"a":[{"__proto__":1}]}\n\n', [BadEvent('{"a":[{"__proto__":1}]}', "")]),
        (
            b'data: {"\\u005f\\u005fproto__":1}\n\n',
            [BadEvent('{"\\u005f\\u005fproto__":1}', "")],
        ),
        (
            b'data: {"constructor":{"prototype":1}}\n\n',
            [BadEvent('{"constructor":{"prototype":1}}', "")],
        ),
        (
            b'data: {"constructor":["prototype"],"a":"__proto__"}\n\n',
            [{"constructor": ["prototype"], "a": "__proto__"}],
        ),
    ],
)
def test_reads_events_by_the_rules_however_the_bytes_arrive(body: bytes, events: list[Any]) -> None:
    whole = events_of(body)
    by_byte = events_of(*(body[index : index + 1] for index in range(len(body))))

    for found in (whole, by_byte):
        shown = [BadEvent(event.data, "") if is_bad(event) else event for event in found]
        assert shown == events


def test_done_is_noted_and_does_not_end_the_reading() -> None:
    parser = EventParser()

    assert parser.feed(b"data: 1\n\n") == [1]
    assert not parser.done
    assert parser.feed(b"data: [DONE]\n\ndata: 2\n\n") == [2]
    assert parser.done


def test_an_event_is_given_at_its_empty_line_and_not_before() -> None:
    parser = EventParser()

    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"") == []
    assert parser.feed(b"\n") == [1]
    assert parser.feed(b"data: 2\r\n\r") == []
    assert parser.feed(b"\n") == [2]
    assert parser.close() == []


@pytest.mark.parametrize("text", ["9" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 5_000])
def test_monstrous_json_raises_nothing(text: str) -> None:
    [event, following] = events_of(f"data: {text}\n\ndata: 1\n\n".encode())

    assert event is None or is_bad(event)  # a number beyond all doubles prints as null
    assert following == 1


def test_a_long_line_in_many_small_reads_takes_linear_time() -> None:
    line = b'data: "' + b"x" * 4_000_000 + b'"\n\n'
    began = time.monotonic()
    [event] = events_of(*(line[index : index + 40] for index in range(0, len(line), 40)))

    assert len(event) == 4_000_000
    # 100,000 reads, each copying the line so far, would move 200 GB.
    assert time.monotonic() - began < 10


LINES = st.sampled_from(
    [
        b"data: 1",
        b"data:[2",
        b"data: ,3]",
        b'data: {"a":"\xe2\x80\xa8\xf0\x9f\x98\x80"}',
        b"data: [DONE]",
        b"data: bad\xe2\x80",
        b"data",
        b": comment",
        b"event: x",
        b"\xef\xbb\xbf",
        b"",
        b"",
    ]
)


@settings(deadline=None)  # other work may hold the machine
@given(
    lines=st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=20),
    data=st.data(),
)
def test_any_split_of_the_bytes_gives_the_same_events(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    body = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    assert events_of(*pieces) == events_of(body)


@settings(deadline=None)  # other work may hold the machine
@given(units=st.lists(st.integers(0xD7FE, 0xE001), max_size=8))
def test_escaped_code_units_become_the_string_that_javascript_holds(units: list[int]) -> None:
    escapes = "".join(f"\\u{unit:04x}" for unit in units)
    [text] = events_of(f'data: "{escapes}"\n\n'.encode())

    raw = b"".join(unit.to_bytes(2, "little") for unit in units)
    assert text == raw.decode("utf-16-le", "surrogatepass")
