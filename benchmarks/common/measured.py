"""One figure: what was measured, over how much work, and what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one run of one benchmark; every script prints it as one JSON line.

    `seconds` are of the wall clock and `cpu_s` of the measured process alone, the database's and
    the stub's left out. `extras` holds what only this benchmark knows.
    """

    name: str
    jobs: int
    seconds: float
    cpu_s: float
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU for each job."""
        return self.cpu_s * 1000 / self.jobs

    def as_json(self) -> dict[str, Any]:
        """All of it, with what a reader would work out first."""
        return {**asdict(self), "per_s": round(self.per_s, 2), "cpu_ms": round(self.cpu_ms, 4)}

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_json())

    @classmethod
    def of_line(cls, line: str) -> Self:
        """Read back what `line` wrote. Raises ValueError or KeyError for anything else."""
        read = json.loads(line)
        names = ("name", "jobs", "seconds", "cpu_s", "extras")
        return cls(**{name: read[name] for name in names})


class Stopwatch:
    """Takes the time from its making on, on the wall and of this process's CPU."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds, and seconds of CPU, so far."""
        return time.perf_counter() - self._began, time.process_time() - self._cpu


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -int(-share * len(ordered) // 1))
    return ordered[min(rank, len(ordered)) - 1]


def delays(name: str, seconds: Sequence[float], cpu_s: float, **extras: Any) -> Measured:
    """Sum up single delays: median, 95th percentile and the longest, in milliseconds."""
    shown = {
        f"{label}_ms": round(quantile(seconds, share) * 1000, 3)
        for label, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    }
    return Measured(name, len(seconds), sum(seconds), cpu_s, {**shown, **extras})
