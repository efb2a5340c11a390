"""A simulated worker process: the real worker, with every collaborator simulated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import anyio
import httpcore
import httpx

from orchestrator.config import Settings
from orchestrator.errors import StoreUnavailable
from orchestrator.recoup.client import RecoupClient
from orchestrator.recoup.transport import fresh_connections
from orchestrator.store.verbs.crew import Identity
from orchestrator.worker.tools import Tools
from orchestrator.worker.worker import Worker

from .network import Network
from .streams import Backend
from .timeline import Loop, Timeline
from .trace import Trace

ORIGIN, KEY = "http://127.0.0.1:8808", "recoup_sk_dev"


class Client(RecoupClient):
    """The real client, whose connections are opened on the simulated network.

    Reads and streams go over httpx's own transport too: aiohttp's cannot be given a network.
    """

    def __init__(self, *, network: Network, process: Loop, settings: Settings, tls: Any) -> None:
        super().__init__(
            base_url=ORIGIN,
            key=lambda: KEY,
            submit_timeout=settings.submit.timeout,
            stream_idle_timeout=settings.follow.stall_timeout,
            max_calls=64,
            max_streams=64,
        )
        self._backend = Backend(network, process)
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._posts, self._calls, self._streams = (self._connections() for _ in range(3))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is kept open between two requests."""

    def _connections(self) -> httpx.AsyncClient:
        client = fresh_connections(tls=self._tls, proxy=None)
        transport: Any = client._transport
        pool: httpcore.AsyncConnectionPool = transport._pool
        pool._network_backend = self._backend
        return client


class SimClock:
    """A worker's clock: the timeline's, counted from some moment of its own."""

    def __init__(self, timeline: Timeline, began: float) -> None:
        self._timeline = timeline
        self._began = began

    def boottime(self) -> float:
        return self._timeline.now + self._began

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class Listener(Protocol):
    """What hears of some lines of the log."""

    def learns(self, process: str, run_id: str) -> None:
        """A worker has read the id of a run that it started."""

    def faulty(self, event: str, words: str) -> None:
        """The program found a fault of its own."""


class SimLog:
    """A log that goes into the trace."""

    def __init__(
        self, trace: Trace, process: str, listener: Listener, bound: dict[str, Any] | None = None
    ) -> None:
        self._trace = trace
        self._process = process
        self._listener = listener
        self._bound = bound or {}

    def bind(self, **more: Any) -> SimLog:
        return SimLog(self._trace, self._process, self._listener, {**self._bound, **more})

    def info(self, event: str, **detail: Any) -> None:
        self._trace.add(self._process, event, **self._bound, **detail)
        if event == "submit.accepted":
            self._listener.learns(self._process, detail["run_id"])

    debug = warning = info

    def error(self, event: str, **detail: Any) -> None:
        self.info(event, **detail)
        if "exc_info" in detail:
            self._listener.faulty(event, repr(detail["exc_info"]))

    def exception(self, event: str, **detail: Any) -> None:
        self.info(event, **detail)
        self._listener.faulty(event, repr(sys.exc_info()[1]))


@dataclass(kw_only=True)
class Process:
    """One start of one worker. `name` is also its worker id.

    `on_abort` is called when the worker ends its own process at once.
    """

    name: str
    loop: Loop
    tools: Tools
    client: Client
    on_abort: Callable[[str], None]
    worker: Worker | None = None
    over: bool = False
    fault: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the process exists, frozen or not."""
        return not (self.loop.dead or self.over)

    @property
    def submitting(self) -> int:
        """How many submissions it has under way."""
        holdings = self.worker._holdings if self.worker is not None and self.alive else None
        return len(holdings.submitting) if holdings is not None else 0

    def drain(self) -> None:
        """Ask the worker to stop, as SIGTERM does."""
        if self.worker is not None and self.alive:
            self.loop.call_soon(self.worker.drain)

    async def main(self) -> None:
        """What the daemon does with a worker."""
        identity = Identity(
            worker_id=self.name,
            host=self.name,
            boot_id=None,
            pid_namespace=None,
            pid=1,
            process_started=None,
            version="simulated",
        )
        self.worker = Worker(
            tools=self.tools, identity=identity, abort=lambda: self.on_abort(self.name)
        )
        try:
            async with self.client:
                await self.worker.run()
        except StoreUnavailable:
            self.tools.log.info("process.exits", why="no database at the start")
        except Exception as error:  # noqa: BLE001 - it is the simulation's finding
            self.fault = f"{type(error).__name__}: {_leaves(error)}"
        self.over = True


def _leaves(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_leaves(inner) for inner in error.exceptions)
    return repr(error)
