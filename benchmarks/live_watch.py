"""Looks at a process while thousands of runs are live in it; see `benchmarks.live`."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.measured import Measured, quantile
from benchmarks.live_subjects import Subject

CHUNK_EVERY_S = 5.0
"""How often the stub sends a chunk of each stream."""

LOOK_EVERY_S = 0.5
SETTLED_S = 3.0
"""How long a process that has just begun is left alone before its memory is taken."""

LATE_S = 120.0
"""How much longer than its run a job may take to be known as completed."""

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024


class NotLiveError(Exception):
    """The runs did not come to be live at once, so that there is nothing to watch."""


@dataclass(slots=True)
class Watch:
    """One process, from before its first run to after its last."""

    process: subprocess.Popen[str]
    subject: Subject
    base_url: str
    runs: int
    mode: str
    _began: float = 0.0
    _idle_kib: float = 0.0
    _peak_kib: float = 0.0
    _beats: list[float] = field(default_factory=list)
    _seen: dict[str, float] = field(default_factory=dict)

    def settle_down(self) -> None:
        """Wait until the process is idle, and take its memory with no run."""
        bound = time.monotonic() + LATE_S
        while self.subject.name == "ours" and self.subject.last_beat() is None:
            self._pause(bound)
        time.sleep(SETTLED_S)
        self._idle_kib = self._rss_kib()
        self._began = time.monotonic()

    def until_live(self, run_s: float) -> None:
        """Wait until all runs are live. Raises NotLiveError if the first ends before."""
        bound = self._began + run_s
        while not self._all_live():
            self._pause(bound)
        self._seen["ramp_s"] = time.monotonic() - self._began

    def look(self, seconds: float) -> None:
        """Watch the process for some seconds, or until the first run has ended."""
        began, cpu, fetched = time.monotonic(), self._cpu_s(), self._counts()
        while time.monotonic() < began + seconds and self._all_live():
            self._pause(began + seconds + LATE_S)
        took = time.monotonic() - began
        # The stub's answer waits behind its streams; what it took is not the process's.
        asked = self._counts()["status"] - fetched["status"]
        self._seen |= {
            "watched_s": round(took, 1),
            "cpu_percent": round((self._cpu_s() - cpu) / took * 100, 1),
            "status_per_s": round(asked / took, 1),
            "files": len(list((self._proc / "fd").iterdir())),
            "kib_a_run": round((self._peak_kib - self._idle_kib) / self.runs, 2),
            "idle_mib": round(self._idle_kib / 1024, 1),
        }

    def until_over(self, run_s: float) -> None:
        """Wait until all runs are known to have completed, or it is too late for that."""
        bound = time.monotonic() + run_s + LATE_S
        while len(self.subject.known_ends()) < self.runs and time.monotonic() < bound:
            self._pause(bound + LATE_S)
        self._seen["took_s"] = time.monotonic() - self._began

    def figures(self) -> Measured:
        """All that was seen."""
        ended, known = self._fetched("/ends"), self.subject.known_ends()
        late = [known[number] - ended[number] for number in known] or [0.0]
        gaps = [after - before for before, after in zip(self._beats, self._beats[1:], strict=False)]
        extras = {
            **{name: value for name, value in self._seen.items() if name != "took_s"},
            "missed": self.runs - len(known),
            "longest_beat_gap_s": round(max(gaps, default=0.0), 2),
            "delay_p50_s": round(quantile(late, 0.5), 3),
            "delay_p95_s": round(quantile(late, 0.95), 3),
            "delay_max_s": round(max(late), 3),
        }
        return Measured("live", self.runs, self._seen["took_s"], self._cpu_s(), extras)

    # --- one look -----------------------------------------------------------------------------

    def _pause(self, bound: float) -> None:
        if time.monotonic() > bound:
            raise NotLiveError(f"not {self.runs} live: {self._counts()}, {self.subject.live()}")
        if self.process.poll() is not None:
            raise NotLiveError(f"the process ended with {self.process.returncode}")
        self._peak_kib = max(self._peak_kib, self._rss_kib())
        beat = self.subject.last_beat()
        if beat is not None and beat not in self._beats[-1:]:
            self._beats.append(beat)
        time.sleep(LOOK_EVERY_S)

    def _all_live(self) -> bool:
        live = self.subject.live()
        if live is not None and live < self.runs:
            return False
        counts = self._counts()
        return int(counts["streams_open" if self.mode == "stream" else "start"]) >= self.runs

    def _counts(self) -> Any:
        return self._fetched("/counts")

    def _fetched(self, path: str) -> Any:
        with urllib.request.urlopen(self.base_url + path, timeout=LATE_S) as answer:  # noqa: S310  # our own stub
            return json.load(answer)

    def _cpu_s(self) -> float:
        # The second field, the name, may hold blanks.
        fields = (self._proc / "stat").read_text("ascii").rpartition(")")[2]
        return sum(int(ticks) for ticks in fields.split()[11:13]) * _TICK_S

    def _rss_kib(self) -> float:
        return int((self._proc / "statm").read_text("ascii").split()[1]) * _PAGE_KIB

    @property
    def _proc(self) -> Path:
        return Path("/proc") / str(self.process.pid)
