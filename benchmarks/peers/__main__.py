"""Measure the peers: `python -m benchmarks.peers --peers-python peers/bin/python [BENCHMARK ...]`.

Each run has a process, a database and a stub of its own. The rounds go through all peers in turn;
medians are shown at the end. Without `--postgres` a server of the test package is started, with
fsync and synchronous_commit on.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

from benchmarks.common.database import Database, durable_server
from benchmarks.common.loops import add_loop
from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured
from benchmarks.common.results import add_save, save, table
from benchmarks.common.rounds import interleaved
from benchmarks.peers.runner import PEERS, SIZES, Crew, crew, run_peer


def arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=", ".join(SIZES))
    parser.add_argument("--peers-python", default=sys.executable, help="an interpreter with peers")
    parser.add_argument("--peer", action="append", choices=PEERS, help="default: all installed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, help="of each benchmark; default: its own number")
    parser.add_argument("--concurrency", type=int, help="default: 50, and 100 for lifecycle")
    parser.add_argument(
        "--latency-ms", type=float, nargs="+", default=[0.0], help="of the stub, for lifecycle"
    )
    parser.add_argument("--postgres", help="a durable server; its user may create databases")
    add_loop(parser)
    add_save(parser)
    return parser


def peers(given: argparse.Namespace, found: Crew, database: Database) -> dict[str, list[Measured]]:
    """Run all rounds; print each figure as it comes."""
    runs = {
        key: partial(
            run_peer,
            peer,
            benchmark,
            database=database,
            python=found.python,
            jobs=given.jobs,
            concurrency=given.concurrency,
            latency_ms=latency_ms,
            loop=given.loop,
        )
        for benchmark in given.benchmarks or SIZES
        for latency_ms in (given.latency_ms if benchmark == "lifecycle" else [0.0])
        for peer in given.peer or found.versions
        for key in [f"{benchmark} {peer}" + (f" {latency_ms:g} ms" if latency_ms else "")]
    }
    measured: dict[str, list[Measured]] = {key: [] for key in runs}
    for key, figure in interleaved(given.rounds, runs):
        measured[key].append(figure)
        print(figure.line(), flush=True)
    return measured


def main() -> int:
    """Read the arguments, run, print the table."""
    parser = arguments()
    given = parser.parse_args()
    if unknown := set(given.benchmarks) - set(SIZES):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(SIZES)}")
    found = crew(given.peers_python)
    for name, why in found.left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    if not found.versions:
        parser.error("no peer is installed: see benchmarks/peers/requirements.txt")
    with durable_server(given.postgres) as database:
        facts = machine(postgresql=database.version)
        measured = peers(given, found, database)
    print(table(measured))
    save(given.save, "peers", measured, facts, peers=found.versions, left_out=found.left_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
