"""The jobs that a worker holds: one task for each, from its claim until it is settled or let go."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from orchestrator import decide
from orchestrator.errors import LeaseLost, StoreUnavailable
from orchestrator.job import Job
from orchestrator.outcome import Outcome, Signal
from orchestrator.states import State
from orchestrator.store.verbs import crew
from orchestrator.store.verbs.guarded import Grip
from orchestrator.worker.follow import Follower
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.pace import Pace
from orchestrator.worker.points import Act
from orchestrator.worker.saver import Saver
from orchestrator.worker.submit import Submitter
from orchestrator.worker.tally import Tally
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

FOLLOW_TRIES = 4
"""How often following one run is begun before a fault of this program settles its job."""


class Holdings:
    """Starts a task for each job that is claimed or adopted, and lets them go at a drain.

    `tasks` is the group that they run in; `on_change` is called when one of them has ended.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        gate: Gatekeeper,
        heartbeat: Heartbeat,
        pace: Pace,
        saver: Saver,
        tasks: TaskGroup,
        tally: Tally,
        on_change: Callable[[], None],
    ) -> None:
        self.tally = tally
        self.live: dict[int, Follower] = {}
        self.submitting: dict[tuple[int, int], float] = {}
        """When each submission under way began, in boot time, by its job's id and lease: a job may
        come back to us while what we sent under an older lease still waits for its answer."""
        self.draining = False
        self._tools = tools
        self._gate = gate
        self._heartbeat = heartbeat
        self._pace = pace
        self._saver = saver
        self._tasks = tasks
        self._on_change = on_change
        self._changed = anyio.Event()
        self._submitter = Submitter(tools=tools, gate=gate, heartbeat=heartbeat)

    def __len__(self) -> int:
        return len(self.live) + len(self.submitting)

    def __contains__(self, job_id: int) -> bool:
        return job_id in self.live or any(job_id == held for held, _lease in self.submitting)

    # --- submit -------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        """Submit a job that was just claimed, in a task of its own."""
        self._tasks.start_soon(self._submit, job, self._take(job))

    async def submit(self, job: Job) -> Signal:
        """Submit a job that was just claimed, and say what the answer told of the API."""
        return await self._submit(job, self._take(job))

    def _take(self, job: Job) -> float:
        began = self._tools.clock.boottime()
        self.tally.take(job)
        self.submitting[job.id, job.lease] = began
        self._pace.begin()
        return began

    async def _submit(self, job: Job, began: float) -> Signal:
        signal = Signal.NEUTRAL
        after: Job | None = None
        try:
            after, signal = await self._submitter.submit(job, began=began)
        except Exception as error:  # noqa: BLE001 - one job's fault must not end the worker
            after = await self._fail(job, error)
        finally:
            del self.submitting[job.id, job.lease]
        if after is not None:
            self.tally.count(after)
            if after.state is State.RUNNING and after.worker_id == self._tools.who.worker_id:
                self.follow(after, just_accepted=True)
        self._change()
        return signal

    # --- follow -------------------------------------------------------------------------------

    def follow(self, job: Job, *, just_accepted: bool = False) -> None:
        """Follow a running job that is ours, in a task of its own.

        One that came back to us under a higher lease replaces its follower of before, which can
        write no more; while draining, the job is given back at once.
        """
        before = self.live.get(job.id)
        if before is not None and before.job.lease >= job.lease:
            return
        self.tally.take(job)
        self._tasks.start_soon(self._follow, self._hold(job, just_accepted=just_accepted))
        if before is not None:
            self._tasks.start_soon(before.abandon)

    def _hold(self, job: Job, *, just_accepted: bool = False) -> Follower:
        follower = Follower(
            tools=self._tools,
            gate=self._gate,
            heartbeat=self._heartbeat,
            job=job,
            saver=self._saver,
            just_accepted=just_accepted,
        )
        self.live[job.id] = follower
        return follower

    async def _follow(self, follower: Follower) -> None:
        settled: Job | None = None
        if self.draining:
            await follower.abandon()
        try:
            settled = await self._follow_despite_faults(follower)
        finally:
            if (last := self.live.get(follower.job.id)) and last.job.lease == follower.job.lease:
                del self.live[follower.job.id]
        if settled is not None:
            self.tally.count(settled)
        self._change()

    async def _follow_despite_faults(self, follower: Follower) -> Job | None:
        """Follow a run; a fault of this program is given a few fresh starts before it settles."""
        backoff = Backoff(first=1.0, most=30.0, rand=self._tools.rand)
        fault: Exception | None = None
        for fresh_start in range(1, FOLLOW_TRIES + 1):
            try:
                settled = await follower.run()
            except Exception as error:
                fault = error
                self._tools.log.exception(
                    "run.follow_failed", job_id=follower.job.id, tries=fresh_start
                )
            else:
                if settled is None:
                    await self._release(follower.job)
                return settled
            if self.draining:
                await self._release(follower.job)
                return None
            await self._tools.clock.sleep(backoff.seconds(fresh_start))
            if self.live.get(follower.job.id) is not follower:
                return None  # the job came back to us under a higher lease, with its own follower
            follower = self._hold(follower.job)
            if self.draining:
                await follower.abandon()
        return await self._fail(follower.job, fault) if fault is not None else None

    async def _release(self, job: Job) -> None:
        """Give a run back that was not followed to its end, if it is still ours."""
        verb = partial(crew.release, grip=Grip.of(job), by=self._tools.who.worker_id)
        with anyio.CancelScope(shield=True):
            try:
                await self._tools.write(Act.RELEASE, verb, job_id=job.id)
            except (LeaseLost, StoreUnavailable) as error:
                # The worker's row says that it stopped; another adopts the run all the same.
                self._tools.log.info("run.not_released", job_id=job.id, reason=str(error))

    # --- faults -------------------------------------------------------------------------------

    async def _fail(self, job: Job, error: Exception) -> Job | None:
        """Settle a job at which this program itself failed; nothing is sent again for it.

        A submission whose request may have gone out is in doubt, not failed.
        """
        self._tools.log.error("job.internal_error", job_id=job.id, exc_info=error)
        verb = partial(
            crew.mend_own,
            job_id=job.id,
            lease=job.lease,
            decide=partial(self._after_fault, error),
            by=self._tools.who.worker_id,
        )
        try:
            return await self._tools.commit(Act.MEND, verb, job_id=job.id)
        except LeaseLost:
            return None

    def _after_fault(self, error: Exception, job: Job) -> Outcome:
        if job.state is State.SUBMITTING and job.sent_at is not None:
            words = f"a fault of the orchestrator: {type(error).__name__}: {error}"
            return decide.in_doubt(words, self._tools.policy.of(job))
        return decide.internal(error)

    async def check(self) -> None:
        """Compare the rows that say they are ours with the tasks, and mend what was forgotten."""
        tools = self._tools
        followed = dict(self.live)
        held = {job.id: job for job in await tools.store.read(crew.held_by, tools.who.worker_id)}
        for job_id, job in held.items():
            if job_id not in self and job_id not in followed:
                tools.log.warning("job.forgotten", job_id=job_id, state=job.state.value)
                await self._remember(job)
        for job_id, follower in followed.items():
            if job_id not in held and self.live.get(job_id) is follower:
                tools.log.warning("lease.lost", job_id=job_id)
                await follower.abandon()

    async def _remember(self, job: Job) -> None:
        if job.state is State.RUNNING:
            self.follow(job)
            return
        verb = partial(
            crew.mend_own,
            job_id=job.id,
            lease=job.lease,
            decide=self._after_forgetting,
            by=self._tools.who.worker_id,
        )
        try:
            await self._tools.write(Act.MEND, verb, job_id=job.id)
        except LeaseLost as error:
            # Its task ended between the look at the row and this: nothing was forgotten.
            self._tools.log.info("job.remembered", job_id=job.id, reason=str(error))

    def _after_forgetting(self, job: Job) -> Outcome:
        outcome = decide.after_death(job, self._tools.policy.of(job))
        if outcome is None:
            raise LeaseLost(f"job {job.id} is running: it has a task of its own now")
        return outcome

    # --- letting go ---------------------------------------------------------------------------

    async def all_gone(self, ask: Callable[[Follower], Coroutine[Any, Any, None]]) -> None:
        """Ask each follower once, those of late answers too, and wait until no task is left."""
        asked: set[Follower] = set()
        async with anyio.create_task_group() as asking:
            while len(self):
                for follower in set(self.live.values()) - asked:
                    asked.add(follower)
                    asking.start_soon(ask, follower)
                self._changed = anyio.Event()
                await self._changed.wait()
            asking.cancel_scope.cancel()

    def _change(self) -> None:
        self._changed.set()
        self._on_change()
