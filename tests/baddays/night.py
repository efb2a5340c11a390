"""Real worker processes, on any database, beside a dev server in the test's loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from sqlalchemy import Engine, text

from orchestrator.errors import StoreUnavailable
from orchestrator.request import job_values
from orchestrator.store.engine import parse_url, reaching, sync_engine
from orchestrator.store.sqlite import WRITE
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.testing import DevServer

FAST = {
    "WORKER__POLL_INTERVAL": "0.1",
    "WORKER__HEARTBEAT": "0.3",
    "WORKER__DEAD_AFTER": "2",
    "WORKER__DRAIN_TIMEOUT": "10",
    "FOLLOW__POLL_MIN": "0.1",
    "FOLLOW__POLL_MAX": "0.5",
    "FOLLOW__CHECKPOINT_EVERY": "0.1",
}
"""A heartbeat of 0.3 s and death after 2 s: an outage of seconds is here what minutes are live."""


class Night:
    """A migrated database, a dev server, and the workers that come and go on them."""

    def __init__(self, folder: Path, server: DevServer, url: str, **settings: str) -> None:
        self.folder = folder
        self.server = server
        self.url = url
        own = {**FAST, "API__BASE_URL": server.url, "DATABASE__URL": url, **settings}
        self.environ = {
            **{name: value for name, value in os.environ.items() if "ORCHESTRATOR" not in name},
            **{f"ORCHESTRATOR_{name}": value for name, value in own.items()},
            "RECOUP_API_KEY": server.key,
        }
        self._started = 0

    def _engine(self) -> Engine:
        return sync_engine(parse_url(self.url))

    def enqueue(self, *jobs: str | dict[str, Any]) -> list[int]:
        """Enqueue prompts or whole jobs; return their ids."""
        rows = [job_values({"prompt": job} if isinstance(job, str) else job) for job in jobs]
        with self._engine().execution_options(**{WRITE: True}).begin() as connection:
            return [job.id for job in enqueue_many(connection, rows)]

    def sql(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Read with SQL as a person would. Raises StoreUnavailable."""
        with reaching(), self._engine().begin() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def write(self, statement: str, **values: Any) -> None:
        """Write with SQL as a person would."""
        with self._engine().execution_options(**{WRITE: True}).begin() as connection:
            connection.execute(text(statement), values)

    def states(self) -> dict[str, int]:
        """How many jobs are in each state; empty while the database is away."""
        try:
            return {
                row[0]: row[1] for row in self.sql("SELECT state, count(*) FROM jobs GROUP BY 1")
            }
        except StoreUnavailable:
            return {}

    @contextmanager
    def worker(self, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker; it is killed at the end of the block if it still runs."""
        self._started += 1
        with (self.folder / f"worker-{self._started}.log").open("wb") as output:
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

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end beside the server."""
        with anyio.fail_after(40):
            return await anyio.run_process(
                [sys.executable, "-m", "orchestrator", *arguments],
                env=self.environ,
                cwd=self.folder,
                check=False,
            )

    def logs(self) -> str:
        """What all workers said."""
        paths = sorted(self.folder.glob("worker-*.log"))
        return "\n".join(path.read_text(errors="replace") for path in paths)

    async def until(self, true: Callable[[], bool], what: str, within: float = 40.0) -> None:
        """Wait for a condition, at most `within` seconds."""
        with anyio.move_on_after(within):
            while not true():  # noqa: ASYNC110 - what is waited for happens in other processes
                await anyio.sleep(0.05)
            return
        raise AssertionError(f"in vain: {what} {self.states()}\n{self.logs()[-4000:]}")

    async def all_completed(self, number: int) -> None:
        """Wait until so many jobs completed, and check that each was sent once."""
        await self.until(lambda: self.states() == {"completed": number}, f"{number} completed")
        posts = self.server.stats.posts_by_prompt
        assert set(posts.values()) == {1}, posts
        assert posts.total() == number
