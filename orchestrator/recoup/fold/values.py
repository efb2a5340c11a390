"""JavaScript's values in Python: absence, JSON, numbers, text and object merge.

The stream is written by a JavaScript server and the message it builds is defined by a
JavaScript library, so the places where the two languages differ are kept here.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NoReturn, TypeAlias

Json: TypeAlias = Any
"""A JSON value as `parse_json` gives it."""


class Absent(Enum):
    """The type of `ABSENT`: a key that is not in the object, which is not a null."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT

MAX_DEPTH = 800
"""Deepest nesting of arrays and objects: what Python's own JSON reader and writer manage."""

_EXACT_DIGITS = 15  # every integer of so many digits is a double
_FIRST_EXPONENT = 1e21  # JavaScript writes integers below this without an exponent
_SMALLEST_PLAIN = 1e-6  # and fractions from this on
_UNSAFE_KEYS = frozenset({"__proto__", "constructor", "prototype"})

INHERITED_KEYS = frozenset(
    {
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
    }
)
"""What a lookup in any JavaScript object finds, an empty one included."""


# --- JSON -----------------------------------------------------------------------------------


def parse_json(text: str) -> Json:
    """Read JSON as the package's reader does: strict syntax, numbers as doubles.

    Pairs of surrogate escapes come out as one character, lone ones stay. Raises ValueError for
    text that is no JSON, is nested deeper than `MAX_DEPTH`, or holds an object that could
    reach a prototype in JavaScript (the package refuses those too).
    """
    try:
        value, end = _DECODER.raw_decode(text) if text[:1] == "{" else (None, -1)
        if end != len(text):  # spaces around it, or no JSON
            value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if len(text) > MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH:
        _refuse_depth(value)
    if "__proto__" in text or "constructor" in text or "\\u00" in text:
        _refuse_prototypes(value)
    return value


def double(value: float) -> int | float | None:
    """Give `value` as JSON text written by JavaScript would bring it back.

    Whole numbers below 1e21 are integers (with the shortest digits, padded by zeros), minus
    zero is 0, and what is no finite number is None.
    """
    if math.isinf(value):
        return None
    if value.is_integer() and abs(value) < _FIRST_EXPONENT:
        return int(Decimal(repr(value)))
    return value


def _integer(digits: str) -> int | float | None:
    # Longer ones go through float, which also knows no limit on the number of digits.
    return int(digits) if len(digits) <= _EXACT_DIGITS else double(float(digits))


def _float(digits: str) -> int | float | None:
    return double(float(digits))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(
    parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant
)


def _children(value: Json) -> list[Json]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _refuse_depth(value: Json) -> None:
    level, depth = [value], 0
    while level:
        depth += any(isinstance(item, dict | list) for item in level)
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        level = [child for item in level for child in _children(item)]


def _refuse_prototypes(value: Json) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            inner = item.get("constructor")
            if "__proto__" in item or (isinstance(inner, dict) and "prototype" in inner):
                raise ValueError("an object with a forbidden prototype key")
        todo.extend(_children(item))


# --- text -----------------------------------------------------------------------------------


def is_utf8(text: str) -> bool:
    """Tell whether `text` can be encoded, that is, holds no surrogate code point."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def well_formed(text: str) -> str:
    """Join surrogate pairs that came as two code points; lone surrogates stay as they are."""
    if is_utf8(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def js_text(value: Json | Absent) -> str:
    """Give the text that JavaScript's string concatenation makes of `value`."""
    if isinstance(value, str):
        return value
    if value is ABSENT:
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join("" if item is None else js_text(item) for item in value)
    return "[object Object]" if isinstance(value, dict) else _number_text(value)


def truthy(value: Json) -> bool:
    """Tell whether JavaScript takes `value` for true: empty arrays and objects too."""
    return bool(value) or isinstance(value, list | dict)


def _number_text(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if _SMALLEST_PLAIN <= abs(value) < 1:
        return format(Decimal(repr(value)), "f")
    return repr(value).replace("e-0", "e-")


# --- objects --------------------------------------------------------------------------------


def required(chunk: dict[str, Json], name: str) -> Json | Absent:
    """Look up a field whose null is a value."""
    return chunk.get(name, ABSENT)


def optional(chunk: dict[str, Json], name: str) -> Json | Absent:
    """Look up a field whose null means that it is absent."""
    value = chunk.get(name)
    return ABSENT if value is None else value


def put(target: dict[str, Json], name: str, value: Json | Absent) -> None:
    """Set a field, or remove it where the value is absent."""
    if value is ABSENT:
        target.pop(name, None)
    else:
        target[name] = value


def identity(value: Json | Absent) -> object:
    """Give a dictionary key under which exactly the values meet that are `===` in JavaScript."""
    if isinstance(value, str) or value is None or value is ABSENT:
        return value
    if isinstance(value, bool | int | float):
        return (isinstance(value, bool), value)
    return object()  # two objects are never the same one here


def merge_metadata(old: Json, new: Json) -> Json:
    """Merge `new` deeply into `old` and give the result; neither is changed.

    Objects merge, everything else replaces; keys of `new` that could reach a prototype are
    skipped at every depth of a merge, but not in values that are taken whole.
    """
    if old is None:
        return new
    merged = _as_object(old)
    todo = [(merged, _as_object(new))]
    while todo:
        target, source = todo.pop()
        for key, value in source.items():
            if key in _UNSAFE_KEYS:
                continue
            below = target.get(key)
            if isinstance(value, dict) and isinstance(below, dict):
                target[key] = dict(below)
                todo.append((target[key], value))
            else:
                target[key] = value
    return merged


def _as_object(value: Json) -> dict[str, Json]:
    """Give the own fields that a JavaScript object spread finds in `value`, as a new object."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | str):
        return {str(index): item for index, item in enumerate(value)}
    return {}
