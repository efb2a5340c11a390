"""The simulated network: byte pipes between workers and the API, with delays and faults.

A connection is two wires. Each keeps its bytes in order; between connections nothing is ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from random import Random
from typing import Protocol

from .streams import ClientStream, ServerTransport
from .timeline import Loop, Timeline
from .trace import Trace


class End(Enum):
    """What a wire carries besides bytes."""

    CLOSED = "closed"
    """The sender has closed: the end of the bytes."""
    RESET = "reset"
    """The sender is gone: what it had not read is lost."""


Item = bytes | End


@dataclass(slots=True)
class Conditions:
    """How the network is now. `delay` is a range in seconds; the others are probabilities."""

    delay: tuple[float, float] = (0.001, 0.02)
    refused: float = 0.0
    """A connection is refused."""
    unanswered: float = 0.0
    """A connection is never answered: its attempt times out."""
    doomed: float = 0.0
    """A connection breaks at some point of its life."""
    up: bool = True
    """The API lets connections in."""


@dataclass(frozen=True, slots=True)
class Doom:
    """The end of one connection: after so many bytes in one direction, loud or silent."""

    upwards: bool
    after_bytes: int
    silent: bool


class Observer(Protocol):
    """What looks at the bytes that workers send."""

    def sends(self, process: str, connection: int, data: bytes) -> None:
        """A worker's bytes are on their way."""

    def broke(self, connection: int, how: str) -> None:
        """A connection did not work as it should."""


class Network:
    """Every connection of the simulated world; all faults of the network are switched here."""

    def __init__(
        self, *, timeline: Timeline, random: Random, trace: Trace, observer: Observer
    ) -> None:
        self.conditions = Conditions()
        self.timeline = timeline
        self.trace = trace
        self.observer = observer
        self._random = random
        self._cut: set[str] = set()
        self._connections: list[Connection] = []
        self._made = 0
        self._server: tuple[Loop, Callable[[], object]] | None = None

    def serve(self, loop: Loop, factory: Callable[[], object]) -> None:
        """Say who answers connections: a factory of asyncio protocols, in its own loop."""
        self._server = (loop, factory)

    # --- what the network does ----------------------------------------------------------------

    def attempt(self, process: Loop) -> tuple[str, float]:
        """Say how an attempt to connect goes (`open`, `refused`, `unanswered`), and how soon."""
        now, delay = self.conditions, self.delay()
        if self.is_cut(process.name) or self._random.random() < now.unanswered:
            return "unanswered", delay
        if not now.up or self._random.random() < now.refused:
            return "refused", delay
        return "open", 2 * delay

    def open(self, process: Loop) -> ClientStream:
        """Open a connection of a worker to the API."""
        if self._server is None:
            raise RuntimeError("nobody serves yet")
        self._made += 1
        connection = Connection(self, self._made, process, *self._server, doom=self._doom())
        self._connections = [other for other in self._connections if not other.over]
        self._connections.append(connection)
        return connection.client

    def delay(self) -> float:
        """How long the next bytes travel."""
        return self._random.uniform(*self.conditions.delay)

    def is_cut(self, process: str) -> bool:
        """Tell whether a worker and the API cannot reach each other now."""
        return process in self._cut

    def _doom(self) -> Doom | None:
        if self._random.random() >= self.conditions.doomed:
            return None
        upwards = self._random.random() < 0.5
        first = self._random.choice((0, 0, self._random.randrange(1, 400)))
        return Doom(upwards, first, silent=self._random.random() < 0.25)

    # --- what happens to it -------------------------------------------------------------------

    def cut(self, process: str) -> None:
        """Let no byte pass between a worker and the API; what is under way waits."""
        self._cut.add(process)

    def heal(self, process: str) -> None:
        """Let bytes pass again; some connections do not survive it."""
        self._cut.discard(process)
        for connection in self._of(process):
            if self._random.random() < 0.4:
                connection.break_("reset at the end of a partition")
            else:
                connection.release()

    def crash(self, process: str) -> None:
        """Let a worker's machine close what its process left open."""
        for connection in self._of(process):
            connection.to_server.send(End.RESET)

    def server_down(self) -> None:
        """Refuse connections, and break those that stand."""
        self.conditions.up = False
        for connection in self._connections:
            connection.break_("the API went down")

    def server_up(self) -> None:
        """Let connections in again."""
        self.conditions.up = True

    def _of(self, process: str) -> list[Connection]:
        return [
            connection
            for connection in self._connections
            if connection.process.name == process and not connection.over
        ]


