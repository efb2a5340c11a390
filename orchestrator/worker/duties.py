"""What a worker does beside its jobs: tend the gate, sweep, hear of cancellations, rescue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from orchestrator.errors import StoreUnavailable
from orchestrator.outcome import Signal
from orchestrator.store.verbs import claim, crew, due, people
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.holdings import Holdings
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.points import Act
from orchestrator.worker.rescue import Rescuer
from orchestrator.worker.tools import Tools

SELF_CHECK_EVERY_S = 30.0


class Duties:
    """The standing duties of a worker.

    `room` says whether a canary may be sent; `on_due` is called when a look finds due jobs.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        gate: Gatekeeper,
        heartbeat: Heartbeat,
        rescuer: Rescuer,
        holdings: Holdings,
        room: Callable[[], int],
        on_due: Callable[[], None],
    ) -> None:
        self._tools = tools
        self._gate = gate
        self._heartbeat = heartbeat
        self._rescuer = rescuer
        self._holdings = holdings
        self._room = room
        self._on_due = on_due
        self.gate_tended = False
        """True once the gate was looked at, and probed if it was closed."""
        self._stopped = False
        self._scopes: list[anyio.CancelScope] = []

    def stop(self) -> None:
        """End all duties. A canary that is being sent outlives its duty, like any other POST."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()

    async def tend_gate(self) -> None:
        """Probe a closed gate when a probe is due, and once at the start.

        That it was closed elsewhere, `look` finds out.
        """

        async def tend() -> None:
            if self._heartbeat.may_act and (self._gate.shut or not self.gate_tended):
                await self._gate.tend(
                    self._send_canary, self._has_room, at_start=not self.gate_tended
                )
                self.gate_tended = True

        await self._repeat(tend, min(1.0, self._tools.settings.worker.poll_interval))

    async def tend_jobs(self) -> None:
        """See what is due, sweep, hear of cancellations, and rescue now and then."""
        clock = self._tools.clock
        rescue_every = self._tools.settings.worker.heartbeat / 2
        rescued_at = clock.boottime()

        async def tend() -> None:
            nonlocal rescued_at
            await self.look()
            if clock.boottime() - rescued_at >= rescue_every:
                rescued_at = clock.boottime()
                if await self._rescuer.is_needed():
                    await self.adopt()

        await self._repeat(tend, self._tools.settings.worker.poll_interval)

    async def check_self(self) -> None:
        """Compare rows with tasks now and then."""
        await self._repeat(self._holdings.check, SELF_CHECK_EVERY_S, at_once=False)

    async def adopt(self) -> None:
        """Rescue what dead workers left; adoption is not bounded by `concurrency`."""
        if not self._heartbeat.may_act or self._stopped:
            return
        adopted, mended = await self._rescuer.rescue()
        for job in adopted:
            self._holdings.follow(job)
        for job in mended:
            self._holdings.tally.count(job)

    async def look(self) -> None:
        """See what is due, and settle what needs no run: cancelled, expired, in doubt for long."""
        store = self._tools.store
        waiting = await store.read(due.waiting, self._tools.who)
        if waiting.shut:
            self._gate.saw_it_shut()  # that it is open, `tend_gate` sees: this look may be older
        if waiting.claim:
            self._on_due()
        if waiting.sweep:
            for verb in (people.sweep_cancelled, people.due_resubmits, due.expire):
                for job in await self._tools.write(Act.SWEEP, verb):
                    self._holdings.tally.count(job)
                    self._tools.log.info("job.swept", job_id=job.id, state=job.state.value)
        if not self._holdings.live:
            return
        for job_id in await store.read(crew.cancellations, self._tools.who.worker_id):
            follower = self._holdings.live.get(job_id)
            if follower is not None:
                follower.cancel()

    def _has_room(self) -> bool:
        return not self._stopped and self._room() > 0

    async def _send_canary(self) -> Signal | None:
        """Submit one job past the closed gate, and say what came of it; None if there was none."""
        verb = partial(claim.claim, who=self._tools.who, limit=1, canary=True)
        signal: Signal | None = None
        with anyio.CancelScope(shield=True):
            for job in await self._tools.write(Act.CANARY, verb):
                signal = await self._holdings.submit(job)
        return signal

    async def _repeat(
        self, act: Callable[[], Awaitable[None]], every_s: float, *, at_once: bool = True
    ) -> None:
        """Act every `every_s` seconds until stopped; an absent database is only waited for."""
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            if not at_once:
                await self._tools.clock.sleep(every_s)
            while not self._stopped:
                try:
                    await act()
                except StoreUnavailable as error:
                    self._tools.log.warning("store.unavailable", error=str(error))
                await self._tools.clock.sleep(every_s)
