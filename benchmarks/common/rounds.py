"""Rounds in turn, so that what the machine does meanwhile hits all alike, and their medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common.measured import Measured


def interleaved(
    rounds: int, runs: Mapping[str, Callable[[], Measured]]
) -> Iterator[tuple[str, Measured]]:
    """Run each of `runs` once a round; every other round goes the other way about.

    What runs second finds warm caches and a database that still writes: turning the order about
    gives each a share of both places.
    """
    names = list(runs)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield name, runs[name]()


def median_of(measured: Sequence[Measured]) -> Measured:
    """The median of each number over the rounds; of other extras the last round's value."""
    last = measured[-1]
    return Measured(
        name=last.name,
        jobs=last.jobs,
        seconds=statistics.median(each.seconds for each in measured),
        cpu_s=statistics.median(each.cpu_s for each in measured),
        extras={name: _median(name, measured) for name in last.extras},
    )


def spread(measured: Sequence[Measured]) -> tuple[float, float]:
    """The slowest and the quickest round, in jobs a second."""
    rates = [each.per_s for each in measured]
    return min(rates), max(rates)


def ratio(ours: Measured, theirs: Measured) -> float:
    """How many times as many jobs a second ours does."""
    return ours.per_s / theirs.per_s


def _median(name: str, measured: Sequence[Measured]) -> Any:
    values = [each.extras.get(name) for each in measured]
    numbers = [
        value for value in values if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return statistics.median(numbers) if len(numbers) == len(values) else values[-1]
