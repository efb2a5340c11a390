"""The worker: claims jobs, keeps their tasks, rescues, and drains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from orchestrator import decide
from orchestrator.errors import LeaseLost, StoreUnavailable
from orchestrator.job import Job
from orchestrator.outcome import Outcome, Signal
from orchestrator.states import State
from orchestrator.store.verbs import claim, crew, outcomes, people
from orchestrator.store.verbs.crew import Identity
from orchestrator.store.verbs.guarded import Grip
from orchestrator.worker.follow import Follower
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.pace import Pace
from orchestrator.worker.rescue import Rescuer
from orchestrator.worker.submit import Submitter
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

SELF_CHECK_EVERY_S = 30.0
MOST_IDLE_S = 10.0
"""The longest wait between two rounds of claims: each round also feeds systemd's watchdog."""

PATIENT_SHARE = 0.8
"""The share of `drain_timeout` in which streams may end by themselves; then they are left."""

GATE_SHUT_TOO_LONG_S = 60.0
"""With `once`: a gate closed for longer than this, with nothing live, ends the worker."""


class Ended(Enum):
    """Why a worker stopped."""

    DRAINED = "drained"
    """It was asked to."""
    NOTHING_DUE = "nothing_due"
    """With `once`: no job is due and none is held."""
    GATE_SHUT = "gate_shut"
    """With `once`: the gate stayed closed."""


