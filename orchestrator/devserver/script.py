"""What the scripted model does with a prompt: the directives in its text, read into a value.

A prompt may hold one block of directives in square brackets, words and `name=value` pairs
separated by spaces, e.g. `[steps=3 tool=search tool_time=1 finish=length]`. A value that
begins with `"`, `{` or `[` is JSON, anything else runs to the next space. A bracket that holds
any other word is ordinary text. Without directives the model answers in one short sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.devserver.wire import Chunk, Json, whole_characters

MADE_UP: Final = object()
"""Stands for an input or output that the model makes up; None is a value of its own."""


@dataclass(frozen=True, slots=True)
class Script:
    """The behaviour of one run. Times are in seconds, steps are counted from 1."""

    subject: str = ""
    """The prompt without its directives."""
    steps: int = 1
    """Model calls; every one but the last ends in tool calls."""
    tokens: int | None = None
    """Words of the answer; None for one sentence that mentions the prompt."""
    text: str | None = None
    """The answer itself, instead of `tokens`; may hold any code point, lone surrogates too."""
    talk: str = "Let me look into that."
    """The text before the tool calls of each earlier step."""
    split: int = 0
    """UTF-16 units in each delta, so that pairs may be cut; 0 cuts between words."""
    delay: float | None = None
    """Pause before each chunk; None for the server's own pace."""
    first: float = 0.0
    """Pause before the first chunk."""
    tool: str = "bash"
    """Name of the tool."""
    tools: int = 1
    """Calls in each step that has any."""
    tool_time: float = 0.0
    """How long the tools of one step run."""
    tool_error: str | None = None
    """The error that every call ends with; None for an output."""
    input: Json = MADE_UP
    """Input of every call."""
    output: Json = MADE_UP
    """Output of every call."""
    reasoning: str | None = None
    """Reasoning before the text of each step."""
    finish: str = "stop"
    """Finish reason of the last step."""
    cost: float | None = 0.0021
    """USD of each step; None when the metadata name no cost."""
    fail: int | None = None
    """The step that fails for good, after `attempts`; 0 fails before the first chunk."""
    attempts: int = 4
    """How often a failing step is tried."""
    hang: int | None = None
    """The step in which the run stops moving, while its status stays `running`."""
    silence: float = 0.0
    """Pause in the middle of the answer."""
    retry_step: int | None = None
    """The step that breaks once and is run again: its first half stays in the stream."""
    error_chunk: str | None = None
    """Text of an `error` chunk in the last step; the run completes all the same."""
    extra: tuple[Chunk, ...] = ()
    """Chunks that the last step writes as they are before it ends; no message holds them."""
    commit: str | None = None
    """Outcome of the commit after `finish`: success, error or skipped; None for no commit."""
    commit_time: float = 0.05
    """How long the commit takes."""
    tail: float = 0.0
    """Time between `finish` and the end of the run (billing)."""
    sources: int = 0
    """`source-url` parts in the last step."""
    files: int = 0
    """`file` parts in the last step."""
    provision: float = 0.0
    """Time before the 202, on top of the server's own."""
    queued: float = 0.0
    """How long the status is `queued` at first."""
    stop_time: float = 0.0
    """How long the run goes on after a stop; it may complete in that time."""
    skipped: bool = False
    """The run completes at once, with no chunk and no message."""
    no_message: bool = False
    """Nothing is ever persisted."""
    no_stream: bool = False
    """The chat never points at the run: its stream is 204 for its whole life."""
    no_metadata: bool = False
    """No usage, cost or model is reported."""


_Read = Callable[[Json], Json]
_LAST: Final = "last"


def _number(value: Json) -> float:
    return float(value)


def _count(value: Json) -> int:
    return int(value)


def _words(value: Json) -> str:
    return whole_characters(str(value))


def _flag(value: Json) -> bool:
    if value in (True, "true"):
        return True
    if value == "false":
        return False
    raise ValueError(value)


