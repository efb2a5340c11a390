"""Looks at the database while the soak runs: progress, and whether queue limits hold."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import anyio

from benchmarks.soak.database import Books
from benchmarks.soak.plan import LIMITS

LOOK_EVERY_S = 0.5

_COUNTS = "SELECT queue, state, count(*) AS number FROM jobs GROUP BY queue, state"
_LIVE = "SELECT id FROM jobs WHERE queue = %s AND state IN ('submitting', 'running') ORDER BY id"
_AT_REST = frozenset({"completed", "failed", "cancelled", "in_doubt"})
_CLAIMED = frozenset({"submitting", "running"})


@dataclass(frozen=True, slots=True)
class Excess:
    """A queue that was seen with more live jobs than its limit."""

    at: float
    queue: str
    number: int
    ids: tuple[int, ...]


@dataclass(slots=True)
class Watch:
    """What was seen. `most_live` is the highest number of live jobs of each queue."""

    books: Books
    states: Counter[str] = field(default_factory=Counter)
    most_live: Counter[str] = field(default_factory=Counter)
    excesses: list[Excess] = field(default_factory=list)
    looks: int = 0
    blind: int = 0

    @property
    def at_rest(self) -> int:
        """How many jobs are settled or in doubt."""
        return sum(number for state, number in self.states.items() if state in _AT_REST)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Count the jobs once; a database that is away shows nothing."""
        rows = await self.books.ask(_COUNTS)
        if rows is None:
            self.blind += 1
            return
        self.looks += 1
        states: Counter[str] = Counter()
        live: Counter[str] = Counter()
        for row in rows:
            states[row["state"]] += row["number"]
            if row["state"] in _CLAIMED:
                live[row["queue"]] += row["number"]
        self.states = states
        for queue, number in live.items():
            self.most_live[queue] = max(self.most_live[queue], number)
            if number > LIMITS.get(queue, number):
                ids = await self.books.ask(_LIVE, [queue]) or []
                seen = tuple(row["id"] for row in ids)
                self.excesses.append(Excess(time.time(), queue, number, seen))
