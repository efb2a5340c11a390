"""Whose turn it is: how free slots are shared among queues, and the order within one queue.

Pure arithmetic over what the database says; the claim does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self


@dataclass(frozen=True, slots=True)
class Lane:
    """The queued jobs of one queue and one priority; `since` is when the first fell due."""

    queue: str
    priority: int
    since: datetime


def rank(priority: int, available_at: datetime, step_s: float) -> tuple[float, float]:
    """The place of a job in its queue; the least comes first.

    A job that waits gains one step of `priority` every `step_s` seconds, which is the same as
    having fallen due so much earlier for each step that it has from the start. So the order of
    two jobs never changes while they wait, and none waits for ever. 0 means that nothing is
    gained: the priority alone decides, then the time.
    """
    since = available_at.timestamp()
    if step_s <= 0:
        return (-priority, since)
    return (since - priority * step_s, 0.0)


@dataclass(slots=True)
class Turns:
    """Deals slots to queues by smooth weighted round robin; remembers who is owed a turn.

    One worker's memory: with several workers each is fair, and so is their sum.
    """

    _credit: dict[str, float] = field(default_factory=dict)

    def copied(self) -> Self:
        """The same memory for a deal that may not stand: nothing dealt on it is remembered here."""
        return type(self)(dict(self._credit))

    def deal(
        self, weights: Mapping[str, int], slots: int, room: Mapping[str, int]
    ) -> dict[str, int]:
        """Return how many of `slots` each queue of `weights` gets.

        `room` bounds those queues that it names. Over many deals the shares of queues that always
        have jobs are as their weights; a queue that had none saves nothing up.
        """
        self._credit = {name: self._credit.get(name, 0.0) for name in weights}
        dealt = dict.fromkeys(weights, 0)
        for _ in range(slots):
            able = [name for name in weights if dealt[name] < room.get(name, slots)]
            if not able:
                break
            for name in able:
                self._credit[name] += weights[name]
            chosen = max(able, key=self._credit.__getitem__)
            self._credit[chosen] -= sum(weights[name] for name in able)
            dealt[chosen] += 1
        return {name: number for name, number in dealt.items() if number}
