from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.recoup.fold.partial_json import parse_partial
from orchestrator.recoup.fold.values import ABSENT, MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ABSENT),
        ("  \n", ABSENT),
        ("hello", ABSENT),
        ('{"a":"tail\\', {"a": "tail"}),
        ('{"a":"x\\u26', ABSENT),
        ('{"a":"x\\', {"a": "x"}),
        ('{"a":"x\\n', {"a": "x\n"}),
        ('{"done":1,"half ke', {"done": 1}),
        ('{"done":1,"next":', {"done": 1}),
        ('{"k\\"": 1', {'k"': 1}),
        ('{"a\\":1', ABSENT),
        ("[1,2,", [1, 2]),
        ("[,", ABSENT),
        ('[{"a":1},{"b"', [{"a": 1}, {}]),
        ('{"b":[null,fal', {"b": [None, False]}),
        ('{"a":{"b":{"c":[[', {"a": {"b": {"c": [[]]}}}),
        ('{"b":12.5e', {"b": 12.5}),
        ('{"n":3.', {"n": 3}),
        ("[1,-", [1]),
        ("[-", ABSENT),
        ('"just a stri', "just a stri"),
        ("nul", None),
        ("t", True),
        ("12", 12),
        ('{"n":NaN', {}),
        ("{'a':1", {}),
        ('{"n":007', ABSENT),
        ('{"a":"\t', ABSENT),
        ('{"a":1} x', {"a": 1}),
        ("[1 2", ABSENT),
        ('{"__proto__":1', ABSENT),
        ('{"\\u005f_proto__":{"x":1}}', ABSENT),
        ('{"constructor":{"prototype":1', ABSENT),
        ('{"constructor":{"name":1', {"constructor": {"name": 1}}),
        ('{"a":1,"a":2', {"a": 2}),
        ('{"a":-0.0,"b":1e400,"c":1.50', {"a": 0, "b": None, "c": 1.5}),
        ('["\ud83d\\ude00', ["\U0001f600"]),
        ('["\ud83d', ["\ud83d"]),
    ],
)
def test_reads_what_is_there(text: str, value: Any) -> None:
    found = parse_partial(text)

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("digits", "printed"),
    [
        ("12345678901234567890", "12345678901234567000"),
        ("9007199254740993", "9007199254740992"),
        ("1.0", "1"),
        ("-0", "0"),
        ("1e3", "1000"),
        ("100000000000000000000", "100000000000000000000"),
        ("1e21", "1e+21"),
        ("0.1", "0.1"),
        ("1e309", "null"),
        ("9" * 10_000, "null"),
    ],
)
def test_numbers_are_doubles_and_print_as_in_javascript(digits: str, printed: str) -> None:
    assert json.dumps(parse_partial(f'{{"n":{digits},"m')) == f'{{"n": {printed}}}'


def test_nesting_is_bounded_and_never_overflows() -> None:
    deep: Any = parse_partial("[" * 500)
    for _ in range(499):
        [deep] = deep
    assert deep == []
    assert parse_partial("[" * (MAX_DEPTH + 1)) is ABSENT
    assert parse_partial('{"a":' * 100_000) is ABSENT
    assert parse_partial('"' + "[" * 100_000) == "[" * 100_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(deadline=None)  # other work may hold the machine
@given(value=JSON)
def test_whole_text_is_its_value(value: Any) -> None:
    assert parse_partial(json.dumps(value)) == value
    assert parse_partial(json.dumps(value, ensure_ascii=False)) == value


@settings(deadline=None)  # other work may hold the machine
@given(value=st.dictionaries(st.text("ab", max_size=2), JSON, min_size=1), data=st.data())
def test_any_beginning_holds_only_what_the_whole_will_hold(value: Any, data: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    length = data.draw(st.integers(1, len(text)))
    found = parse_partial(text[:length])

    if found is not ABSENT:  # a cut escape of a control character
        assert isinstance(found, dict)
        assert list(found) == list(value)[: len(found)]
        assert all(found[key] == value[key] for key in list(found)[:-1])


@settings(deadline=None)  # other work may hold the machine
@given(text=st.text(alphabet='{}[]",:\\ truefalsn0123.-eE\ud83d\ude00xu_'))
@example(text='["\\')
def test_never_raises(text: str) -> None:
    found = parse_partial(text)

    assert found is ABSENT or json.loads(json.dumps(found, allow_nan=False)) == found
