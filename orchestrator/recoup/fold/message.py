"""From the chunks of a stream to the message that they build.

The result equals, value for value, what `readUIMessageStream` of the `ai` package gives for
the same chunks. Where that reader would throw on a malformed chunk, this one goes on: unknown
types, missing fields and values that are no objects change nothing or what can be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from orchestrator.recoup.fold.dialect import FINISH_STEP_CLOSES_TEXT, PLAIN_PARTS
from orchestrator.recoup.fold.parts import FoldError, OpenTexts, Part, PlainPart
from orchestrator.recoup.fold.tools import Chunk, ToolPart, ToolParts, is_tool_part
from orchestrator.recoup.fold.values import (
    ABSENT,
    Json,
    identity,
    js_text,
    merge_metadata,
    optional,
    put,
    required,
    truthy,
    well_formed,
)

_STEP_START = {"type": "step-start"}
_SILENT = frozenset({"start", "finish", "message-metadata", "start-step", "finish-step", "error"})
"""The types after which the reader yields no message, unless they change its head."""

_HANDLERS: dict[str, Callable[[MessageFold], Callable[[Chunk], None]]] = {
    "text-start": attrgetter("_texts.start"),
    "text-delta": attrgetter("_texts.delta"),
    "text-end": attrgetter("_texts.end"),
    "reasoning-start": attrgetter("_reasonings.start"),
    "reasoning-delta": attrgetter("_reasonings.delta"),
    "reasoning-end": attrgetter("_reasonings.end"),
    "tool-input-start": attrgetter("_tools.input_start"),
    "tool-input-delta": attrgetter("_tools.input_delta"),
    "tool-input-available": attrgetter("_tools.input_available"),
    "tool-input-error": attrgetter("_tools.input_error"),
    "tool-approval-request": attrgetter("_tools.approval_request"),
    "tool-output-available": attrgetter("_tools.output_available"),
    "tool-output-error": attrgetter("_tools.output_error"),
    "tool-output-denied": attrgetter("_tools.output_denied"),
    **dict.fromkeys(PLAIN_PARTS, attrgetter("_plain_part")),
    "start": attrgetter("_start"),
    "finish": attrgetter("_finish"),
    "message-metadata": attrgetter("_metadata"),
    "start-step": attrgetter("_start_step"),
    "finish-step": attrgetter("_finish_step"),
    "error": attrgetter("_error"),
}
"""What folds a chunk, by its type. A table of each fold's own methods would cost kilobytes a run,
and keep a fold that is done alive until the collector of cycles finds it."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What a sequence of chunks came to.

    `message` is the last value that the package's reader yields (None if it yields none),
    `state` the same with step boundaries that came after it, `errors` the reported texts in
    order, and `fatal` the index of the chunk at which the reader stopped for good.
    """

    message: Json
    state: Json
    errors: list[str]
    fatal: int | None


def fold_message(chunks: Iterable[Json], initial: Json = None) -> Folded:
    """Fold all `chunks`, beginning with the message `initial` if there is one. Never raises."""
    fold = MessageFold(initial)
    for chunk in chunks:
        fold.feed(chunk)
    return Folded(message=fold.message, state=fold.state, errors=fold.errors, fatal=fold.fatal)


class MessageFold:
    """A message under construction, chunk by chunk.

    The time for a chunk does not depend on how many came before; text and partial tool inputs
    are joined only when `message` or `state` is read. `initial` is the message to go on with:
    one of another role than `assistant` gives only its id.
    """

    def __init__(self, initial: Json = None) -> None:
        self.count = 0
        """Chunks fed, of any kind: the index of the next one."""
        self.fatal: int | None = None
        """Index of the chunk that contradicted the earlier ones; nothing is folded after it."""
        self.finished = False
        """Whether a `finish` chunk was folded."""
        self.turn_open = False
        """Whether a `start-step` was seen without a later `finish-step`."""
        self._errors: list[str] = []
        self._head: dict[str, Json] = {"id": "", "role": "assistant"}
        self._parts: list[Part] = []
        self._yielded = False
        self._unyielded_steps = 0
        self._data: dict[tuple[str, object], PlainPart] = {}
        self._texts = OpenTexts("text", self._parts.append)
        self._reasonings = OpenTexts("reasoning", self._parts.append)
        self._tools = ToolParts(self._parts.append)
        if isinstance(initial, dict):
            self._begin_with(initial)

    @property
    def message(self) -> Json:
        """The last value that the package's reader would have yielded; None if none."""
        if not self._yielded:
            return None
        return self._value(len(self._parts) - self._unyielded_steps)

    @property
    def state(self) -> Json:
        """The message as it stands, with step boundaries that were not yielded yet."""
        return self._value(len(self._parts))

    @property
    def errors(self) -> list[str]:
        """The reported error texts in order: those of `error` chunks and the fatal one."""
        return list(self._errors)

    @property
    def message_id(self) -> str:
        """The id of the message; empty as long as the stream gave none."""
        name = self._head.get("id")
        return name if isinstance(name, str) else ""

    def feed(self, chunk: Json) -> bool:
        """Fold one chunk and count it. Returns False once the stream has contradicted itself.

        Anything that is no object with a known `type` is counted and changes nothing. Never
        raises; the fatal chunk itself changes nothing either.
        """
        self.count += 1
        if self.fatal is not None:
            return False
        kind = chunk.get("type") if isinstance(chunk, dict) else None
        if not isinstance(kind, str):
            return True
        handler = _HANDLERS.get(kind)
        if handler is None:
            if kind.startswith("data-"):
                self._data_part(kind, chunk)
            return True
        try:
            handler(self)(chunk)
        except FoldError as error:
            self.fatal = self.count - 1
            self._errors.append(str(error))
            return False
        if kind not in _SILENT:
            self._yielded = True
            self._unyielded_steps = 0
        return True

    def _yield(self) -> None:
        self._yielded = True
        self._unyielded_steps = 0

    def _value(self, length: int) -> Json:
        return {**self._head, "parts": [part.value() for part in self._parts[:length]]}

    def _begin_with(self, initial: Chunk) -> None:
        if initial.get("role") != "assistant":
            name = initial.get("id")
            self._head["id"] = "" if name is None else name
            return
        self._head = {name: value for name, value in initial.items() if name != "parts"}
        parts = initial.get("parts")
        for part in parts if isinstance(parts, list) else []:
            if is_tool_part(part):
                self._tools.adopt(ToolPart(dict(part)))
            else:
                self._append(PlainPart(dict(part) if isinstance(part, dict) else part))

    # --- the chunk types that are neither text nor tools ------------------------------------

    def _start(self, chunk: Chunk) -> None:
        name = chunk.get("messageId")
        if name is not None:
            self._head["id"] = name
            self._yield()
        self._metadata(chunk)

    def _finish(self, chunk: Chunk) -> None:
        self.finished = True
        self._metadata(chunk)

    def _metadata(self, chunk: Chunk) -> None:
        metadata = chunk.get("messageMetadata")
        if metadata is not None:
            self._head["metadata"] = merge_metadata(self._head.get("metadata"), metadata)
            self._yield()

    def _start_step(self, _chunk: Chunk) -> None:
        self.turn_open = True
        self._parts.append(PlainPart(_STEP_START))
        self._unyielded_steps += 1

    def _finish_step(self, _chunk: Chunk) -> None:
        self.turn_open = False
        if FINISH_STEP_CLOSES_TEXT:
            self._texts.forget()
            self._reasonings.forget()

    def _error(self, chunk: Chunk) -> None:
        text = required(chunk, "errorText")
        self._errors.append("" if text is ABSENT else well_formed(js_text(text)))

    def _plain_part(self, chunk: Chunk) -> None:
        needed, others = PLAIN_PARTS[chunk["type"]]
        fields: dict[str, Json] = {"type": chunk["type"]}
        for name in needed:
            put(fields, name, required(chunk, name))
        for name in others:
            put(fields, name, optional(chunk, name))
        self._append(PlainPart(fields))

    def _data_part(self, kind: str, chunk: Chunk) -> None:
        if truthy(chunk.get("transient")):
            return
        name = optional(chunk, "id")
        known = None if name is ABSENT else self._data.get((kind, identity(name)))
        if known is None:
            self._append(PlainPart(dict(chunk)))
        else:
            put(known.fields, "data", required(chunk, "data"))
        self._yield()

    def _append(self, part: PlainPart) -> None:
        self._parts.append(part)
        fields = part.fields if isinstance(part.fields, dict) else {}
        kind, name = fields.get("type"), fields.get("id")
        if isinstance(kind, str) and kind.startswith("data-") and name is not None:
            self._data.setdefault((kind, identity(name)), part)
