"""Tool calls: one part for each, static (`tool-NAME`) or dynamic, through all its states.

A call is looked up by its id among all parts of the message, and the first one wins, whatever
the step. Static and dynamic parts are looked up apart when a call's input comes, together when
its output comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from orchestrator.recoup.fold.dialect import RESULT_STATES, STATIC_ERROR_INPUT
from orchestrator.recoup.fold.partial_json import parse_partial
from orchestrator.recoup.fold.parts import FoldError, Part
from orchestrator.recoup.fold.values import (
    ABSENT,
    INHERITED_KEYS,
    Absent,
    Json,
    identity,
    js_text,
    optional,
    put,
    required,
    truthy,
)

Chunk: TypeAlias = dict[str, Json]
Kind: TypeAlias = Literal["static", "dynamic"]

_DYNAMIC_TYPE = "dynamic-tool"
_STATIC_PREFIX = "tool-"
_LABELS = frozenset({"toolCallId", "toolName", "title", "toolMetadata"})


class PartialInput:
    """The input of a call as far as it has come, with what its later parts must carry."""

    __slots__ = ("_read", "_value", "kind", "labels", "part", "pieces")

    def __init__(self, kind: Kind, labels: Chunk) -> None:
        self.kind = kind
        self.labels = labels
        self.pieces: list[str] = []
        self.part: ToolPart | None = None
        """The part that showed it last, if each of its later pieces must find the same one."""
        self._read = -1
        self._value: Json | Absent = ABSENT

    def value(self) -> Json | Absent:
        """Parse the text so far, at most once for each state of it."""
        if self._read != len(self.pieces):
            self._value = parse_partial("".join(self.pieces))
            self._read = len(self.pieces)
        return self._value


class ToolPart:
    """One call. Its `input` may be a `PartialInput`, which is read when a value is asked for."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Json]) -> None:
        self.fields = fields

    @property
    def kind(self) -> Kind:
        """Tell whether the part is dynamic; that never changes."""
        return "dynamic" if self.fields["type"] == _DYNAMIC_TYPE else "static"

    def value(self) -> Json:
        """Give the part as JSON that later chunks leave alone."""
        shown = dict(self.fields)
        partial = shown.get("input")
        if isinstance(partial, PartialInput):
            put(shown, "input", partial.value())
        return shown


def is_tool_part(part: Json) -> bool:
    """Tell whether a part of a given message is a tool call."""
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and (kind == _DYNAMIC_TYPE or kind.startswith(_STATIC_PREFIX))


