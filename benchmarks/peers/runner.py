"""Start a peer's benchmark: in the Python that has it, on a fresh database, beside a fresh stub."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.common.database import Database, plain
from benchmarks.common.measured import Measured
from benchmarks.common.process import measure, stub

PEERS = ("pgqueuer", "procrastinate")
LEFT_OUT = {"oban": "its package needs Python 3.12, and this project is measured on 3.11"}

SIZES = {
    "queue": (10_000, 50),
    "lifecycle": (5_000, 100),
    "enqueue-many": (100_000, 50),
    "enqueue-one": (2_000, 50),
    "enqueue-joined": (2_000, 50),
    "latency": (200, 50),
}
"""Jobs, and jobs at once, of each benchmark."""

_ASK = """
import importlib.metadata as metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Crew:
    """The peers at hand, with their versions, and why the others are left out."""

    python: str
    versions: dict[str, str]
    left_out: dict[str, str]


def crew(python: str = sys.executable) -> Crew:
    """Ask an interpreter which peers it has."""
    answer = subprocess.run(  # noqa: S603  # the interpreter that the user named
        [python, "-c", _ASK, *PEERS], capture_output=True, text=True, check=True
    )
    versions: dict[str, str] = json.loads(answer.stdout)
    missing = {name: f"not installed for {python}" for name in PEERS if name not in versions}
    return Crew(python, versions, {**missing, **LEFT_OUT})


def run_peer(
    peer: str,
    benchmark: str,
    *,
    database: Database,
    python: str,
    jobs: int | None = None,
    concurrency: int | None = None,
    latency_ms: float = 0.0,
    loop: str = "auto",
) -> Measured:
    """Run one benchmark of one peer in a process of its own; `latency_ms` is the stub's.

    Raises ChildFailedError when the peer fails, AssertionError when the stub counted other jobs.
    """
    usual_jobs, usual_concurrency = SIZES[benchmark]
    jobs, concurrency = jobs or usual_jobs, concurrency or usual_concurrency
    numbers = ["--jobs", str(jobs), "--concurrency", str(concurrency), "--loop", loop]
    module = f"benchmarks.peers.{peer}"
    with database.fresh() as url:
        arguments = [benchmark, "--url", plain(url), *numbers]
        if benchmark != "lifecycle":
            return measure(module, arguments, python=python)
        with stub("--latency-ms", str(latency_ms)) as served:
            measured = measure(module, [*arguments, "--base-url", served.base_url], python=python)
        served.check(jobs)
        measured.extras.update(latency_ms=latency_ms, stub_cpu_s=served.counts["cpu_s"])
        return measured