class Connection:
    """One connection: the worker's end, the API's end, and a wire each way."""

    def __init__(
        self,
        network: Network,
        number: int,
        process: Loop,
        server: Loop,
        factory: Callable[[], object],
        *,
        doom: Doom | None,
    ) -> None:
        self.network = network
        self.number = number
        self.process = process
        self.over = False
        self.doom = doom
        self._ended: set[bool] = set()
        self.client = ClientStream(self)
        self.server = ServerTransport(self, server, factory)
        self.to_server = Wire(self, self._at_server, upwards=True)
        self.to_client = Wire(self, self._at_client, upwards=False)
        server.call_soon(self.server.begin)

    def break_(self, why: str) -> None:
        """Break the connection: both ends learn it, at their own times."""
        if self.over:
            return
        self.over = True
        self.network.observer.broke(self.number, why)
        self._at_server(End.RESET)
        self.network.timeline.after(self.network.delay(), partial(self._at_client, End.RESET))

    def ended(self, *, upwards: bool, whole: bool) -> None:
        """Take note that one direction has ended, or with `whole` both."""
        self._ended.add(upwards)
        self.over = whole or len(self._ended) == len((self.to_server, self.to_client))

    def fall_silent(self) -> None:
        """Lose every byte from now on, without telling anybody."""
        self.over = True
        self.network.observer.broke(self.number, "went silent")

    def client_closed(self) -> None:
        """Take note that the worker has closed its end."""
        self.to_server.send(End.CLOSED)

    def server_closed(self, *, reset: bool) -> None:
        """Take note that the API has closed its end, `reset` without regard for what waits."""
        self.to_client.send(End.RESET if reset else End.CLOSED)

    def release(self) -> None:
        """Deliver what waited for the end of a partition."""
        self.to_server.release()
        self.to_client.release()

    def _at_server(self, item: Item) -> None:
        self.server.loop.call_soon(self.server.take, item)

    def _at_client(self, item: Item) -> None:
        if not self.process.dead:
            self.process.call_soon(self.client.take, item)


class Wire:
    """One direction of a connection."""

    def __init__(
        self, connection: Connection, deliver: Callable[[Item], None], *, upwards: bool
    ) -> None:
        self._connection = connection
        self._deliver = deliver
        self._upwards = upwards
        self._last = 0.0
        self._carried = 0
        self._waiting: list[Item] = []

    def send(self, item: Item) -> None:
        """Let bytes, or the end, travel behind what was sent before."""
        network = self._connection.network
        now = network.timeline.now
        when = max(self._last, now + network.delay())
        self._last = network.timeline.after(when - now, partial(self._arrive, item))

    def release(self) -> None:
        """Deliver what waited."""
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            self._arrive(item)

    def _arrive(self, item: Item) -> None:
        connection = self._connection
        if connection.over:
            return
        if connection.network.is_cut(connection.process.name) or self._waiting:
            self._waiting.append(item)
            connection.network.observer.broke(connection.number, "was held up by a partition")
            return
        if isinstance(item, bytes):
            item = self._up_to_doom(item)
            if not item:
                return
        else:
            connection.ended(upwards=self._upwards, whole=item is End.RESET)
        self._deliver(item)

    def _up_to_doom(self, data: bytes) -> bytes:
        """Give what still arrives of `data`, and break the connection where its time has come."""
        doom = self._connection.doom
        self._carried += len(data)
        if doom is None or doom.upwards is not self._upwards or self._carried <= doom.after_bytes:
            return data
        kept = data[: len(data) - (self._carried - doom.after_bytes)]
        if kept:
            self._deliver(kept)
        if doom.silent:
            self._connection.fall_silent()
        else:
            self._connection.break_("reset in the middle")
        return b""