class ToolParts:
    """The calls of one message and the inputs that are still being written."""

    def __init__(self, append: Callable[[Part], None]) -> None:
        self._append = append
        self._by_kind: dict[tuple[Kind, object], ToolPart] = {}
        self._by_id: dict[object, ToolPart] = {}
        self._partial: dict[str, PartialInput] = {}

    def adopt(self, part: ToolPart) -> None:
        """Append a call; the first one of an id is the one that later chunks find."""
        key = identity(required(part.fields, "toolCallId"))
        self._by_kind.setdefault((part.kind, key), part)
        self._by_id.setdefault(key, part)
        self._append(part)

    def find(self, chunk: Chunk) -> ToolPart:
        """Look up a call of either kind. Raises FoldError if there is none."""
        call_id = required(chunk, "toolCallId")
        part = self._by_id.get(identity(call_id))
        if part is None:
            name = js_text(call_id)
            raise FoldError(f'No tool invocation found for tool call ID "{name}".')
        return part

    # --- one method for each chunk type -----------------------------------------------------

    def input_start(self, chunk: Chunk) -> None:
        """Open a call whose input is about to be streamed."""
        kind = _kind(chunk)
        labels = {name: value for name, value in chunk.items() if name in _LABELS}
        self._partial[js_text(required(chunk, "toolCallId"))] = PartialInput(kind, labels)
        self._update(kind, chunk, "input-streaming", {})

    def input_delta(self, chunk: Chunk) -> None:
        """Lengthen a streamed input. Raises FoldError if its start was not seen."""
        if not self._lengthened(chunk):
            self._show_longer(chunk)

    def _lengthened(self, chunk: Chunk) -> bool:
        """Add a piece to an input that its part shows already: no field of that changes."""
        name, text = chunk.get("toolCallId"), chunk.get("inputTextDelta")
        if not (isinstance(name, str) and isinstance(text, str)):
            return False
        partial = self._partial.get(name)
        if partial is None or partial.part is None:
            return False
        fields = partial.part.fields
        shown = fields["state"] == "input-streaming" and fields.get("input") is partial
        if shown:
            partial.pieces.append(text)
        return shown

    def _show_longer(self, chunk: Chunk) -> None:
        """Lengthen an input and have its part show it. Raises FoldError as `input_delta`."""
        name = js_text(required(chunk, "toolCallId"))
        partial = self._partial.get(name)
        if partial is None and name in INHERITED_KEYS:
            # The package finds a function, which has no text, no tool name and no labels.
            partial = PartialInput("static", {"toolCallId": chunk["toolCallId"]})
            partial.pieces.append(js_text(ABSENT))
        if partial is None:
            raise FoldError(
                f'Received tool-input-delta for missing tool call with ID "{name}". Ensure a '
                f'"tool-input-start" chunk is sent before any "tool-input-delta" chunks.'
            )
        partial.pieces.append(js_text(required(chunk, "inputTextDelta")))
        part = self._update(partial.kind, partial.labels, "input-streaming", {"input": partial})
        key = identity(required(partial.labels, "toolCallId"))
        partial.part = part if self._by_kind.get((partial.kind, key)) is part else None

    def input_available(self, chunk: Chunk) -> None:
        """Set the whole input."""
        self._update(_kind(chunk), chunk, "input-available", {"input": required(chunk, "input")})

    def input_error(self, chunk: Chunk) -> None:
        """Fail a call whose input was no good."""
        known = self._by_id.get(identity(required(chunk, "toolCallId")))
        kind = known.kind if known is not None else _kind(chunk)
        fields = {
            ("input" if kind == "dynamic" else STATIC_ERROR_INPUT): required(chunk, "input"),
            "errorText": required(chunk, "errorText"),
        }
        untitled = {name: value for name, value in chunk.items() if name != "title"}
        self._update(kind, untitled, "output-error", fields)

    def approval_request(self, chunk: Chunk) -> None:
        """Ask for leave to run a call. Raises FoldError for an unknown one."""
        part = self.find(chunk)
        part.fields["state"] = "approval-requested"
        part.fields["approval"] = {}
        put(part.fields["approval"], "id", required(chunk, "approvalId"))

    def output_denied(self, chunk: Chunk) -> None:
        """Record that leave was refused. Raises FoldError for an unknown call."""
        self.find(chunk).fields["state"] = "output-denied"

    def output_available(self, chunk: Chunk) -> None:
        """Set the output, perhaps a preliminary one. Raises FoldError for an unknown call."""
        part = self.find(chunk)
        fields = {
            "input": required(part.fields, "input"),
            "output": required(chunk, "output"),
            "preliminary": optional(chunk, "preliminary"),
        }
        self._settle(part, chunk, "output-available", fields)

    def output_error(self, chunk: Chunk) -> None:
        """Fail a call. Raises FoldError for an unknown one."""
        part = self.find(chunk)
        fields = {
            "input": required(part.fields, "input"),
            "rawInput": required(part.fields, "rawInput"),
            "errorText": required(chunk, "errorText"),
        }
        self._settle(part, chunk, "output-error", fields)

    # --- what they share --------------------------------------------------------------------

    def _update(self, kind: Kind, chunk: Chunk, state: str, fields: dict[str, Json]) -> ToolPart:
        """Bring the part of this kind and id to `state`, appending it if there is none; give it.

        `fields` are the call's contents: what it does not name goes away.
        """
        key = identity(required(chunk, "toolCallId"))
        part = self._by_kind.get((kind, key))
        if part is None:
            part = ToolPart(_blank(kind, chunk))
            self.adopt(part)
        if kind == "dynamic":
            put(part.fields, "toolName", required(chunk, "toolName"))
        for name in ("title", "toolMetadata"):
            if chunk.get(name) is not None:
                part.fields[name] = chunk[name]
        self._settle(part, chunk, state, fields)
        return part

    @staticmethod
    def _settle(part: ToolPart, chunk: Chunk, state: str, fields: dict[str, Json]) -> None:
        part.fields["state"] = state
        for name in ("input", "output", "errorText", "preliminary"):
            put(part.fields, name, fields.get(name, ABSENT))
        if part.kind == "static":  # a dynamic part keeps what it has
            put(part.fields, "rawInput", fields.get("rawInput", ABSENT))
        if chunk.get("providerExecuted") is not None:
            part.fields["providerExecuted"] = chunk["providerExecuted"]
        if chunk.get("providerMetadata") is not None:
            owner = "result" if state in RESULT_STATES else "call"
            part.fields[f"{owner}ProviderMetadata"] = chunk["providerMetadata"]


def _kind(chunk: Chunk) -> Kind:
    return "dynamic" if truthy(chunk.get("dynamic")) else "static"


def _blank(kind: Kind, chunk: Chunk) -> dict[str, Json]:
    name = required(chunk, "toolName")
    fields = {"type": _DYNAMIC_TYPE if kind == "dynamic" else _STATIC_PREFIX + js_text(name)}
    if kind == "dynamic":
        put(fields, "toolName", name)
    put(fields, "toolCallId", required(chunk, "toolCallId"))
    return fields
