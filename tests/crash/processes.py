"""Real worker processes on a database of the test's own, beside a dev server in the test's loop."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from orchestrator.request import job_values
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.sqlite import WRITE
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.testing import DevServer

FAST = {
    "ORCHESTRATOR_WORKER__POLL_INTERVAL": "0.1",
    "ORCHESTRATOR_WORKER__HEARTBEAT": "0.5",
    "ORCHESTRATOR_WORKER__DEAD_AFTER": "3",
    "ORCHESTRATOR_FOLLOW__POLL_MIN": "0.1",
    "ORCHESTRATOR_FOLLOW__POLL_MAX": "0.5",
    "ORCHESTRATOR_FOLLOW__CHECKPOINT_EVERY": "0.1",
}


class Night:
    """A database, a dev server, and the workers that come and go on them."""

    def __init__(self, folder: Path, server: DevServer, mode: str = "poll") -> None:
        self.path = folder / "jobs.db"
        self.server = server
        self.url = parse_url(f"sqlite:///{self.path}")
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if "ORCHESTRATOR" not in name},
            **FAST,
            "RECOUP_API_KEY": server.key,
            "ORCHESTRATOR_API__BASE_URL": server.url,
            "ORCHESTRATOR_DATABASE__URL": f"sqlite:///{self.path}",
            "ORCHESTRATOR_FOLLOW__MODE": mode,
        }
        self._workers = 0
        migrations.upgrade(self.url)

    def enqueue(self, *jobs: str | dict[str, Any]) -> list[int]:
        """Enqueue prompts or whole jobs; return their ids."""
        rows = [job_values({"prompt": job} if isinstance(job, str) else job) for job in jobs]
        engine = sync_engine(self.url)
        try:
            writing = engine.connect().execution_options(**{WRITE: True})
            with writing as connection, connection.begin():
                return [job.id for job in enqueue_many(connection, rows)]
        finally:
            engine.dispose()

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read with SQL as a person would."""
        with sqlite3.connect(self.path, timeout=30) as connection:
            rows = connection.execute(query, values).fetchall()
        connection.close()
        return rows

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return dict(self.sql("SELECT state, count(*) FROM jobs GROUP BY state"))

    @contextmanager
    def worker(self, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker; it is killed at the end of the block if it still runs."""
        self._workers += 1
        log = self.folder / f"worker-{self._workers}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "worker", *arguments],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait(timeout=10)

    def logs(self) -> str:
        """What all workers said."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("worker-*.log"))
        )

    async def until(self, true: Callable[[], bool], within: float = 30.0, what: str = "") -> None:
        """Wait for a condition, at most `within` seconds."""
        with anyio.move_on_after(within):
            while not true():  # noqa: ASYNC110 - what is waited for happens in other processes
                await anyio.sleep(0.02)
            return
        seen = f"{self.states()}\n{self.logs()[-4000:]}"
        raise AssertionError(f"not within {within} s: {what} {seen}")

    async def ended(self, process: subprocess.Popen[bytes], within: float = 30.0) -> int:
        """Wait for a process's end and return its exit code."""
        await self.until(lambda: process.poll() is not None, within, "the worker's end")
        return process.wait()

    def posts(self) -> list[int]:
        """How many POSTs the server saw of each prompt."""
        return list(self.server.stats.posts_by_prompt.values())


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process as a power cut would."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
