"""The worker: claims jobs while there is room, and drains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial

import anyio
from anyio.abc import TaskGroup
from sqlalchemy import Connection

from orchestrator.errors import StoreUnavailable
from orchestrator.job import Job
from orchestrator.store.engine import parse_url
from orchestrator.store.verbs import claim, crew, due
from orchestrator.store.verbs.claim import Order
from orchestrator.store.verbs.crew import Identity
from orchestrator.worker.duties import Duties
from orchestrator.worker.follow import Follower
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.holdings import Holdings
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.pace import Pace
from orchestrator.worker.points import Act
from orchestrator.worker.rescue import Rescuer
from orchestrator.worker.saver import Saver
from orchestrator.worker.tally import Tally
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

MOST_IDLE_S = 10.0
"""The longest wait between two rounds of claims: each round also feeds systemd's watchdog."""

GATHER_S = 0.003
"""With jobs in hand, how long places that come free are gathered for one claim."""

FAREWELL_S = 5.0
"""How long a worker that ends tries to write that down."""

PATIENT_SHARE = 0.8
"""The share of `drain_timeout` in which streams may end by themselves; then they are left."""

GATE_SHUT_TOO_LONG_S = 60.0
"""With `once`: a gate closed for longer than this, with nothing live, ends the worker."""


class Ended(Enum):
    """Why a worker stopped."""

    DRAINED = "drained"
    """It was asked to."""
    NOTHING_DUE = "nothing_due"
    """With `once` no job is due and none is held; or it took `max_jobs`."""
    GATE_SHUT = "gate_shut"
    """With `once`: the gate stayed closed."""


