"""A night whose workers are forked: for tests that kill and signal them, and ask how they ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.testing import DevServer

from ..baddays.night import Night
from .forks import Zygote, lives, send


class CrewNight(Night):
    """A night with many jobs and few workers at a time."""

    def __init__(
        self, folder: Path, server: DevServer, url: str, zygote: Zygote, **settings: str
    ) -> None:
        own = {"WORKER__HEARTBEAT": "0.5", "WORKER__DEAD_AFTER": "3", "FOLLOW__MODE": "poll"}
        super().__init__(folder, server, url, **{**own, **settings})
        self._zygote = zygote
        self._forked = 0

    def change(self, **settings: str) -> None:
        """Change settings for the workers to come."""
        changed = {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}
        self.environ = {**self.environ, **changed}

    @contextmanager
    def fork(self, *, once: bool = False, **settings: str) -> Iterator[int]:
        """Start a worker; gives its pid. It is killed at the end of the block if it still runs."""
        self._forked += 1
        changed = {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}
        pid = self._zygote.fork(
            environ={**self.environ, **changed},
            log=str(self.folder / f"worker-forked-{self._forked}.log"),
            once=once,
        )
        try:
            yield pid
        finally:
            self.kill(pid)

    def kill(self, pid: int) -> None:
        """End a worker as a power cut would."""
        send(pid, signal.SIGKILL)
        for _ in range(1000):
            if not lives(pid):
                return
            time.sleep(0.01)
        raise AssertionError(f"process {pid} outlives SIGKILL")

    async def ended(self, pid: int, within: float = 40.0) -> int | None:
        """Wait for a worker's end and return its exit code."""
        await self.until(
            lambda: self._zygote.exit_code(pid) is not None, "the worker's end", within
        )
        return self._zygote.exit_code(pid)

    def posts(self) -> list[int]:
        """How many POSTs the server saw of each prompt."""
        return list(self.server.stats.posts_by_prompt.values())
