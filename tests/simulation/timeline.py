"""Virtual time: the event loops of all simulated processes, stepped one at a time."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any

from anyio._backends import _asyncio as anyio_asyncio

MOST_STEPS_IN_A_MOMENT = 20_000
"""Steps without the clock moving that count as a process that spins."""

FOREVER = float("inf")


class Stuck(AssertionError):
    """The simulated world does not come to its end: something spins or waits for ever."""


class Timeline:
    """The clock that all share, what is planned on it, and the loops that live by it.

    Seconds from 0. `random` decides between loops that are ready at the same moment.
    """

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self.loops: list[Loop] = []
        self.task_numbers = itertools.count()
        self._random = random
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._steps = 0

    def after(self, seconds: float, act: Callable[[], None]) -> float:
        """Plan an act, and return its time."""
        when = self.now + max(0.0, seconds)
        heapq.heappush(self._agenda, (when, next(self._numbers), act))
        return when

    def run(self, until: Callable[[], bool], bound: float) -> None:
        """Let time pass until the condition holds. Raises Stuck at `bound` (a time)."""
        while not until():
            self.step(bound)

    def step(self, bound: float) -> None:
        """Do the next thing that is due. Raises Stuck if that is later than `bound`."""
        due = [(loop.next_at(), loop) for loop in self.loops if not (loop.dead or loop.frozen)]
        when = min((at for at, _ in due), default=FOREVER)
        planned = self._agenda[0][0] if self._agenda else FOREVER
        if min(when, planned) > bound:
            raise Stuck(f"nothing settles by {bound:.0f} s of virtual time")
        self._move(min(when, planned))
        if planned <= when:
            heapq.heappop(self._agenda)[2]()
            return
        ready = [loop for at, loop in due if at <= when]
        chosen = ready[0] if len(ready) == 1 else self._random.choice(ready)
        chosen.step()

    def _move(self, when: float) -> None:
        if when > self.now:
            self.now = when
            self._steps = 0
        self._steps += 1
        if self._steps > MOST_STEPS_IN_A_MOMENT:
            raise Stuck(f"{self._steps} steps at {self.now:.3f} s: something spins")


class Loop(asyncio.BaseEventLoop):
    """The event loop of one simulated process: real asyncio, on the timeline's clock.

    Two states of a real process are made by not stepping it: `frozen` (SIGSTOP) and `dead`
    (SIGKILL: no `finally` of it ever runs).
    """

    # What asyncio's own loop keeps and does; its stubs do not tell.
    _ready: deque[Any]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    if TYPE_CHECKING:

        def _run_once(self) -> None: ...

    def __init__(self, timeline: Timeline, name: str) -> None:
        super().__init__()
        self.name = name
        self.frozen = False
        self.dead = False
        self.thawed_at = -1.0
        self.faults: list[dict[str, Any]] = []
        self._timeline = timeline
        self._selector = _NothingToSelect()
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _loop, context: self.faults.append(context))
        timeline.loops.append(self)

    def time(self) -> float:
        """The timeline's clock."""
        return self._timeline.now

    def next_at(self) -> float:
        """When this process has something to do; `FOREVER` if it has nothing."""
        if self._ready:
            return self._timeline.now
        while self._scheduled and self._scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        if self._scheduled:
            when: float = self._scheduled[0]._when
            return max(self._timeline.now, when)
        return FOREVER

    def step(self) -> None:
        """Run what is ready now, as one round of the loop."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            self._run_once()
        finally:
            asyncio._set_running_loop(before)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the process's main task."""
        return self.create_task(work)

    def bury(self, rounds: int = 200) -> None:
        """Let the process's memory go, when the world that it could change is no more."""
        self.dead = False
        for _ in range(rounds):
            left = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.step()
        self.dead = True
        self.close()

    def _make_task(
        self, _loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any
    ) -> asyncio.Task[Any]:
        return _Task(work, loop=self, number=next(self._timeline.task_numbers), **kwargs)

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class _NothingToSelect:
    """The loop's selector: no file descriptors, and no waiting, for the timeline does that."""

    def select(self, timeout: float | None) -> list[Any]:  # noqa: ARG002 - the loop's call
        return []

    def close(self) -> None:
        pass


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, work: Coroutine[Any, Any, Any], *, number: int, **kwargs: Any) -> None:
        self._number = number
        super().__init__(work, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _InOrder(dict[Any, None]):
    """A set that is walked in the order of its additions."""

    def add(self, member: Any) -> None:
        self[member] = None

    def remove(self, member: Any) -> None:
        del self[member]

    def discard(self, member: Any) -> None:
        self.pop(member, None)


@contextmanager
def repeatable() -> Iterator[None]:
    """Take out what differs from run to run: sets in order of addresses, and the collector.
    The server's log is silent meanwhile.

    anyio delivers a cancellation to the scopes inside a scope in the order of a set.
    """
    scope = anyio_asyncio.CancelScope
    original = scope.__init__

    def ordered(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._child_scopes = _InOrder()

    server_log = logging.getLogger("aiohttp.server")
    was_disabled, server_log.disabled = server_log.disabled, True  # broken requests are meant
    no_sniffio = sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type] # httpcore looks for it on the disk at each request
    collecting = gc.isenabled()
    gc.disable()
    scope.__init__ = ordered  # type: ignore[method-assign] # for the time of a simulation
    try:
        yield
    finally:
        scope.__init__ = original  # type: ignore[method-assign]
        if no_sniffio is None:
            del sys.modules["sniffio"]
        server_log.disabled = was_disabled
        if collecting:
            gc.enable()
