"""The real dev server, without a socket: its protocol is fed by the simulated network."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from aiohttp import web

from orchestrator.devserver.plan import Pace
from orchestrator.devserver.server import DevServer
from orchestrator.devserver.surroundings import Surroundings
from orchestrator.devserver.timing import Timing

from .database import EPOCH
from .process import KEY
from .timeline import Timeline


class SimServer(DevServer):
    """The API of the simulated world."""

    def __init__(self, *, timeline: Timeline, seed: int) -> None:
        random = Random(f"server {seed}")
        super().__init__(
            keys=(KEY,),
            timing=Timing(pace=Pace(chunk=0.1), provision=0.05, stream_limit=6.0),
            seed=random.getrandbits(32),
            surroundings=Surroundings(
                now=lambda: EPOCH.timestamp() + timeline.now,
                monotonic=lambda: timeline.now,
                bits=random.getrandbits,
            ),
        )

    async def accept(self) -> None:
        """Connections are let in by the simulated network."""

    async def refuse(self) -> None:
        """The same."""

    async def start(self) -> None:
        """Make the application ready."""
        await self.__aenter__()

    @property
    def protocols(self) -> Callable[[], object]:
        """What makes a protocol for each connection."""
        server = self._runner.server
        if not isinstance(server, web.Server):
            raise TypeError("the server has not started")
        return server

    def stop(self) -> None:
        """Let go of what it holds."""
        self.runs.close()
        self._shelf.close()
