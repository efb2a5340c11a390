"""The value of JSON text that is still being written.

While a model writes the input of a tool, the message shows what can be read of it so far. The
repair cuts an invalid tail and closes what is open; it never mends bad syntax. Its odd corners
are those of the `ai` package, since they show in any message whose stream ends there.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto

from orchestrator.recoup.fold.values import (
    ABSENT,
    Absent,
    Json,
    is_utf8,
    parse_json,
    well_formed,
)


def parse_partial(text: str) -> Json | Absent:
    """Give the value of `text`, else of its repaired form, else `ABSENT`. Never raises."""
    text = well_formed(text)
    value = _parsed(text)
    if value is ABSENT:
        value = _parsed(repair(text))
    return value


def repair(text: str) -> str:
    """Cut what is unfinished at the end of JSON text and close what is open."""
    return _Scanner(text).repaired()


def _parsed(text: str) -> Json | Absent:
    try:
        value = parse_json(text)
        # A raw half of a surrogate pair may stand beside an escaped one; only a second reading
        # joins the two.
        return value if is_utf8(text) else parse_json(json.dumps(value))
    except (ValueError, RecursionError):
        return ABSENT


class _State(Enum):
    ROOT = auto()
    FINISH = auto()
    STRING = auto()
    ESCAPE = auto()
    NUMBER = auto()
    LITERAL = auto()
    OBJECT_START = auto()
    OBJECT_KEY = auto()
    OBJECT_AFTER_KEY = auto()
    OBJECT_BEFORE_VALUE = auto()
    OBJECT_AFTER_VALUE = auto()
    OBJECT_AFTER_COMMA = auto()
    ARRAY_START = auto()
    ARRAY_AFTER_VALUE = auto()
    ARRAY_AFTER_COMMA = auto()


_LITERALS = ("false", "true", "null")
_DIGITS = frozenset("0123456789")
_PLAIN = re.compile(r'[^"\\]+')

# Where a value may start, and the state that its end leads to.
_AFTER_VALUE = {
    _State.ROOT: _State.FINISH,
    _State.OBJECT_BEFORE_VALUE: _State.OBJECT_AFTER_VALUE,
    _State.ARRAY_START: _State.ARRAY_AFTER_VALUE,
    _State.ARRAY_AFTER_COMMA: _State.ARRAY_AFTER_VALUE,
}
_OPENED = {
    '"': _State.STRING,
    "{": _State.OBJECT_START,
    "[": _State.ARRAY_START,
    "-": _State.NUMBER,
    **dict.fromkeys(_DIGITS, _State.NUMBER),
    **dict.fromkeys("ftn", _State.LITERAL),
}
# What one character makes of a state, where it makes anything.
_KEY_STEPS = {
    (_State.OBJECT_START, '"'): _State.OBJECT_KEY,
    (_State.OBJECT_AFTER_COMMA, '"'): _State.OBJECT_KEY,
    (_State.OBJECT_KEY, '"'): _State.OBJECT_AFTER_KEY,
    (_State.OBJECT_AFTER_KEY, ":"): _State.OBJECT_BEFORE_VALUE,
    (_State.OBJECT_AFTER_VALUE, ","): _State.OBJECT_AFTER_COMMA,
    (_State.ARRAY_AFTER_VALUE, ","): _State.ARRAY_AFTER_COMMA,
}
_CLOSERS = {
    (_State.OBJECT_START, "}"),
    (_State.OBJECT_AFTER_VALUE, "}"),
    (_State.ARRAY_START, "]"),
    (_State.ARRAY_AFTER_VALUE, "]"),
}
_OBJECTS = frozenset(state for state in _State if state.name.startswith("OBJECT"))
_ARRAYS = frozenset(state for state in _State if state.name.startswith("ARRAY"))


class _Scanner:
    """One pass over the text: a stack of states, and the end of what is worth keeping."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stack = [_State.ROOT]
        self._end = 0
        self._literal_start = 0

    def repaired(self) -> str:
        position, length = 0, len(self._text)
        while position < length:
            position = self._step(position)
        kept = self._text[: self._end]
        return kept + "".join(self._closing(state) for state in reversed(self._stack))

    def _step(self, position: int) -> int:
        """Take one character, or a run of plain ones in a string; give the next position."""
        state, char = self._stack[-1], self._text[position]
        match state:
            case _State.STRING:
                return self._in_string(char, position)
            case _State.ESCAPE:
                self._stack.pop()
                self._end = position + 1
            case _State.NUMBER:
                self._in_number(char, position)
            case _State.LITERAL:
                self._in_literal(char, position)
            case _:
                self._in_structure(state, char, position)
        return position + 1

    def _in_string(self, char: str, position: int) -> int:
        if char == "\\":
            self._stack.append(_State.ESCAPE)
            return position + 1
        if char == '"':
            self._stack.pop()
            self._end = position + 1
            return position + 1
        run = _PLAIN.match(self._text, position)
        self._end = run.end() if run else position + 1
        return self._end

    def _in_number(self, char: str, position: int) -> None:
        if char in _DIGITS:
            self._end = position + 1
        elif char not in "eE-.":
            self._stack.pop()
            self._after_value(self._stack[-1], char, position)

    def _in_literal(self, char: str, position: int) -> None:
        written = self._text[self._literal_start : position + 1]
        if any(literal.startswith(written) for literal in _LITERALS):
            self._end = position + 1
        else:
            self._stack.pop()
            self._after_value(self._stack[-1], char, position)

    def _in_structure(self, state: _State, char: str, position: int) -> None:
        if self._after_value(state, char, position):
            return
        if state in (_State.ARRAY_START, _State.ARRAY_AFTER_VALUE):
            self._end = position + 1
        if state in _AFTER_VALUE:
            self._open(state, char, position)

    def _after_value(self, state: _State, char: str, position: int) -> bool:
        """Let `char` close or lead on the innermost object or array, if it can."""
        if (state, char) in _CLOSERS:
            self._stack.pop()
            self._end = position + 1
            return True
        following = _KEY_STEPS.get((state, char))
        if following is not None:
            self._stack[-1] = following
        return following is not None

    def _open(self, state: _State, char: str, position: int) -> None:
        opened = _OPENED.get(char)
        if opened is None:
            return
        self._stack[-1] = _AFTER_VALUE[state]
        self._stack.append(opened)
        if opened is _State.LITERAL:
            self._literal_start = position
        if char != "-":
            self._end = position + 1

    def _closing(self, state: _State) -> str:
        if state is _State.STRING:
            return '"'
        if state is _State.LITERAL:
            written = self._text[self._literal_start :]
            return next(word for word in _LITERALS if word.startswith(written))[len(written) :]
        if state in _OBJECTS:
            return "}"
        return "]" if state in _ARRAYS else ""
