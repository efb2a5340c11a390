"""How many submissions may begin now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0


class Pace:
    """Bounds the submissions of one worker in any minute; `per_minute` None means no bound."""

    def __init__(self, *, per_minute: int | None, now: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._now = now
        self._begun: deque[float] = deque()

    def room(self, wanted: int) -> int:
        """Return how many of `wanted` submissions may begin now."""
        if self._per_minute is None:
            return wanted
        while self._begun and self._now() - self._begun[0] >= WINDOW_S:
            self._begun.popleft()
        return max(0, min(wanted, self._per_minute - len(self._begun)))

    def begin(self) -> None:
        """Take note of a submission that begins."""
        if self._per_minute is not None:
            self._begun.append(self._now())