def _json(value: Json) -> Json:
    """A bare word that is JSON, such as a number or null, means that value."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _chunks(value: Json) -> tuple[Chunk, ...]:
    if not all(isinstance(chunk, dict) and "type" in chunk for chunk in value):
        raise ValueError("extra holds chunks, each with a type")
    return tuple(value)


def _price(value: Json) -> float | None:
    return None if value == "none" else float(value)


def _step(value: Json) -> int | str:
    return _LAST if value == _LAST else int(value)


_DIRECTIVES: Final[Mapping[str, tuple[_Read, Json]]] = {
    # name: (how its value is read, the value that the bare word stands for; None: needs one)
    "steps": (_count, None),
    "tokens": (_count, None),
    "text": (_words, None),
    "talk": (_words, None),
    "split": (_count, 1),
    "delay": (_number, None),
    "first": (_number, None),
    "tool": (_words, "bash"),
    "tools": (_count, None),
    "tool_time": (_number, None),
    "tool_error": (_words, "ENOENT: no such file"),
    "input": (_json, None),
    "output": (_json, None),
    "reasoning": (_words, "The user wants a short answer."),
    "finish": (_words, None),
    "cost": (_price, None),
    "fail": (_step, 1),
    "attempts": (_count, None),
    "hang": (_step, _LAST),
    "silence": (_number, None),
    "retry_step": (_step, 1),
    "error_chunk": (_words, "The provider is overloaded."),
    "extra": (_chunks, None),
    "commit": (_words, "success"),
    "commit_time": (_number, None),
    "tail": (_number, None),
    "sources": (_count, 2),
    "files": (_count, 1),
    "provision": (_number, None),
    "queued": (_number, None),
    "stop_time": (_number, None),
    "skipped": (_flag, True),
    "no_message": (_flag, True),
    "no_stream": (_flag, True),
    "no_metadata": (_flag, True),
}

_NAME: Final = re.compile(r"[a-z_]+")
_BARE: Final = re.compile(r"[^\s\]]+")
_DECODER: Final = json.JSONDecoder(strict=False)


def read_script(prompt: str) -> Script:
    """Read the first block of directives in `prompt`; a prompt without one gives the defaults."""
    for start in (found.start() for found in re.finditer(r"\[", prompt)):
        block = _block(prompt, start + 1)
        if block is not None:
            given, end = block
            subject = (prompt[:start] + prompt[end:]).strip()
            return _script(subject, given)
    return Script(subject=prompt.strip())


def _script(subject: str, given: dict[str, Json]) -> Script:
    if "steps" not in given and {"tool", "tools", "tool_time", "tool_error"} & given.keys():
        given["steps"] = 2
    last = given.get("steps", 1)
    steps = {name: last for name, value in given.items() if value is _LAST}
    return Script(subject=subject, **{**given, **steps})


def _block(text: str, at: int) -> tuple[dict[str, Json], int] | None:
    """Read directives from `at` to the closing bracket; None if it is no block of directives."""
    given: dict[str, Json] = {}
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if text.startswith("]", at):
            return (given, at + 1) if given else None
        pair = _pair(text, at)
        if pair is None:
            return None
        name, given[name], at = pair


def _pair(text: str, at: int) -> tuple[str, Json, int] | None:
    found = _NAME.match(text, at)
    if found is None or found[0] not in _DIRECTIVES:
        return None
    name, at = found[0], found.end()
    read, bare = _DIRECTIVES[name]
    try:
        if not text.startswith("=", at):
            return None if bare is None else (name, bare, at)
        value, at = _value(text, at + 1)
        return name, read(value), at
    except (ValueError, TypeError):
        return None


def _value(text: str, at: int) -> tuple[Json, int]:
    if text[at : at + 1] in {'"', "{", "["}:
        return _DECODER.raw_decode(text, at)
    found = _BARE.match(text, at)
    if found is None:
        raise ValueError("a directive ends after its equals sign")
    return found[0], found.end()
