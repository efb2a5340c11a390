"""Workers that the zygote forks: quick to start, and dead where a test wants them dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Zygote:
    """Forks workers that die at a point."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, **request: Any) -> int:
        """Start a worker as `tests.crash.zygote` describes it; returns its pid."""
        return int(self._ask(request))

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a worker that has ended, -n for signal n; None while it lives."""
        code: int | None = self._ask({"pid": pid})
        return code

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the zygote, and with it every worker that still lives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=10)


def lives(pid: int) -> bool:
    """Whether a process runs or is halted; what is dead and not yet waited for does not."""
    return state_of(pid) not in ("", "Z", "X")


def halted(pid: int) -> bool:
    """Whether SIGSTOP took effect."""
    return state_of(pid) == "T"


def state_of(pid: int) -> str:
    """The letter of `/proc/<pid>/stat`; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def send(pid: int, number: int) -> None:
    """Send a signal to a worker that still lives."""
    if lives(pid):
        os.kill(pid, number)
