"""The demo's processes: each in a group of its own, none left when the demo ends."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import STDOUT
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
from anyio.abc import Process

from orchestrator.errors import OrchestratorError

T = TypeVar("T")

PROGRAM: Final = (sys.executable, "-m", "orchestrator")

LOOK_EVERY_S: Final = 0.1
READY_WITHIN_S: Final = 20.0
"""How long a process may take to start, and to stop; a slow machine needs several seconds."""

REAPED_WITHIN_S: Final = 5.0
_LOG_SHOWN: Final = 2_000
"""Characters of a log that an error shows."""


class DemoBroken(OrchestratorError):
    """The demo could not be played: something did not happen in time, or a process died."""


async def until(look: Callable[[], Awaitable[T | None]], *, what: str, within_s: float) -> T:
    """Look again and again until there is something, and return it.

    Raises DemoBroken, which names `what`, when `within_s` seconds have passed.
    """
    deadline = anyio.current_time() + within_s
    while (found := await look()) is None:
        if anyio.current_time() >= deadline:
            raise DemoBroken(f"{what} did not come about within {within_s:g} s")
        await anyio.sleep(LOOK_EVERY_S)
    return found


class Child:
    """One process of the demo. What it writes goes to the file `log`."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self._process.pid

    async def find(self, pattern: re.Pattern[str], *, what: str) -> str:
        """Wait until it has written something that matches, and return that.

        Raises DemoBroken if it dies first or takes too long.
        """

        async def look() -> str | None:
            found = pattern.search(self.log.read_text("utf-8", "replace"))
            if found is None:
                self.check_alive()
            return found[0] if found else None

        return await until(look, what=what, within_s=READY_WITHIN_S)

    def check_alive(self) -> None:
        """Raise DemoBroken, with the end of its log, if it has died by itself."""
        if self._process.returncode is None:
            return
        said = self.log.read_text("utf-8", "replace")[-_LOG_SHOWN:].strip()
        raise DemoBroken(f"the {self.name} ended with {self._process.returncode}: {said}")

    async def stop(self) -> int:
        """Ask it to stop, and return its exit code; kill it if that takes too long."""
        self.signal(signal.SIGTERM)
        with anyio.move_on_after(READY_WITHIN_S):
            await self._process.wait()
        return await self.kill()

    async def kill(self) -> int:
        """Kill its whole group, wait for its end and return the exit code."""
        self.signal(signal.SIGKILL)
        with anyio.CancelScope(shield=True), anyio.move_on_after(REAPED_WITHIN_S):
            return await self._process.wait()
        raise DemoBroken(f"the {self.name} (pid {self.pid}) could not be killed")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its group; nothing happens if the group is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Children:
    """Starts processes of this program in `home`, and kills all groups when the context ends."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self._home = home
        self._environ = environ
        self._all: list[Child] = []

    async def start(self, name: str, *arguments: str, **variables: str) -> Child:
        """Run `orchestrator` with these arguments; `variables` are added to its environment."""
        log = self._home / f"{name}.log"
        with log.open("wb") as output:
            process = await anyio.open_process(
                [*PROGRAM, *arguments],
                stdin=None,
                stdout=output,
                stderr=STDOUT,
                cwd=self._home,
                env={**clean(self._environ), **variables},
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._all.append(child)
        return child

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self._all:
            child.signal(signal.SIGKILL)
        for child in self._all:
            await child.kill()


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would turn the demo to the user's own settings or manager."""
    ours = ("ORCHESTRATOR_", "RECOUP_", "NOTIFY_", "WATCHDOG_")
    kept = {name: value for name, value in environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
