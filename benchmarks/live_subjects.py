"""What `benchmarks.live` watches: our worker, and a bare reader of as many runs.

`python -m benchmarks.live_subjects BASE_URL RUNS MODE` is the bare reader. It begins when it is
told to on standard input, and prints when it knew of each run's end.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL, Engine, func, select

from benchmarks.common.life import client_of, prompt, sent_at_once
from benchmarks.common.process import ROOT
from benchmarks.ours import KEY
from benchmarks.stub_answers import run_number
from orchestrator import Orchestrator
from orchestrator.recoup import EventParser, MessageFold
from orchestrator.recoup.answers import Accepted, RunState
from orchestrator.recoup.client import RecoupClient
from orchestrator.recoup.resume import ResponseReader
from orchestrator.recoup.stream import OpenStream
from orchestrator.store.engine import sync_engine
from orchestrator.store.schema import jobs, workers

SUBMITTING = 100
"""Submissions at once, of both subjects: what gets thousands of runs live in little time."""

ASK_EVERY_S = 5.0
_STOP_S = 60.0


class Subject(Protocol):
    """A process that holds runs, and what it knows of their ends."""

    name: str

    def running(self, base_url: str) -> Any:
        """The process, for a block, as a `subprocess.Popen`; it waits for `begin`."""

    def begin(self) -> None:
        """Have it start all its runs."""

    def last_beat(self) -> float | None:
        """When it last beat, in seconds of the wall clock, if it beats at all."""

    def live(self) -> int | None:
        """How many runs it says are live, if it says."""

    def known_ends(self) -> dict[int, float]:
        """By the number of the run, when its completion was known or durable."""


@dataclass(slots=True)
class Ours:
    """The daemon on a database."""

    url: URL
    runs: int
    mode: str
    log: Path
    name: str = "ours"
    _engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self._engine = sync_engine(self.url)

    @contextmanager
    def running(self, base_url: str) -> Iterator[subprocess.Popen[str]]:
        """See `Subject`."""
        own = {name: value for name, value in os.environ.items() if "ORCHESTRATOR" not in name}
        told = {
            "RECOUP_API_KEY": KEY,
            "ORCHESTRATOR_API__BASE_URL": base_url,
            "ORCHESTRATOR_DATABASE__URL": self.url.set(
                drivername=self.url.get_backend_name()
            ).render_as_string(hide_password=False),
            "ORCHESTRATOR_WORKER__CONCURRENCY": str(self.runs),
            "ORCHESTRATOR_SUBMIT__CONCURRENCY": str(SUBMITTING),
            "ORCHESTRATOR_FOLLOW__MODE": self.mode,
            "ORCHESTRATOR_LOG__FORMAT": "json",
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # our own module
                [sys.executable, "-m", "orchestrator", "worker"],
                cwd=ROOT,
                env={**own, **told},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        with _ended(process):
            yield process
        self._engine.dispose()

    def begin(self) -> None:
        """See `Subject`."""
        asyncio.run(self._enqueue())

    async def _enqueue(self) -> None:
        async with Orchestrator(self.url.render_as_string(hide_password=False)) as orc:
            await orc.enqueue_many({"prompt": prompt(number)} for number in range(self.runs))

    def last_beat(self) -> float | None:
        """See `Subject`."""
        with self._engine.connect() as connection:
            beat = connection.execute(select(workers.c.last_heartbeat_at)).scalar_one_or_none()
        return None if beat is None else beat.timestamp()

    def live(self) -> int | None:
        """See `Subject`."""
        with self._engine.connect() as connection:
            return int(connection.execute(_LIVE).scalar_one())

    def known_ends(self) -> dict[int, float]:
        """See `Subject`."""
        with self._engine.connect() as connection:
            rows = connection.execute(_COMPLETED).all()
        return {run_number(run_id.encode()): at.timestamp() for run_id, at in rows}


_LIVE = select(func.count()).select_from(jobs).where(jobs.c.state == "running")
_COMPLETED = select(jobs.c.run_id, jobs.c.finished_at).where(jobs.c.state == "completed")


@dataclass(slots=True)
class Bare:
    """A process with the client, the parsers and the fold, and nothing that lasts."""

    runs: int
    mode: str
    name: str = "bare"
    _process: subprocess.Popen[str] | None = None
    _ends: dict[int, float] | None = None

    @contextmanager
    def running(self, base_url: str) -> Iterator[subprocess.Popen[str]]:
        """See `Subject`."""
        process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", __name__, base_url, str(self.runs), self.mode],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._process = process
        with _ended(process):
            yield process

    def begin(self) -> None:
        """See `Subject`."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def last_beat(self) -> float | None:
        """See `Subject`."""
        return None

    def live(self) -> int | None:
        """See `Subject`."""
        return None

    def known_ends(self) -> dict[int, float]:
        """See `Subject`; waits for the process, which ends when all its runs have."""
        if self._ends is None:
            assert self._process is not None
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            self._ends = dict(json.loads(line or "[]"))
        return self._ends


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
        process.terminate()
        process.wait(_STOP_S)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


async def hold(base_url: str, runs: int, mode: str) -> list[tuple[int, float]]:
    """Start all runs, follow them to their ends, and say when each end was known."""
    ends: list[tuple[int, float]] = []
    starting = asyncio.Semaphore(SUBMITTING)
    follow = _read if mode == "stream" else _ask
    async with client_of(base_url, runs) as client, asyncio.TaskGroup() as tasks:

        async def one(number: int) -> None:
            async with starting:
                accepted = await client.start_run({"prompt": prompt(number)}, mark=sent_at_once)
            assert isinstance(accepted, Accepted), accepted
            if await follow(client, accepted):
                ends.append((run_number(accepted.run_id.encode()), time.time()))

        for number in range(runs):
            tasks.create_task(one(number))
    return ends


async def _read(client: RecoupClient, accepted: Accepted) -> bool:
    fold = MessageFold()
    async with client.stream(accepted.chat_id or "", 0) as opened:
        assert isinstance(opened, OpenStream), opened
        reader = ResponseReader(own_run=opened.head.run_id == accepted.run_id, turn_open=False)
        parser = EventParser()
        async for data in opened.reads():
            for chunk in reader.feed(parser.feed(data)):
                fold.feed(chunk)
    state = await client.run_status(accepted.run_id)
    return fold.finished and isinstance(state, RunState) and state.status.terminal


async def _ask(client: RecoupClient, accepted: Accepted) -> bool:
    while True:
        state = await client.run_status(accepted.run_id)
        if not isinstance(state, RunState):
            return False
        if state.status.terminal:
            return True
        await asyncio.sleep(ASK_EVERY_S)


def main() -> None:
    """Wait for the word, hold the runs, print their ends."""
    base_url, runs, mode = sys.argv[1:]
    sys.stdin.readline()
    print(json.dumps(asyncio.run(hold(base_url, int(runs), mode))), flush=True)


if __name__ == "__main__":
    main()
