"""Follow one running job to its end: poll, stream, collect, settle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import assert_never

import anyio
from sqlalchemy import Connection

from orchestrator import decide
from orchestrator.errors import LeaseLost
from orchestrator.harvest import Folded, Harvest
from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.recoup.answers import RunStatus
from orchestrator.states import ErrorKind, State
from orchestrator.store.commit import Joint
from orchestrator.store.verbs import attempt, outcomes, streams
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.outcomes import Applied
from orchestrator.verdict import End, after_end
from orchestrator.worker.collect import Collector
from orchestrator.worker.find_chat import find_chat
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.leaving import Leaving
from orchestrator.worker.points import Act
from orchestrator.worker.poll import Poller
from orchestrator.worker.progress import Sign
from orchestrator.worker.saver import Saver
from orchestrator.worker.stream import Ending, StreamFollower
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

STREAM_GRACE_S = 3.0
"""How long a stream may still deliver after its run is over; the server ends it within half a
second."""

PLACE_KEPT_S = 1.0
"""How long a stream that has ended keeps its place: the run is over soon, and settling it gives the
place back without a write of its own."""


class Follower:
    """Holds one running job, from the moment its run is known until it is settled or given back.

    Of a run that was `just_accepted` nothing is saved yet, and its stream tells when it is over.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        gate: Gatekeeper,
        heartbeat: Heartbeat,
        job: Job,
        saver: Saver,
        just_accepted: bool = False,
    ) -> None:
        self.job = job
        self._saver = saver
        self._streams = tools.settings.follow.mode != "poll"
        self._just_accepted = just_accepted
        self._tools = tools
        self._gate = gate
        self._leaving = Leaving(tools=tools, job=job)
        stream = self._stream = StreamFollower(
            tools=tools,
            job=job,
            placed=just_accepted and job.stream_opened_at is not None,
            on_news=self._on_news,
            on_ended=self._on_stream_ended,
        )
        self._poller = Poller(
            tools=tools,
            gate=gate,
            heartbeat=heartbeat,
            job=job,
            leaving=self._leaving,
            streaming=lambda: stream.attached,
        )
        self._stream.clocks = self._clocks
        self._stream_done = anyio.Event()
        self._over = anyio.Event()
        """Set once nothing more is read or judged of the run: to cancel who waits costs more."""
        self._scope = anyio.CancelScope()
        self._fault: Exception | None = None

    # --- what the worker asks for -------------------------------------------------------------

    def cancel(self) -> None:
        """Take a person's wish to cancel: the run is stopped, and its end decides."""
        if self._poller.progress.stopping is None:
            self._poller.observe(Sign.CANCEL)

    async def drain(self) -> None:
        """Leave the run for another worker.

        A stream is left where that is safe; elsewhere the end of its response is awaited, since
        leaving may cancel the run. The caller bounds the wait.
        """
        self._stream.draining = True
        if self._stream.attached and not await self._leaving_is_safe():
            await self._stream_done.wait()
        self._scope.cancel()

    async def abandon(self) -> None:
        """Let go at once, whatever a stream that is left does to its run."""
        self._scope.cancel()

    def _let_go_for(self, fault: Exception) -> None:
        self._fault = fault
        self._scope.cancel()

    async def _leaving_is_safe(self) -> bool:
        verb = partial(streams.leaving, api_origin=self._tools.who.api_origin)
        return await self._tools.read(verb, job_id=self.job.id) == "safe"

    # --- the job's life -----------------------------------------------------------------------

    async def run(self) -> Job | None:
        """Follow the run to its end and settle the job.

        Returns the settled job, or None if it was given back or its lease was lost. Whatever
        interrupts this, the run's ids are committed and another worker goes on.
        """
        settled: Job | None = None
        try:
            with self._scope:
                settled = await self._to_the_end()
            if self._fault is not None and settled is None:
                raise self._fault
        except* LeaseLost as lost:
            self._tools.log.warning("lease.lost", job_id=self.job.id, error=str(lost.exceptions[0]))
        finally:
            self._stream.forget_callers()
        return settled

    async def _to_the_end(self) -> Job:
        if self.job.cancel_requested_at is not None:
            self.cancel()
        try:
            return await self._conclude(await self._until_end())
        except BaseException as fault:
            if isinstance(fault, Exception):  # what is written below may fail in its own way
                self._tools.log.debug("run.interrupted", job_id=self.job.id, exc_info=fault)
            # Not settled: another goes on with what the stream brought, and with these clocks.
            with anyio.CancelScope(shield=True):
                await self._save_and_give_back()
            raise

    async def _conclude(self, end: End) -> Job:
        if end.status is not RunStatus.COMPLETED:
            await self._stream.save()  # the server keeps less of such a run, or nothing
        self._stream.finish()
        folded = Folded(
            message=self._stream.fold.message,
            message_id=self._stream.fold.message_id,
            whole=self._stream.whole,
        )
        collector = Collector(tools=self._tools, gate=self._gate)
        # Who looks at the row while this takes its time should see how the run ended, and others
        # may need the place.
        harvest = await collector.collect(self.job, end, folded, meanwhile=self._save_and_give_back)
        return await self._settle(end, harvest)

    async def _until_end(self) -> End:
        async with anyio.create_task_group() as acts:
            acts.start_soon(self._follow_stream)
            with self._saver.saving(self._stream, on_failure=self._let_go_for):
                end = await self._poller.until_end(at_once=not self._first_by_stream)
            self._stream.draining = True
            if self._stream.attached:
                with anyio.move_on_after(STREAM_GRACE_S):
                    await self._stream_done.wait()
            # A break may be noticed after the status that it brought about.
            end = await self._leaving.judge(end)
            self._over.set()
            if not self._stream_done.is_set():
                acts.cancel_scope.cancel()
        self._stream.left = False  # of a run that is over nothing is left
        return end

    async def _follow_stream(self) -> None:
        try:
            if self.job.chat_id is None:
                await self._learn_chat()
            if self._streams:
                await self._read_stream()
        finally:
            self._stream_done.set()
        with anyio.move_on_after(PLACE_KEPT_S):
            await self._over.wait()
            return
        await self._stream.give_place_back()

    async def _read_stream(self) -> None:
        if not self._just_accepted:
            await self._stream.load()
        await self._stream.run()

    @property
    def _first_by_stream(self) -> bool:
        return self._just_accepted and self._streams

    async def _save(self) -> None:
        """Save how far the run was followed: another worker goes on from there."""
        await self._stream.save()
        await self._poller.save()

    async def _save_and_give_back(self) -> None:
        try:
            await self._save()
        finally:
            await self._stream.give_place_back()

    async def _learn_chat(self) -> None:
        chat = await find_chat(self._tools, self.job)
        verb = partial(
            attempt.learn_chat,
            grip=Grip.of(self.job),
            chat_id=chat.chat_id,
            session_id=chat.session_id,
            by=self._tools.who.worker_id,
        )
        self.job = await self._tools.commit(Act.LEARN_CHAT, verb, job_id=self.job.id)
        self._poller.job = self._stream.job = self.job

    def _on_news(self) -> None:
        self._poller.observe(Sign.NEWS)

    def _on_stream_ended(self, ending: Ending) -> None:
        match ending:
            case Ending.BROKEN:
                self._leaving.broke()
                self._poller.look_now()
            case Ending.CUT | Ending.FINISHED | Ending.NOTHING | Ending.UNREACHED:
                self._poller.look_now()
            case Ending.REFUSED | Ending.NO_PLACE | Ending.FOREIGN | Ending.FORBIDDEN:
                self._poller.look_first()
            case _:
                assert_never(ending)

    def _clocks(self) -> dict[str, float]:
        """The run's clocks, as columns."""
        progress = self._poller.progress
        return {"followed_s": progress.followed_s, "quiet_s": progress.quiet_s}

    # --- the end --------------------------------------------------------------------------

    async def _settle(self, end: End, harvest: Harvest) -> Job:
        tools = self._tools
        outcome = after_end(end, harvest.collected, tools.policy.accept_finish)
        outcome = replace(outcome, columns={**outcome.columns, **self._clocks()})
        again = decide.may_retry(self.job, outcome)
        backoff = Backoff(first=10.0, most=600.0, rand=tools.rand)
        verb = self._settling(
            outcome, harvest, backoff.seconds(self.job.attempt) if again else None
        )
        try:
            settled = await tools.commit(Act.SETTLE, verb, job_id=self.job.id)
        except LeaseLost:
            raise
        except Exception as error:
            # A result that the database refuses must not leave the job running for ever.
            tools.log.exception("job.unsettled", job_id=self.job.id)
            failed = partial(
                outcomes.apply, grip=Grip.of(self.job), outcome=_unwritable(error, outcome)
            )
            settled = await tools.commit(Act.SETTLE, failed, job_id=self.job.id)
        say = tools.log.info if outcome.error_kind is None else tools.log.warning
        say(
            outcome.event,
            job_id=settled.id,
            run_id=self.job.run_id,
            state=settled.state.value,
            error_kind=outcome.error_kind,
            cost_usd=settled.cost_usd,
        )
        return settled

    def _settling(
        self, outcome: Outcome, harvest: Harvest, retry_after_s: float | None
    ) -> Callable[[Connection], Job]:
        by = self._tools.who.worker_id
        if retry_after_s is None and harvest.difference is None:
            kept = Applied(job=self.job, outcome=outcome, by=by, kept=harvest.kept)
            return Joint(outcomes.apply_each, kept)
        return partial(
            outcomes.settle,
            grip=Grip.of(self.job),
            outcome=outcome,
            kept=harvest.kept,
            retry_after_s=retry_after_s,
            difference=harvest.difference,
            by=by,
        )


def _unwritable(error: Exception, outcome: Outcome) -> Outcome:
    """The outcome of a job whose result the database refuses: the evidence without the result."""
    kept = {name: value for name, value in outcome.columns.items() if name == "run_status"}
    return replace(
        decide.internal(error),
        state=State.FAILED,
        error_kind=ErrorKind.INTERNAL,
        columns=kept,
    )
