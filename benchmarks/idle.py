"""What a worker without work costs, and how soon it has a job's request out.

`python -m benchmarks.idle` runs `orchestrator worker` with the default settings on each database:
its CPU and its queries while nothing is due, then the delay from `enqueue` in another process to
the first byte of the POST. The delay within one process is `latency` of `benchmarks.ours`. Delays
are held against one fsync, timed in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy import URL, text

from benchmarks.common.database import Database, durable_server, plain
from benchmarks.common.life import prompt
from benchmarks.common.machine import fsync_s, machine
from benchmarks.common.measured import Measured, delays
from benchmarks.common.process import ROOT, ChildFailedError, measure, stub
from benchmarks.common.results import add_save, save, table
from benchmarks.common.rounds import interleaved, median_of
from orchestrator import Orchestrator
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url, sync_engine

_LIMIT_S = 60.0
_LOOK_S = 0.05
_SETTLING_S = 5.0
_SUBMIT = b"POST /api/chat/runs "

MOST_CPU_PERCENT = 0.5
FSYNCS, BEYOND_MS = 3, 10.0
MOST_MS = {"sqlite": 250.0, "postgresql": 30.0}
"""The 95th percentile of the delay from another process: by the file's counter, by NOTIFY."""


# --- the worker -------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """A worker's process; after the block, when it asked its database."""

    process: subprocess.Popen[str]
    statements: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """The CPU of all its threads so far, as the system counts it."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2]
        user, system = after_name.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker(url: URL, base_url: str) -> Iterator[Child]:
    """Run `orchestrator worker` with the default settings until the end of the block."""
    told = {
        "RECOUP_API_KEY": "recoup_sk_benchmark",
        "ORCHESTRATOR_API__BASE_URL": base_url,
        "ORCHESTRATOR_DATABASE__URL": url.render_as_string(hide_password=False),
    }
    kept = {name: value for name, value in os.environ.items() if "ORCHESTRATOR" not in name}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.idle_worker", "--quiet", "worker"],
        cwd=ROOT,
        env=kept | told,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        child = Child(process)
        try:
            _wait_until_it_beats(url, process)
            yield child
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=_LIMIT_S)
            asked = json.loads(said.splitlines()[-1])
            child.statements, child.transactions = asked["statements"], asked["transactions"]
        finally:
            process.kill()


def _wait_until_it_beats(url: URL, process: subprocess.Popen[str]) -> None:
    engine = sync_engine(url)
    until = time.monotonic() + _LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        with engine.connect() as connection:
            if connection.execute(text("SELECT count(*) FROM workers")).scalar_one():
                return
        time.sleep(_LOOK_S)
    raise ChildFailedError("the worker did not start")


def idle(url: URL, seconds: float) -> Measured:
    """What a worker does and costs while nothing is due."""
    with worker(url, "http://127.0.0.1:9") as child:
        time.sleep(_SETTLING_S)
        began, before = time.monotonic(), child.cpu_s()
        time.sleep(seconds)
        ended, cpu_s = time.monotonic(), child.cpu_s() - before
    took = ended - began

    def a_minute(times: list[float]) -> float:
        return round(sum(began <= at < ended for at in times) * 60 / took, 1)

    extras = {
        "cpu_percent": round(100 * cpu_s / took, 3),
        "statements_a_minute": a_minute(child.statements),
        "transactions_a_minute": a_minute(child.transactions),
    }
    return Measured(f"idle on {url.get_backend_name()}", 1, took, cpu_s, extras)


# --- delays -----------------------------------------------------------------------------------


class Front:
    """Stands before the stub, and notes when the first byte of a submission arrives."""

    def __init__(self, behind: str) -> None:
        host, _, port = behind.rpartition("/")[2].rpartition(":")
        self._host, self._port = host, int(port)
        self.arrived: asyncio.Queue[float] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, both ways."""
        first = await reader.read(65536)
        if first.startswith(_SUBMIT):
            self.arrived.put_nowait(time.perf_counter())
        with suppress(ConnectionError):
            back, forth = await asyncio.open_connection(self._host, self._port)
            forth.write(first)
            await asyncio.gather(_pass_on(reader, forth), _pass_on(back, writer))
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def front(behind: str) -> AsyncIterator[tuple[Front, str]]:
    """Open a front before the server at `behind`; gives it and its URL."""
    standing = Front(behind)
    async with await asyncio.start_server(standing.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield standing, f"http://127.0.0.1:{port}"


async def _from_here(url: URL, jobs: int, behind: str) -> Measured:
    """Enqueue in this process, one job at a time, for an idle worker in another."""
    pauses = random.Random(1)  # noqa: S311 - the same waits each time
    taken = []
    async with front(behind) as (standing, base_url):
        running = worker(url, base_url)
        child = await asyncio.to_thread(running.__enter__)
        async with Orchestrator(url.render_as_string(hide_password=False)) as orc:
            for number in range(jobs):
                # The job may come at any moment between two looks of the worker's.
                await asyncio.sleep(pauses.uniform(0.2, 1.2))
                began = time.perf_counter()
                job = await orc.enqueue(prompt(number))
                async with asyncio.timeout(_LIMIT_S):
                    taken.append(await standing.arrived.get() - began)
                await job.wait(timeout=_LIMIT_S)
        cpu_s = child.cpu_s()
        await asyncio.to_thread(running.__exit__, None, None, None)
    return delays(f"another process, {url.get_backend_name()}", taken, cpu_s)


def from_another_process(url: URL, jobs: int) -> Measured:
    """The delay from `enqueue` to the first byte, from another process than the worker's."""
    with stub() as served:
        measured = asyncio.run(_from_here(url, jobs, served.base_url))
    served.check(jobs)
    return measured


def in_one_process(url: URL, jobs: int) -> Measured:
    """The same within the worker's process."""
    return measure("benchmarks.ours", ["latency", "--url", _text(url), "--jobs", str(jobs)])


def _text(url: URL) -> str:
    return plain(url) if url.get_backend_name() == "postgresql" else str(url)


# --- together ---------------------------------------------------------------------------------


def on_fresh(act: Callable[[URL], Measured], database: Database | None) -> Measured:
    """Act on a fresh, migrated database of the server, or without one on a fresh file."""
    if database is None:
        with tempfile.TemporaryDirectory() as folder:
            return _with_fsync(act, parse_url(f"sqlite:///{Path(folder) / 'jobs.db'}"))
    with database.fresh() as url:
        return _with_fsync(act, url)


def _with_fsync(act: Callable[[URL], Measured], url: URL) -> Measured:
    migrations.upgrade(url)
    before = fsync_s()
    measured = act(url)
    measured.extras["fsync_ms"] = round(statistics.mean((before, fsync_s())) * 1000, 3)
    return measured


def verdict(name: str, measured: Measured) -> str:
    """One row: what was to be reached, and whether it was."""
    extras = measured.extras
    if "cpu_percent" in extras:
        figure, limit, unit = extras["cpu_percent"], MOST_CPU_PERCENT, "% of a core"
    else:
        figure, unit = extras["p95_ms"], "ms at the 95th percentile"
        limit = FSYNCS * extras["fsync_ms"] + BEYOND_MS
        if name.startswith("another"):
            limit = MOST_MS[name.rpartition(" ")[2]]
    met = "yes" if figure <= limit else "no"
    return f"| {name} | {figure:g} {unit} | {limit:.3g} | {met} |"


def main() -> int:
    """Read the arguments, run, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of idleness")
    parser.add_argument("--jobs", type=int, default=60, help="for each kind of delay")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--postgres", help="a durable server; its user may create databases")
    add_save(parser)
    given = parser.parse_args()
    with durable_server(given.postgres) as database:
        facts = machine(postgresql=database.version)
        runs: dict[str, Callable[[], Measured]] = {}
        for where, server in (("sqlite", None), ("postgresql", database)):
            acts: dict[str, Callable[[URL], Measured]] = {
                f"idle on {where}": partial(idle, seconds=given.seconds),
                f"one process, {where}": partial(in_one_process, jobs=given.jobs),
                f"another process, {where}": partial(from_another_process, jobs=given.jobs),
            }
            runs |= {name: partial(on_fresh, act, server) for name, act in acts.items()}
        measured: dict[str, list[Measured]] = {name: [] for name in runs}
        for name, figure in interleaved(given.rounds, runs):
            measured[name].append(figure)
            print(name, figure.line(), flush=True)
    print(table(measured))
    print("| what | measured | at most | met |\n| --- | --- | --- | --- |")
    print("\n".join(verdict(name, median_of(rounds)) for name, rounds in measured.items()))
    save(given.save, "idle", measured, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
