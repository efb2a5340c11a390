"""Run all benchmarks, one after the other: `python -m benchmarks --peers-python peers/bin/python`.

Each keeps its figures in `benchmarks/results` (`--save`). `--quick` shows in some minutes that
all of them run; its figures say nothing. The soak has a command of its own.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from benchmarks.common.process import ROOT


def plan(given: argparse.Namespace) -> list[list[str]]:
    """The commands, without the interpreter."""
    peers = ["--peers-python", given.peers_python, "--save"]
    fold = ["--node-modules", given.node_modules] if given.node_modules else []
    if given.quick:
        few = ["--rounds", "1", "--jobs", "200"]
        names = ("queue", "lifecycle", "enqueue-many", "enqueue-one", "enqueue-joined", "latency")
        return [
            *(["compare", name, *few, *peers[:2]] for name in names),
            ["history", "--rows", "0", "20000", "--dead", "2000", "--rounds", "5"],
            ["idle", "--seconds", "5", "--jobs", "5"],
            ["polling", "--runs", "5"],
            ["live", "--runs", "50", "--seconds", "5", "--run-s", "15"],
            ["fleet", "--workers", "1", "5", "--cost-rounds", "3", "--lasts-s", "10"],
        ]
    return [
        ["compare", "lifecycle", "--rounds", "3", *peers],
        ["compare", "lifecycle", "--rounds", "3", "--latency-ms", "200", *peers],
        ["compare", "queue", "--rounds", "9", *peers],
        ["compare", "enqueue-many", "--rounds", "3", *peers],
        ["compare", "enqueue-one", "--rounds", "3", *peers],
        ["compare", "enqueue-joined", "--rounds", "3", *peers],
        ["compare", "latency", "--rounds", "3", *peers],
        ["fold", *fold, "--save"],
        ["history", "--save"],
        ["idle", "--save"],
        ["polling", "--save"],
        ["live", "--save"],
        ["fleet", "--save"],
    ]


def main() -> int:
    """Run the plan; a benchmark that fails is named at the end, and the others still run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peers-python", default=sys.executable, help="an interpreter with peers")
    parser.add_argument("--node-modules", help="where the package `ai` is, for the fold")
    parser.add_argument("--quick", action="store_true", help="only show that all of them run")
    failed = []
    for module, *arguments in plan(parser.parse_args()):
        print("##", shlex.join([module, *arguments]), flush=True)
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:  # noqa: S603  # our own
            failed.append(module)
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