class Worker:
    """One daemon's work, without its signals and its exit code.

    `once` ends it when nothing is due; `max_jobs` bounds how many jobs it takes in its life.
    `on_tick` is called in each round of claims; `abort` ends the process when POSTs outlast the
    drain.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        identity: Identity,
        once: bool = False,
        max_jobs: int | None = None,
        on_tick: Callable[[Worker], None] = lambda _worker: None,
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        self._tools = tools
        self._identity = identity
        self._once = once
        self._max_jobs = max_jobs
        self._on_tick = on_tick
        self._abort = abort
        self._heartbeat = Heartbeat(tools=tools, identity=identity)
        self._gate = Gatekeeper(tools=tools)
        self._saver = Saver(tools=tools)
        self._pace = Pace(per_minute=tools.settings.submit.max_per_minute, now=tools.clock.boottime)
        self._order = Order(step_s=tools.settings.worker.priority_step)
        self._due = anyio.Event()
        self._draining = anyio.Event()
        self._holdings: Holdings | None = None

    @property
    def holdings(self) -> Holdings:
        """The jobs that the worker holds, once it runs."""
        if self._holdings is None:
            raise RuntimeError("the worker does not run yet")
        return self._holdings

    @property
    def tally(self) -> Tally:
        """What the worker took, and what became of it."""
        return self.holdings.tally

    def drain(self) -> None:
        """Ask the worker to stop: no claims from now on."""
        self._draining.set()
        self._due.set()

    async def run(self) -> Ended:
        """Work until drained, or until nothing is due with `once`.

        On return every job is settled, in the queue, in doubt, or running without a worker, for
        another to adopt. Raises StoreUnavailable if the database is away at the start, and
        ConfigError if a worker of another machine works on its SQLite file.
        """
        tools = self._tools
        birth = partial(
            crew.register,
            identity=self._identity,
            who=tools.who,
            dead_after=tools.settings.worker.dead_after,
        )
        await tools.write(Act.REGISTER, birth, urgent=True)
        tools.log.info(
            "worker.started",
            worker_id=tools.who.worker_id,
            pid=self._identity.pid,
            database=parse_url(tools.settings.database.url).database,
        )
        async with anyio.create_task_group() as beating:
            beating.start_soon(self._heartbeat.run)
            beating.start_soon(self._saver.run)
            beating.start_soon(tools.store.listen, self._due_now)
            async with anyio.create_task_group() as tasks:
                duties = self._begin(tasks)
                ended = await self._claim_loop(duties)
                duties.stop()
                with tools.passing(Act.DRAIN):
                    await self._let_go()
            # Peers must not take the jobs of a worker that still lets go: it beats to the end.
            beating.cancel_scope.cancel()
        with anyio.move_on_after(FAREWELL_S):
            # Without it, peers find out by the process's end or by the missing heartbeat.
            death = partial(crew.bury, worker_id=tools.who.worker_id)
            await tools.commit(Act.BURY, death, job_id=0)
        tools.log.info("worker.stopped", why=ended.value, **self.tally.ends)
        return ended

    def _begin(self, tasks: TaskGroup) -> Duties:
        tools, gate, heartbeat = self._tools, self._gate, self._heartbeat
        self._holdings = Holdings(
            tools=tools,
            gate=gate,
            heartbeat=heartbeat,
            pace=self._pace,
            saver=self._saver,
            tasks=tasks,
            tally=Tally(forgetful=not self._once and self._max_jobs is None),
            on_change=self._due_now,
        )
        duties = Duties(
            tools=tools,
            gate=gate,
            heartbeat=heartbeat,
            rescuer=Rescuer(tools=tools, heartbeat=heartbeat, identity=self._identity),
            holdings=self._holdings,
            room=self._places,
            on_due=self._due_now,
        )
        for duty in (duties.tend_gate, duties.tend_jobs, duties.check_self):
            tasks.start_soon(duty)
        return duties

    # --- claiming -----------------------------------------------------------------------------

    async def _claim_loop(self, duties: Duties) -> Ended:
        """Claim whenever there is room, until draining or, with `once`, until nothing is due.

        What others left is adopted before the first claim, and after each outage.
        """
        backoff = Backoff(first=0.5, most=10.0, rand=self._tools.rand)
        failures, adopted = 0, False
        while not self._draining.is_set():
            try:
                if failures or not adopted:
                    await duties.adopt()
                    adopted = True
                if failures:
                    await self.holdings.check()  # a claim may stand whose answer was lost
                claimed = await self._claim()
                ended = None if claimed else await self._nothing_to_do(duties)
                failures = 0
            except StoreUnavailable as error:
                failures += 1
                claimed, ended = 0, None
                self._tools.log.warning("store.unavailable", error=str(error), tries=failures)
            if ended is not None:
                return ended
            self._on_tick(self)
            await self._wait_for_work(claimed, backoff.seconds(failures) if failures else None)
        return Ended.DRAINED

    async def _wait_for_work(self, claimed: int, wait_s: float | None) -> None:
        # What becomes due meanwhile `Duties.look` sees; that nothing is left, only this loop does.
        ends_by_itself = self._once or self._max_jobs is not None
        patience_s = self._tools.settings.worker.poll_interval if ends_by_itself else MOST_IDLE_S
        seconds = min(patience_s, MOST_IDLE_S)
        if wait_s is not None:
            seconds = wait_s
        if claimed and self._room() > 0:
            seconds = 0.0
        with anyio.move_on_after(seconds):
            await self._due.wait()
        if len(self.holdings) and not self._draining.is_set():
            await self._tools.clock.sleep(GATHER_S)
        if not self._draining.is_set():
            self._due = anyio.Event()

    def _due_now(self) -> None:
        self._due.set()

    def _room(self) -> int:
        """How many jobs may be claimed now."""
        return self._gate.allows(self._places(), self.holdings.submitting.values())

    def _places(self) -> int:
        """How many more jobs this worker may hold."""
        settings, holdings = self._tools.settings, self.holdings
        room = min(
            settings.submit.concurrency - len(holdings.submitting),
            settings.worker.concurrency - len(holdings),
        )
        if self._max_jobs is not None:
            room = min(room, self._max_jobs - self.tally.taken)
        return self._pace.room(max(0, room))

    async def _claim(self) -> int:
        room = self._room() if self._heartbeat.may_act else 0
        if room <= 0:
            return 0
        claimed, self._order = await self._tools.write_alone(
            Act.CLAIM, partial(self._claim_in_order, limit=room)
        )
        for job in claimed:
            self.holdings.start(job)
        return len(claimed)

    def _claim_in_order(self, connection: Connection, limit: int) -> tuple[list[Job], Order]:
        """Claim, and return the order with the turns that were dealt: a transaction that is run
        again deals as if for the first time."""
        order = replace(self._order, turns=self._order.turns.copied())
        return claim.claim(connection, self._tools.who, limit, order=order), order

    async def _nothing_to_do(self, duties: Duties) -> Ended | None:
        """Say why to stop, or None: with `once`, or after `max_jobs`, a worker ends by itself."""
        if len(self.holdings):
            return None
        if self._max_jobs is not None and self.tally.taken >= self._max_jobs:
            return Ended.NOTHING_DUE
        if not self._once:
            return None
        names = self._tools.settings.worker.queues
        if await self._tools.store.read(due.count_due, names) == 0:
            await self.holdings.check()
            await duties.adopt()  # what was given back meanwhile is still to be followed
            return None if len(self.holdings) else Ended.NOTHING_DUE
        if not duties.gate_tended:
            return None  # what closed the gate long ago may be mended: the probe at the start tells
        gate = await self._gate.read()
        if gate.closed_at is None:
            return None
        shut_s = await self._tools.store.read(crew.seconds_since, gate.closed_at)
        if shut_s <= GATE_SHUT_TOO_LONG_S:
            return None
        self._tools.log.error(
            "gate.stays_closed",
            reason=gate.reason,
            detail=gate.detail,
            closed_at=gate.closed_at,
            hint="what is due waits; mend what the reason names, or see: orchestrator gate show",
        )
        return Ended.GATE_SHUT

    # --- letting go ---------------------------------------------------------------------------

    async def _let_go(self) -> None:
        """Let POSTs in flight answer and leave the runs, within `drain_timeout`.

        A POST that has no answer even then is cut off by the end of the process: its job has
        `sent_at`, so that the next worker finds it in doubt.
        """
        log, holdings = self._tools.log, self.holdings
        held = {"live": len(holdings.live), "submitting": len(holdings.submitting)}
        timeout = self._tools.settings.worker.drain_timeout
        log.info("worker.draining", **held, at_most_s=timeout)
        if len(holdings):
            log.info(
                "worker.waits",
                hint="requests in flight may answer, and streams end by themselves where leaving "
                "one could cancel its run; a second signal ends the worker at once",
            )
        holdings.draining = True
        with anyio.move_on_after(timeout * PATIENT_SHARE):
            await holdings.all_gone(Follower.drain)
            return
        log.warning("worker.drain_timeout", **held)
        with anyio.move_on_after(timeout * (1 - PATIENT_SHARE)):
            await holdings.all_gone(Follower.abandon)
            return
        self._abort()
