"""Which chunks of a response are chunks of the run's stored stream.

Reading resumes at an index into the stored stream, so exactly those chunks may be counted. A
response can end with chunks that the server made up for it alone, and they look like real
ones. Everything here is pure; one `ResponseReader` reads one response.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from orchestrator.recoup.fold.values import Json, identity

_CallState: TypeAlias = Literal["streaming", "ready"]
_ERROR_FIELDS = {"type", "toolCallId", "errorText"}
_MADE_UP_ERROR = "Cancelled"
_TELLING = frozenset(
    {
        "tool-input-start",
        "tool-input-error",
        "tool-input-available",
        "tool-output-available",
        "tool-output-error",
        "tool-output-denied",
    }
)
"""The types that open or end a call, of which some may be made up; all others just count."""


@dataclass(frozen=True, slots=True)
class Remainder:
    """What was still held back when the response ended. None of it is ever counted.

    `held` are the tool ends that the server may have made up. While the run goes on they are
    to be dropped: real ones come again, since the next request starts before them. Once its
    status is terminal and nothing more can be had, they are to be folded.
    `lone_finish` says that the response held nothing but a `finish` that is not the run's:
    there is nothing to resume now, and the run's status decides.
    """

    held: tuple[Json, ...] = ()
    lone_finish: bool = False


class ResponseReader:
    """Sorts the chunks of one response into those that count and those that may not.

    Arguments: `own_run`, whether the response names the followed run (`x-workflow-run-id`);
    `turn_open`, whether the fold stands inside a step; `finished`, whether it has folded a
    `finish` already. Each is what holds before the first chunk of this response.

    Nothing is lost by holding too much back, since an uncounted chunk is sent again, so shapes
    that leave doubt are held. What is held is bounded by the calls opened in this response.
    """

    def __init__(self, *, own_run: bool, turn_open: bool, finished: bool = False) -> None:
        self._finish_is_real = own_run and not turn_open and not finished
        self._at_start = True
        self._lone_finish: list[Json] = []
        self._held: list[Json] = []
        self._calls: dict[object, _CallState] = {}

    def feed(self, chunks: Iterable[Json]) -> list[Json]:
        """Take the next chunks; give those that are now surely stored ones, to fold and count."""
        counted: list[Json] = []
        for chunk in chunks:
            kind = _type(chunk)
            if self._at_start:
                self._at_start = False
                if kind == "finish" and not self._finish_is_real:
                    self._lone_finish.append(chunk)
                    continue
            telling = kind in _TELLING
            if telling and self._may_be_made_up(kind, chunk):
                self._held.append(chunk)
            else:
                if self._held or self._lone_finish:
                    counted += [*self._lone_finish, *self._held]
                    self._lone_finish.clear()
                    self._held.clear()
                counted.append(chunk)
            if telling:
                self._observe(kind, chunk)
        return counted

    def close(self) -> Remainder:
        """Take the end of the body, clean or broken: what is held back now does not count."""
        return Remainder(held=tuple(self._held), lone_finish=bool(self._lone_finish))

    def _may_be_made_up(self, kind: str, chunk: Json) -> bool:
        """Tell whether `chunk` has the shape of an end that the server gives to an open call."""
        if kind not in ("tool-input-available", "tool-output-error"):
            return False
        call = self._calls.get(identity(chunk.get("toolCallId")))
        if kind == "tool-input-available":
            return call == "streaming" and chunk.get("input") == {}
        exact = chunk.keys() == _ERROR_FIELDS and chunk["errorText"] == _MADE_UP_ERROR
        return call is not None and exact

    def _observe(self, kind: str, chunk: Json) -> None:
        call = identity(chunk.get("toolCallId"))
        match kind:
            case "tool-input-start" | "tool-input-error":
                # After a bad input the server may still make up both, since none was available.
                self._calls[call] = "streaming"
            case "tool-input-available":
                self._calls[call] = "ready"
            case "tool-output-available" if chunk.get("preliminary"):
                return
            case "tool-output-available" | "tool-output-error" | "tool-output-denied":
                self._calls.pop(call, None)


def _type(chunk: Json) -> str:
    kind = chunk.get("type") if isinstance(chunk, dict) else None
    return kind if isinstance(kind, str) else ""
