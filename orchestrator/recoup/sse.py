"""From the bytes of an event stream to the chunks in it.

The rules are those of server-sent events as the `ai` package reads them. Lines are split as
bytes, at LF, CR and CRLF only: the server's JSON holds U+2028 and its like unescaped, where
Python's own line splitting would cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.recoup.fold.values import Json, parse_json

_BOM = b"\xef\xbb\xbf"
_DATA = "data"
_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class BadEvent:
    """An event whose data is no JSON. It is counted like any chunk, and folded by no rule."""

    data: str
    reason: str


class EventParser:
    """Takes the body of one response, in pieces of any size, and gives its chunks.

    The cost is linear in the bytes, however they are cut: pieces of an unfinished line are
    kept apart until its end comes. Nothing here raises; a broken body gives `BadEvent` values.
    """

    def __init__(self) -> None:
        self.done = False
        """Whether `[DONE]` was seen. Chunks may follow it all the same."""
        self._at_start = True
        self._carriage_return = False
        self._line: list[bytes] = []
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Json | BadEvent]:
        """Take the next bytes; give the chunks that they complete, in order."""
        if not data:
            return []
        if self._carriage_return or b"\r" in data:
            data = self._without_returns(data)
        first, ended, rest = data.rpartition(b"\n")
        if not ended:
            self._line.append(rest)
            return []
        lines = b"".join((*self._line, first)) if self._line else first
        self._line = [rest] if rest else []
        if self._at_start:
            self._at_start = False
            lines = lines.removeprefix(_BOM)
        # A broken character ends with its line at the latest: all lines are decoded at once.
        return self._events(lines.decode("utf-8", "replace").split("\n"))

    def close(self) -> list[Json | BadEvent]:
        """Take the end of the body: an event that is still open is thrown away.

        That holds also where the last byte is a CR that could have ended it: the package waits
        for the other half of a CRLF, and so never delivers that event. Gives an empty list.
        """
        self._carriage_return = False
        self._line.clear()
        self._data.clear()
        return []

    def _without_returns(self, data: bytes) -> bytes:
        """Give `data` with LF for every end of a line, but for a CR that may not be a whole one."""
        if self._carriage_return:
            data = b"\r" + data
        # A CR at the end may be the first half of a CRLF: the next byte tells.
        self._carriage_return = data.endswith(b"\r")
        if self._carriage_return:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _events(self, lines: list[str]) -> list[Json | BadEvent]:
        events: list[Json | BadEvent] = []
        data = self._data
        for line in lines:
            if line[:6] == "data: ":
                data.append(line[6:])
            elif not line:
                if data:
                    self._deliver(events)
            elif line[:5] == "data:":
                data.append(line[5:])
            elif line == _DATA:
                data.append("")
        return events

    def _deliver(self, events: list[Json | BadEvent]) -> None:
        text = self._data[0] if len(self._data) == 1 else "\n".join(self._data)
        self._data.clear()
        if text == _DONE:
            self.done = True
            return
        try:
            events.append(parse_json(text))
        except ValueError as error:
            events.append(BadEvent(data=text, reason=str(error)))
