"""What happened in a simulation, in order: the evidence of a failing seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any


class Trace:
    """Takes note of each event with its virtual time and the process that it happened in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._rows: list[tuple[float, str, str, dict[str, Any]]] = []

    def add(self, who: str, what: str, **detail: Any) -> None:
        """Take note of an event."""
        self._rows.append((self._clock(), who, what, detail))

    def count(self, what: str) -> None:
        """Count a fault of this kind."""
        self.counts[what] += 1

    def lines(self, last: int | None = None) -> Iterator[str]:
        """The events as text; only the `last` of them if that is given."""
        for when, who, what, detail in self._rows[-last:] if last else self._rows:
            words = " ".join(f"{name}={_short(value)}" for name, value in detail.items())
            yield f"{when:10.3f} {who:<8} {what} {words}".rstrip()

    def digest(self) -> str:
        """A hash of everything that happened."""
        text = "\n".join(repr(row) for row in self._rows)
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 90 else f"{text[:89]}…"
