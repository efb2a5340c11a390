"""Thousands of runs live at once in one worker: `python -m benchmarks.live [--runs 10000]`.

The worker is the daemon in a process of its own, with its default settings but for the places at
once; its peer is a bare reader of as many streams, with the same client and fold and no database.
In stream mode each run sends a chunk every 5 s; in poll mode nobody reads, and the bare reader
asks for each status every 5 s. When all runs are live, the process is watched for `--seconds`:
its memory, CPU and files from `/proc`, its heartbeats from their row. Then the runs end by
themselves, in the order of their starts, and the delay from each end to `completed` is taken.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sqlalchemy import URL

from benchmarks.common.database import Database, durable_server
from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured
from benchmarks.common.process import stub
from benchmarks.common.results import add_save, save, table
from benchmarks.common.rounds import interleaved
from benchmarks.live_subjects import Bare, Ours, Subject
from benchmarks.live_watch import CHUNK_EVERY_S, Watch
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url

TARGETS = {
    "missed": 0,
    "kib_a_run": 32.0,
    "longest_beat_gap_s": 15.0,
    "cpu_percent": 100.0,
}
"""The most that each figure may be; CPU must stay below."""

SHORTEST_S = 40.0
"""The least that a run lasts beyond the time that is watched, if nothing else is asked for."""


def measured(subject: Subject, *, runs: int, mode: str, seconds: float, run_s: float) -> Measured:
    """Let `runs` runs live in a subject, and sum up what was seen of it."""
    slow = ["--stream-s", str(run_s), "--chunks", str(max(8, round(run_s / CHUNK_EVERY_S)))]
    by_time = ["--by-time"] if mode == "poll" else []
    with stub(*slow, *by_time) as served, subject.running(served.base_url) as process:
        watch = Watch(process, subject, served.base_url, runs=runs, mode=mode)
        watch.settle_down()
        subject.begin()
        watch.until_live(run_s)
        watch.look(seconds)
        watch.until_over(run_s)
        figures = watch.figures()
    served.check(runs)
    figures.extras["stub_cpu_s"] = served.counts["cpu_s"]
    return figures


@contextmanager
def fresh(database: Database | None) -> Iterator[URL]:
    """An empty database with our schema: on the server, or else a file."""
    if database is not None:
        with database.fresh() as url:
            migrations.upgrade(url)
            yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        url = parse_url(f"sqlite:///{Path(folder) / 'jobs.db'}")
        migrations.upgrade(url)
        yield url


def ours(
    database: Database | None, *, runs: int, mode: str, seconds: float, run_s: float, log: Path
) -> Measured:
    """Measure the worker on a fresh database."""
    with fresh(database) as url:
        subject = Ours(url, runs=runs, mode=mode, log=log)
        return measured(subject, runs=runs, mode=mode, seconds=seconds, run_s=run_s)


def bare(*, runs: int, mode: str, seconds: float, run_s: float) -> Measured:
    """Measure the bare reader."""
    return measured(Bare(runs, mode), runs=runs, mode=mode, seconds=seconds, run_s=run_s)


def verdicts(found: dict[str, list[Measured]]) -> str:
    """What of the targets was reached, by the worst round of each."""
    lines = []
    for name, rounds in found.items():
        if name == "bare":
            continue
        for figure, most in TARGETS.items():
            worst = max(each.extras[figure] for each in rounds)
            reached = worst < most if figure == "cpu_percent" else worst <= most
            lines.append(f"{name}: {figure} {worst:g} of {most:g}: {'yes' if reached else 'NO'}")
    return "\n".join(lines)


def main() -> int:
    """Read the arguments, run, print the table and what was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long all are watched")
    parser.add_argument("--run-s", type=float, help="how long a run lasts; default: by the number")
    parser.add_argument("--mode", choices=("stream", "poll"), default="stream")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="some of: bare sqlite postgresql")
    parser.add_argument("--postgres", help="a durable server; its user may create databases")
    parser.add_argument("--log", type=Path, help="keep the workers' log here")
    add_save(parser)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the children inherit it
    if given.runs + 500 > hard:
        parser.error(f"--runs {given.runs}: a process may open {hard} files here")
    how = {
        "runs": given.runs,
        "mode": given.mode,
        "seconds": given.seconds,
        "run_s": given.run_s or given.seconds + SHORTEST_S + given.runs / 60,
    }
    with durable_server(given.postgres) as database, tempfile.TemporaryDirectory() as folder:
        facts = machine(postgresql=database.version, files=hard)
        log = given.log or Path(folder) / "worker.log"
        all_of_them: dict[str, Callable[[], Measured]] = {
            "bare": partial(bare, **how),
            "sqlite": partial(ours, None, **how, log=log),
            "postgresql": partial(ours, database, **how, log=log),
        }
        chosen = {name: all_of_them[name] for name in given.only or all_of_them}
        found: dict[str, list[Measured]] = {name: [] for name in chosen}
        for name, figure in interleaved(given.rounds, chosen):
            found[name].append(figure)
            print(name, figure.line(), flush=True)
    print(table(found))
    print(verdicts(found))
    save(given.save, f"live-{given.mode}", found, facts, run_s=how["run_s"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
