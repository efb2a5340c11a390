"""This project against the floor and the peers: `python -m benchmarks.compare BENCHMARK`.

Every run has a process, a database and a stub of its own; the rounds go through all in turn, and
medians are compared. `queue`, `lifecycle`, `enqueue-many`, `enqueue-one`, `enqueue-joined` and
`latency` are those of `benchmarks.ours` and `benchmarks.peers`. PostgreSQL runs with fsync and
synchronous_commit on, SQLite with `synchronous=FULL`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common.database import Database, durable_server, plain
from benchmarks.common.loops import add_loop
from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured
from benchmarks.common.process import measure, stub
from benchmarks.common.results import add_save, save, table
from benchmarks.common.rounds import interleaved, median_of
from benchmarks.peers.runner import SIZES, Crew, crew, run_peer

OURS = ("ours on sqlite", "ours on postgresql")


def our_run(
    benchmark: str,
    *,
    database: Database | None,
    jobs: int,
    concurrency: int,
    latency_ms: float,
    loop: str,
) -> Measured:
    """Run one benchmark of ours on a fresh database; without a server, on a fresh file."""
    numbers = ["--jobs", str(jobs), "--concurrency", str(concurrency), "--loop", loop]
    if database is None:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{Path(folder) / 'jobs.db'}"
            return _beside_the_stub(benchmark, ["--url", url, *numbers], jobs, latency_ms)
    with database.fresh() as named:
        return _beside_the_stub(benchmark, ["--url", plain(named), *numbers], jobs, latency_ms)


def _beside_the_stub(
    benchmark: str, arguments: Sequence[str], jobs: int, latency_ms: float
) -> Measured:
    if benchmark != "lifecycle":
        return measure("benchmarks.ours", [benchmark, *arguments])
    with stub("--latency-ms", str(latency_ms)) as served:
        told = [benchmark, *arguments, "--base-url", served.base_url]
        measured = measure("benchmarks.ours", told)
    served.check(jobs)
    measured.extras.update(latency_ms=latency_ms, stub_cpu_s=served.counts["cpu_s"])
    return measured


def floor_run(*, jobs: int, concurrency: int, latency_ms: float, loop: str) -> Measured:
    """Run the floor in a process of its own."""
    numbers = ["--jobs", str(jobs), "--in-flight", str(concurrency), "--loop", loop]
    return measure("benchmarks.floor", [*numbers, "--latency-ms", str(latency_ms)])


def runs_of(
    benchmark: str, latency_ms: float, given: argparse.Namespace, found: Crew, database: Database
) -> dict[str, Callable[[], Measured]]:
    """What a benchmark compares, by name."""
    usual_jobs, usual_concurrency = SIZES[benchmark]
    jobs, concurrency = given.jobs or usual_jobs, given.concurrency or usual_concurrency
    ours = partial(
        our_run,
        benchmark,
        jobs=jobs,
        concurrency=concurrency,
        latency_ms=latency_ms,
        loop=given.loop,
    )
    runs: dict[str, Callable[[], Measured]] = {
        name: partial(ours, database=where)
        for name, where in zip(OURS, (None, database), strict=True)
    }
    if benchmark == "lifecycle":
        runs["floor"] = partial(
            floor_run, jobs=jobs, concurrency=concurrency, latency_ms=latency_ms, loop=given.loop
        )
    for peer in found.versions:
        runs[peer] = partial(
            run_peer,
            peer,
            benchmark,
            database=database,
            python=found.python,
            jobs=jobs,
            concurrency=concurrency,
            latency_ms=latency_ms,
            loop=given.loop,
        )
    return runs


def ratios(measured: Mapping[str, Sequence[Measured]]) -> str:
    """How many times as many jobs a second ours does, of the medians."""
    others = [name for name in measured if name not in OURS]
    lines = [
        f"| ours ÷ | {' | '.join(others)} |",
        f"| --- | {' | '.join('---' for _ in others)} |",
    ]
    for name in OURS:
        own = median_of(measured[name])
        cells = [f"{own.per_s / median_of(measured[other]).per_s:.2f}" for other in others]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Read the arguments, run, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("benchmark", choices=SIZES)
    parser.add_argument("--peers-python", default=sys.executable, help="an interpreter with peers")
    parser.add_argument("--no-peers", action="store_true", help="only the floor, if there is one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="default: the benchmark's own number")
    parser.add_argument("--concurrency", type=int, help="default: 50, and 100 for lifecycle")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of the stub, for lifecycle")
    parser.add_argument("--postgres", help="a durable server; its user may create databases")
    add_loop(parser, default="asyncio")
    add_save(parser)
    given = parser.parse_args()
    found = Crew(sys.executable, {}, {}) if given.no_peers else crew(given.peers_python)
    for name, why in found.left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    with durable_server(given.postgres) as database:
        facts = machine(postgresql=database.version)
        runs = runs_of(given.benchmark, given.latency_ms, given, found, database)
        measured: dict[str, list[Measured]] = {name: [] for name in runs}
        for name, figure in interleaved(given.rounds, runs):
            measured[name].append(figure)
            print(name, figure.line(), flush=True)
    print(table(measured))
    print(ratios(measured))
    save(
        given.save,
        given.benchmark + (f"-{given.latency_ms:g}ms" if given.latency_ms else ""),
        measured,
        facts,
        peers=found.versions,
        left_out=found.left_out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
