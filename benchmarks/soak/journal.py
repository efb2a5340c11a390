"""The harness's own log: what was done to whom and when. It explains what the jobs went through."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf


class Deed(StrEnum):
    """What the harness does to the system."""

    START = "start"
    """A worker process began."""
    KILL = "kill"
    """SIGKILL."""
    TERM = "term"
    """SIGTERM: the worker drains."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT at the end."""
    EXIT = "exit"
    """A worker process ended; `detail` is its exit code."""
    NO_DATABASE = "no database"
    """PostgreSQL was stopped, and started again at the end."""
    NO_API = "no api"
    """The API refused connections."""
    NO_KEY = "no key"
    """The key was revoked, and given back at the end."""
    EPISODE = "episode"
    """A fault of the whole API was switched on for a time; `detail` names it."""


@dataclass(slots=True)
class Act:
    """One deed. Times are seconds since 1970; `until` is infinite while it lasts."""

    deed: Deed
    at: float
    until: float
    pid: int | None = None
    detail: str = ""

    def touches(self, start: float, end: float) -> bool:
        """Tell whether any of it lies between two times."""
        return self.at <= end and self.until >= start


@dataclass(slots=True)
class Journal:
    """The deeds, oldest first."""

    acts: list[Act] = field(default_factory=list)

    def note(self, deed: Deed, *, pid: int | None = None, detail: str = "") -> Act:
        """Write down a deed of this moment."""
        now = time.time()
        act = Act(deed, now, now, pid, detail)
        self.acts.append(act)
        return act

    def begin(self, deed: Deed, *, pid: int | None = None, detail: str = "") -> Act:
        """Write down a deed that lasts until `end`."""
        act = self.note(deed, pid=pid, detail=detail)
        act.until = inf
        return act

    def end(self, act: Act) -> None:
        """Write down that a deed is over."""
        act.until = time.time()

    def of(self, *deeds: Deed) -> list[Act]:
        """Give the deeds of some kinds."""
        return [act for act in self.acts if act.deed in deeds]
