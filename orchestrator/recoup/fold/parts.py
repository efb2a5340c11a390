"""The parts of a message while it is folded: plain ones, and text that still grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestrator.recoup.fold.values import (
    INHERITED_KEYS,
    Json,
    js_text,
    optional,
    put,
    required,
    well_formed,
)


class FoldError(Exception):
    """A chunk that contradicts what came before it: the `ai` package stops there for good."""


class Part(Protocol):
    """One entry of a message's `parts`."""

    def value(self) -> Json:
        """Give the part as JSON that later chunks leave alone."""
        ...


class PlainPart:
    """A part that is what its fields say."""

    __slots__ = ("fields",)

    def __init__(self, fields: Json) -> None:
        self.fields = fields

    def value(self) -> Json:
        """Give the part as JSON that later chunks leave alone."""
        return dict(self.fields) if isinstance(self.fields, dict) else self.fields


class TextPart:
    """Text or reasoning; its deltas are joined when somebody asks."""

    __slots__ = ("deltas", "fields")

    def __init__(self, kind: str) -> None:
        self.deltas: list[str] = []
        self.fields: dict[str, Json] = {"type": kind, "text": "", "state": "streaming"}

    def value(self) -> Json:
        """Give the part as JSON that later chunks leave alone."""
        if len(self.deltas) > 1:
            self.deltas[:] = ["".join(self.deltas)]
        return {**self.fields, "text": well_formed("".join(self.deltas))}


class OpenTexts:
    """The parts of one kind, text or reasoning, that can still grow, by the id in the stream."""

    def __init__(self, kind: str, append: Callable[[Part], None]) -> None:
        self._kind = kind
        self._append = append
        self._open: dict[str, TextPart] = {}

    def start(self, chunk: dict[str, Json]) -> None:
        """Append an empty part; one that was open under the id stays as it is for ever."""
        part = TextPart(self._kind)
        put(part.fields, "providerMetadata", optional(chunk, "providerMetadata"))
        self._open[js_text(required(chunk, "id"))] = part
        self._append(part)

    def delta(self, chunk: dict[str, Json]) -> None:
        """Lengthen the open part. Raises FoldError if none is open under the id."""
        name, text = chunk.get("id"), chunk.get("delta")
        part = self._open.get(name) if isinstance(name, str) else None
        if part is None or not isinstance(text, str):
            part, text = self._find(chunk), js_text(required(chunk, "delta"))
        part.deltas.append(text)
        if "providerMetadata" in chunk:
            self._describe(part, chunk)

    def end(self, chunk: dict[str, Json]) -> None:
        """Close the open part. Raises FoldError if none is open under the id."""
        part = self._find(chunk)
        part.fields["state"] = "done"
        self._describe(part, chunk)
        name = js_text(required(chunk, "id"))
        if name != "__proto__":  # deleting does not reach an object's prototype
            self._open.pop(name, None)

    def forget(self) -> None:
        """Leave all open parts as they are; their ids mean nothing any more."""
        self._open.clear()

    def _find(self, chunk: dict[str, Json]) -> TextPart:
        name = js_text(required(chunk, "id"))
        part = self._open.get(name)
        if part is None and name in INHERITED_KEYS:
            return TextPart(self._kind)  # the package writes to a function, where none looks
        if part is None:
            kind, seen = self._kind, chunk["type"]
            raise FoldError(
                f'Received {seen} for missing {kind} part with ID "{name}". '
                f'Ensure a "{kind}-start" chunk is sent before any "{seen}" chunks.'
            )
        return part

    @staticmethod
    def _describe(part: TextPart, chunk: dict[str, Json]) -> None:
        metadata = chunk.get("providerMetadata")
        if metadata is not None:
            part.fields["providerMetadata"] = metadata
