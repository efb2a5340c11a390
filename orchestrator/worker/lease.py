"""The heartbeat: how a worker proves that it lives, and knows when it may not act any more."""

from __future__ import annotations

from functools import partial

from orchestrator.errors import StoreUnavailable
from orchestrator.store.verbs import crew
from orchestrator.store.verbs.crew import Identity
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

FENCE_AT = 0.75
"""The share of `dead_after` without a good beat at which a worker fences itself: it stops acting
before anyone may think it dead."""


class Heartbeat:
    """Beats every `heartbeat` seconds, and answers whether the worker may act."""

    def __init__(self, *, tools: Tools, identity: Identity) -> None:
        self._tools = tools
        self._identity = identity
        self._dead_after = tools.settings.worker.dead_after
        self._every = tools.settings.worker.heartbeat
        self._last_good = tools.clock.boottime()
        self._unbroken_since = tools.clock.boottime()

    @property
    def silent_s(self) -> float:
        """Seconds since the last good beat, by a clock that counts suspension."""
        return self._tools.clock.boottime() - self._last_good

    @property
    def may_act(self) -> bool:
        """False once the worker must start no POST and no stop: others may think it dead soon."""
        return self.silent_s < self._dead_after * FENCE_AT

    @property
    def may_judge(self) -> bool:
        """True once it has beaten without a gap for `dead_after`: before, all look dead to it."""
        gap = self.silent_s > 2 * self._every
        return not gap and self._tools.clock.boottime() - self._unbroken_since >= self._dead_after

    async def run(self) -> None:
        """Beat until cancelled. A database that is away is tried again, a little sooner."""
        retry = Backoff(first=self._every / 4, most=self._every, rand=self._tools.rand)
        failures = 0
        while True:
            failures = 0 if await self.beat() else failures + 1
            await self._tools.clock.sleep(retry.seconds(failures) if failures else self._every)

    async def beat(self) -> bool:
        """Beat once; False if the database was out of reach."""
        tools = self._tools
        began = tools.clock.boottime()
        try:
            with tools.passing(Act.BEAT):
                known = await tools.store.beat(
                    partial(crew.prove_life, identity=self._identity, who=tools.who)
                )
        except StoreUnavailable as error:
            tools.log.warning(
                "worker.beat_failed", silent_s=round(self.silent_s, 1), error=str(error)
            )
            return False
        if not known:
            tools.log.warning("worker.was_declared_dead", silent_s=round(self.silent_s, 1))
        if not known or began - self._last_good > 2 * self._every + 1:
            self._unbroken_since = began
        # The moment before the write counts: the row cannot be older than that.
        self._last_good = began
        return True
