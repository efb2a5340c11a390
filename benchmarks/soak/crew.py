"""The worker processes: each place is filled again when its worker has ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio
from anyio.abc import Process

from benchmarks.soak.journal import Deed, Journal

FREEZE_S = (0.3, 3.0)


@dataclass(slots=True)
class Place:
    """One place of the crew and the process that fills it now."""

    number: int
    process: Process | None = None
    frozen: bool = False
    asked: bool = False
    """Told to stop: no further signal, a second SIGTERM would be a kill."""


@dataclass(slots=True)
class Crew:
    """Workers that come and go. `environ` gives the settings of the worker at a place.

    After `send_home`, a worker that ends is not replaced.
    """

    folder: Path
    journal: Journal
    environ: Callable[[int], Mapping[str, str]]
    size: int
    chance: Random
    places: list[Place] = field(default_factory=list)
    starts: int = 0
    _leaving: bool = False

    async def run(self) -> None:
        """Keep every place filled until all workers were sent home and have ended."""
        self.places = [Place(number) for number in range(self.size)]
        async with anyio.create_task_group() as tasks:
            for place in self.places:
                tasks.start_soon(self._fill, place)

    async def _fill(self, place: Place) -> None:
        while not self._leaving:
            await self._one_life(place)
            if not self._leaving:
                await anyio.sleep(self.chance.uniform(0.1, 2.0))

    async def _one_life(self, place: Place) -> None:
        self.starts += 1
        own = {name: text for name, text in os.environ.items() if "ORCHESTRATOR" not in name}
        with (self.folder / f"worker-{self.starts}.log").open("wb") as log:
            process = await anyio.open_process(
                [sys.executable, "-m", "orchestrator", "worker"],
                stdin=None,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**own, **self.environ(place.number)},
            )
        place.process, place.frozen, place.asked = process, False, False
        self.journal.note(Deed.START, pid=process.pid, detail=f"place {place.number}")
        try:
            code = await process.wait()
        finally:
            place.process = None
            if process.returncode is None:
                _send(process.pid, signal.SIGKILL)
        self.journal.note(Deed.EXIT, pid=process.pid, detail=str(code))

    # --- what happens to them -----------------------------------------------------------------

    def _victims(self) -> list[Place]:
        return [
            place
            for place in self.places
            if place.process is not None
            and place.process.returncode is None
            and not place.frozen
            and not place.asked
        ]

    async def torment(self, every_s: float, dead_after_s: float) -> None:
        """Kill, stop and freeze workers at random, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(self.chance.expovariate(1 / every_s))
                victims = self._victims()
                if not victims:
                    continue
                place = self.chance.choice(victims)
                match self.chance.choices(("kill", "term", "freeze", "long"), (5, 3, 3, 1))[0]:
                    case "kill":
                        self._signal(place, Deed.KILL, signal.SIGKILL)
                    case "term":
                        place.asked = True
                        self._signal(place, Deed.TERM, signal.SIGTERM)
                    case "freeze":
                        tasks.start_soon(self._freeze, place, self.chance.uniform(*FREEZE_S))
                    case _:
                        seconds = dead_after_s + self.chance.uniform(2.0, 8.0)
                        tasks.start_soon(self._freeze, place, seconds)

    def _signal(self, place: Place, deed: Deed, number: signal.Signals) -> None:
        if place.process is not None and place.process.returncode is None:
            self.journal.note(deed, pid=place.process.pid)
            _send(place.process.pid, number)

    async def _freeze(self, place: Place, seconds: float) -> None:
        process = place.process
        if process is None:
            return
        place.frozen = True
        act = self.journal.begin(Deed.FREEZE, pid=process.pid, detail=f"{seconds:.1f} s")
        _send(process.pid, signal.SIGSTOP)
        try:
            await anyio.sleep(seconds)
        finally:
            if process.returncode is None:
                _send(process.pid, signal.SIGCONT)
            self.journal.end(act)
            if place.process is process:
                place.frozen = False

    def send_home(self) -> None:
        """Ask all workers to stop, and replace none of them."""
        self._leaving = True
        for place in self._victims():
            place.asked = True
            self._signal(place, Deed.TERM, signal.SIGTERM)


def _send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended just now.

    The process object's own methods would collect its exit code, and the loop then misses it.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, number)