@dataclass(slots=True)
class Tally:
    """What this worker settled, by state, and what it left in doubt."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    in_doubt: int = 0
    taken: int = 0

    def count(self, job: Job) -> None:
        """Take note of a job as it stands after an act."""
        match job.state:
            case State.COMPLETED:
                self.completed += 1
            case State.FAILED:
                self.failed += 1
            case State.CANCELLED:
                self.cancelled += 1
            case State.IN_DOUBT:
                self.in_doubt += 1
            case _:
                return

    @property
    def all_completed(self) -> bool:
        """True if nothing that this worker handled ended otherwise."""
        return not (self.failed or self.cancelled or self.in_doubt)


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
        self.tally = Tally()
        self.live: dict[int, Follower] = {}
        self.submitting: set[int] = set()
        self._tools = tools
        self._identity = identity
        self._once = once
        self._max_jobs = max_jobs
        self._on_tick = on_tick
        self._abort = abort
        self._heartbeat = Heartbeat(tools=tools)
        self._gate = Gatekeeper(tools=tools)
        self._submitter = Submitter(tools=tools, gate=self._gate, heartbeat=self._heartbeat)
        self._rescuer = Rescuer(tools=tools, heartbeat=self._heartbeat, identity=identity)
        self._pace = Pace(per_minute=tools.settings.submit.max_per_minute, now=tools.clock.boottime)
        self._due = anyio.Event()
        self._draining = anyio.Event()
        self._canary = anyio.Lock()
        self._duties: list[anyio.CancelScope] = []

    def drain(self) -> None:
        """Ask the worker to stop: no claims from now on."""
        self._draining.set()
        self._due.set()

    async def run(self) -> Ended:
        """Work until drained, or until nothing is due with `once`.

        On return every job is settled, in the queue, in doubt, or running without a worker, for
        another to adopt. Raises StoreUnavailable if the database is away at the start.
        """
        tools = self._tools
        await tools.store.write(
            partial(crew.register, identity=self._identity, who=tools.who), urgent=True
        )
        tools.log.info("worker.started", worker_id=tools.who.worker_id, pid=self._identity.pid)
        async with anyio.create_task_group() as beating:
            beating.start_soon(self._heartbeat.run)
            async with anyio.create_task_group() as jobs:
                for duty in (self._tend_gate, self._tend_held, self._check_self):
                    jobs.start_soon(self._tend, duty, jobs)
                ended = await self._claim_loop(jobs)
                for scope in self._duties:
                    scope.cancel()
                await self._let_go()
            # Peers must not take the jobs of a worker that still lets go: it beats to the end.
            beating.cancel_scope.cancel()
        await tools.commit(partial(crew.bury, worker_id=tools.who.worker_id), job_id=0)
        tools.log.info("worker.stopped", why=ended.value)
        return ended

    # --- claiming -----------------------------------------------------------------------------

    async def _claim_loop(self, jobs: TaskGroup) -> Ended:
        """Claim whenever there is room, until draining or, with `once`, until nothing is due.

        What others left is adopted before the first claim, and after each outage.
        """
        backoff = Backoff(first=0.5, most=10.0, rand=self._tools.rand)
        failures, adopted = 0, False
        while not self._draining.is_set():
            try:
                if failures or not adopted:
                    await self._adopt(jobs)
                    adopted = True
                claimed = await self._claim(jobs)
                ended = await self._nothing_to_do() if self._once and not claimed else None
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
        seconds = min(self._tools.settings.worker.poll_interval, MOST_IDLE_S)
        if wait_s is not None:
            seconds = wait_s
        if claimed and self._room() > 0:
            seconds = 0.0
        with anyio.move_on_after(seconds):
            await self._due.wait()
        if not self._draining.is_set():
            self._due = anyio.Event()

    def _room(self) -> int:
        """How many jobs may be claimed now."""
        settings = self._tools.settings
        held = len(self.live) + len(self.submitting)
        room = min(
            settings.submit.concurrency - len(self.submitting),
            settings.worker.concurrency - held,
        )
        if self._max_jobs is not None:
            room = min(room, self._max_jobs - self.tally.taken)
        return self._pace.room(max(0, room))

    async def _claim(self, jobs: TaskGroup) -> int:
        room = self._room() if self._heartbeat.may_act else 0
        if room <= 0:
            return 0
        verb = partial(claim.claim, who=self._tools.who, limit=room)
        claimed = await self._tools.store.write(verb)
        self._pace.begin(len(claimed))
        self.tally.taken += len(claimed)
        for job in claimed:
            self.submitting.add(job.id)
            jobs.start_soon(self._submit, job, jobs)
        return len(claimed)

    async def _nothing_to_do(self) -> Ended | None:
        """With `once`: say why to stop, or None while this process still has work."""
        if self.live or self.submitting or self._canary.locked():
            return None
        if self._max_jobs is not None and self.tally.taken >= self._max_jobs:
            return Ended.NOTHING_DUE
        names = self._tools.settings.worker.queues
        if await self._tools.store.read(claim.count_due, names) == 0:
            return Ended.NOTHING_DUE
        gate = await self._gate.read()
        if gate.closed_at is None:
            return None
        shut_s = await self._tools.store.read(crew.seconds_since, gate.closed_at)
        return Ended.GATE_SHUT if shut_s > GATE_SHUT_TOO_LONG_S else None

    # --- a job's task -------------------------------------------------------------------------

    async def _submit(self, job: Job, jobs: TaskGroup) -> Signal:
        """Submit a claimed job and follow its run, each in its own time."""
        signal = Signal.NEUTRAL
        after: Job | None = None
        try:
            after, signal = await self._submitter.submit(job)
        except Exception as error:  # noqa: BLE001 - one job's fault must not end the worker
            after = await self._fail(job, error)
        finally:
            self.submitting.discard(job.id)
        if after is not None:
            self.tally.count(after)
            if after.state is State.RUNNING and after.worker_id == self._tools.who.worker_id:
                self._follow(after, jobs)
        self._due.set()
        return signal

    def _follow(self, job: Job, jobs: TaskGroup) -> None:
        follower = Follower(tools=self._tools, gate=self._gate, heartbeat=self._heartbeat, job=job)
        self.live[job.id] = follower
        jobs.start_soon(self._run_follower, follower)

    async def _run_follower(self, follower: Follower) -> None:
        settled: Job | None = None
        try:
            settled = await follower.run()
            if settled is None:
                await self._release(follower.job)
        except Exception as error:  # noqa: BLE001 - one job's fault must not end the worker
            settled = await self._fail(follower.job, error)
        finally:
            self.live.pop(follower.job.id, None)
            self._due.set()
        if settled is not None:
            self.tally.count(settled)

    async def _release(self, job: Job) -> None:
        """Give a run back that was not followed to its end, if it is still ours."""
        verb = partial(crew.release, grip=Grip.of(job), by=self._tools.who.worker_id)
        with anyio.CancelScope(shield=True):
            try:
                await self._tools.store.write(verb, order=job.id)
            except (LeaseLost, StoreUnavailable) as error:
                # The worker's row says that it stopped; another adopts the run all the same.
                self._tools.log.info("run.not_released", job_id=job.id, reason=str(error))

    async def _fail(self, job: Job, error: Exception) -> Job | None:
        """Settle a job at which this program itself failed; nothing is sent again for it.

        A submission whose request may have gone out is in doubt, not failed.
        """
        self._tools.log.error("job.internal_error", job_id=job.id, exc_info=error)
        try:
            return await self._tools.commit(
                partial(
                    crew.mend_own,
                    job_id=job.id,
                    lease=job.lease,
                    decide=partial(self._after_fault, error),
                    by=self._tools.who.worker_id,
                ),
                job_id=job.id,
            )
        except LeaseLost:
            return None

    def _after_fault(self, error: Exception, job: Job) -> Outcome:
        if job.state is State.SUBMITTING and job.sent_at is not None:
            words = f"a fault of the orchestrator: {type(error).__name__}: {error}"
            return decide.in_doubt(words, self._tools.policy.of(job))
        return decide.internal(error)

    # --- tending ------------------------------------------------------------------------------

    async def _tend(self, duty: Callable[[TaskGroup], Awaitable[None]], jobs: TaskGroup) -> None:
        """Run a duty until the worker drains.

        A canary that is being sent then outlives its duty, and is waited for like any other POST.
        """
        with anyio.CancelScope() as scope:
            self._duties.append(scope)
            await duty(jobs)

    async def _tend_gate(self, jobs: TaskGroup) -> None:
        """Probe a closed gate when a probe is due, until cancelled."""
        at_start = True
        while True:
            try:
                if self._heartbeat.may_act and not self._draining.is_set():
                    await self._gate.tend(partial(self._send_canary, jobs), at_start=at_start)
                    at_start = False
            except StoreUnavailable as error:
                self._tools.log.warning("gate.untended", error=str(error))
            await self._tools.clock.sleep(min(1.0, self._tools.settings.worker.poll_interval))

    async def _send_canary(self, jobs: TaskGroup) -> Signal | None:
        """Submit one job past the closed gate, and say what came of it; None if there was none."""
        verb = partial(claim.claim, who=self._tools.who, limit=1, canary=True)
        async with self._canary:
            with anyio.CancelScope(shield=True):
                claimed = await self._tools.store.write(verb) if self._room() else []
                signal: Signal | None = None
                for job in claimed:
                    self.tally.taken += 1
                    self.submitting.add(job.id)
                    signal = await self._submit(job, jobs)
        return signal

    async def _tend_held(self, jobs: TaskGroup) -> None:
        """Sweep, hear of cancellations, rescue, until cancelled."""
        rescue_every = self._tools.settings.worker.heartbeat / 2
        rescued_at = self._tools.clock.boottime()
        while True:
            try:
                await self._sweep()
                if self._tools.clock.boottime() - rescued_at >= rescue_every:
                    rescued_at = self._tools.clock.boottime()
                    await self._adopt(jobs)
            except StoreUnavailable as error:
                self._tools.log.warning("store.unavailable", error=str(error))
            await self._tools.clock.sleep(self._tools.settings.worker.poll_interval)

    async def _sweep(self) -> None:
        """Settle what needs no run: cancelled, expired, due to be sent again."""
        store = self._tools.store
        if await store.read(claim.anything_to_sweep):
            for verb in (people.sweep_cancelled, claim.expire, people.due_resubmits):
                for job in await store.write(verb):
                    self._tools.log.info("job.swept", job_id=job.id, state=job.state.value)
        for job_id in await store.read(crew.cancellations, self._tools.who.worker_id):
            follower = self.live.get(job_id)
            if follower is not None:
                follower.cancel()

    async def _adopt(self, jobs: TaskGroup) -> None:
        """Rescue what dead workers left; adoption is not bounded by `concurrency`."""
        if not self._heartbeat.may_act or self._draining.is_set():
            return
        for job in await self._rescuer.rescue():
            self._follow(job, jobs)

    async def _check_self(self, jobs: TaskGroup) -> None:
        """Compare rows with tasks now and then, and mend what was forgotten, until cancelled."""
        while True:
            await self._tools.clock.sleep(SELF_CHECK_EVERY_S)
            try:
                await self.check_self(jobs)
            except StoreUnavailable as error:
                self._tools.log.warning("worker.unchecked", error=str(error))

    async def check_self(self, jobs: TaskGroup) -> None:
        """Mend rows that say they are ours and have no task, and drop tasks without a row."""
        tools = self._tools
        tasks = set(self.live) | self.submitting
        held = {job.id: job for job in await tools.store.read(crew.held_by, tools.who.worker_id)}
        for job_id in held.keys() - tasks - set(self.live) - self.submitting:
            job = held[job_id]
            tools.log.warning("job.forgotten", job_id=job_id, state=job.state.value)
            if job.state is State.RUNNING:
                self._follow(job, jobs)
                continue
            outcome = decide.after_death(job, tools.policy.of(job))
            if outcome is not None:
                verb = partial(outcomes.apply, grip=Grip.of(job), outcome=outcome, seize=True)
                await tools.store.write(verb, order=job_id)
        for job_id in set(self.live) & (tasks - held.keys()):
            tools.log.warning("lease.lost", job_id=job_id)
            await self.live[job_id].abandon()

    # --- letting go ---------------------------------------------------------------------------

    async def _let_go(self) -> None:
        """Let POSTs in flight answer and leave the runs, within `drain_timeout`.

        A POST that has no answer even then is cut off by the end of the process: its job has
        `sent_at`, so that the next worker finds it in doubt.
        """
        tools = self._tools
        tools.log.info("worker.draining", live=len(self.live), submitting=len(self.submitting))
        timeout = tools.settings.worker.drain_timeout
        with anyio.move_on_after(timeout * PATIENT_SHARE):
            await self._all_gone(Follower.drain)
            return
        tools.log.warning(
            "worker.drain_timeout", live=len(self.live), submitting=len(self.submitting)
        )
        with anyio.move_on_after(timeout * (1 - PATIENT_SHARE)):
            await self._all_gone(Follower.abandon)
            return
        self._abort()

    async def _all_gone(self, ask: Callable[[Follower], Coroutine[Any, Any, None]]) -> None:
        """Ask each follower once, those of late answers too, and wait until no task is left."""
        asked: set[Follower] = set()
        async with anyio.create_task_group() as asking:
            while self.submitting or self.live:
                for follower in set(self.live.values()) - asked:
                    asked.add(follower)
                    asking.start_soon(ask, follower)
                await self._changed()
            asking.cancel_scope.cancel()

    async def _changed(self) -> None:
        """Wait until a job's task has ended."""
        self._due = anyio.Event()
        await self._due.wait()
