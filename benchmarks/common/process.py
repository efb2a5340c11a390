"""Children: a benchmark in a process of its own, and the stub beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.measured import Measured

ROOT = Path(__file__).parent.parent.parent
_LIMIT_S = 1800.0
_STOP_S = 30.0


class ChildFailedError(Exception):
    """A child ended without its line."""


def measure(
    module: str,
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    limit_s: float = _LIMIT_S,
) -> Measured:
    """Run `python -m module` from the project's root and read the line that it prints last.

    Raises ChildFailedError with what it said on standard error.
    """
    try:
        ended = subprocess.run(  # noqa: S603  # our own modules
            [python, "-m", module, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailedError(f"{module} did not end in {limit_s:g} s") from None
    lines = ended.stdout.splitlines()
    if ended.returncode != 0 or not lines:
        raise ChildFailedError(f"{module} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return Measured.of_line(lines[-1])


@dataclass(slots=True)
class Stub:
    """The stub server: where it listens, and after the block what it counted."""

    base_url: str
    counts: dict[str, Any] = field(default_factory=dict)

    def check(self, jobs: int) -> None:
        """Raise AssertionError unless exactly `jobs` runs were started and all was understood."""
        assert self.counts["start"] == jobs, f"{jobs} jobs, but {self.counts}"
        assert self.counts["other"] == 0, f"requests that the stub does not know: {self.counts}"


@contextmanager
def stub(*arguments: str) -> Iterator[Stub]:
    """Run the stub with these arguments in a process of its own, for the block."""
    with subprocess.Popen(  # noqa: S603  # our own module
        [sys.executable, "-m", "benchmarks.stub", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            if not ready:
                raise ChildFailedError("the stub did not start")
            served = Stub(json.loads(ready)["base_url"])
            yield served
            os.kill(process.pid, signal.SIGTERM)
            served.counts.update(json.loads(process.stdout.readline()))
            process.wait(_STOP_S)
        finally:
            process.kill()
