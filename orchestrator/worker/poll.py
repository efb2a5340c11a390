"""Poll a run's status until it is terminal; the one source that may end a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import anyio
import structlog
from tenacity import AsyncRetrying, retry_if_result, stop_never

from orchestrator.errors import StoreUnavailable
from orchestrator.job import Job
from orchestrator.recoup.answers import RunState, SessionChat, Trouble, TroubleKind
from orchestrator.store.commit import Joint
from orchestrator.store.verbs import attempt
from orchestrator.store.verbs.guarded import Grip
from orchestrator.verdict import End
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.leaving import Leaving
from orchestrator.worker.points import Act
from orchestrator.worker.progress import (
    STOP_EVERY_S,
    Limits,
    Observation,
    Seen,
    Sign,
    resumed,
    step,
)
from orchestrator.worker.progress import Act as Step
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Growing, retried

SAVE_EVERY_S = 60.0
"""How often the clocks are saved where no checkpoint saves them."""

SLACK_S = 60.0
"""How much longer than `poll_max` two answers may be apart: the call's own time-outs."""

RESTS = 4
"""How many waits of `poll_max` a run is left alone for while its stream brings something in each:
what moves goes on."""

FIRST_LOOK_S = 1.0
"""How long a run that was just accepted is left to its stream before its status is asked for."""

CHAT_EVERY_S = 60.0
"""How often the chat is read for progress where no stream shows it."""


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """A look that ended nothing; tenacity asks again."""

    retry_after: float | None = None


class Poller:
    """Asks for one run's status, moves its clocks, and stops it when they run out.

    `streaming` tells whether a stream of the run is attached: then polls are rare.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        gate: Gatekeeper,
        heartbeat: Heartbeat,
        job: Job,
        leaving: Leaving,
        streaming: Callable[[], bool],
    ) -> None:
        follow = tools.settings.follow
        self._tools = tools
        self._gate = gate
        self._heartbeat = heartbeat
        self._leaving = leaving
        self._streaming = streaming
        self.job = job
        self._limits = Limits(
            run_timeout=job.run_timeout or follow.run_timeout,
            stall_timeout=job.stall_timeout or follow.stall_timeout,
            longest_tick=(RESTS + 1) * follow.poll_max + SLACK_S,
        )
        self.progress = resumed(job.followed_s, job.quiet_s, tools.clock.boottime(), self._limits)
        self._began = tools.clock.boottime() - job.followed_s
        self._saved_at = self._chat_read_at = tools.clock.boottime()
        self._chat_seen: tuple[object, ...] | None = None
        self._looked_at = float("-inf")
        self._withheld: str | None = None
        self._wake = anyio.Event()

    def look_now(self) -> None:
        """End the current wait: the stream ended, or a cancellation was asked for.

        A stream that a server cuts again and again does not bring on more than two looks in
        `poll_min`.
        """
        self._wake.set()

    def look_first(self) -> None:
        """End the wait for the first look: no stream will tell when the run is over."""
        if self._looked_at == float("-inf"):
            self._wake.set()

    def observe(self, sign: Sign) -> None:
        """Take an observation from elsewhere: news from the stream, or a wish to cancel."""
        self.progress, _ = step(self.progress, sign, self._tools.clock.boottime(), self._limits)
        if sign is Sign.CANCEL:
            self.look_now()

    async def until_end(self, *, at_once: bool = True) -> End:
        """Poll until the run's end is known. Raises LeaseLost if the job is not ours any more.

        Without `at_once` the first look waits for a second, for `look_now` or for `look_first`.
        Bounded by the clocks: `run_timeout` and `stall_timeout` stop a run that goes on, and a run
        that the server does not know is lost after half an hour.
        """
        if not at_once:
            await self._sleep(FIRST_LOOK_S)
        end = await retried(self._retrying, self._look, over=lambda found: isinstance(found, End))
        return cast("End", end)

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_result(lambda result: isinstance(result, _Unsettled)),
            wait=Growing(age=self._age, bounds=self._bounds, rand=self._tools.rand),
            stop=stop_never,
            sleep=self._rest,
        )

    def _age(self) -> float:
        return self._tools.clock.boottime() - self._began

    def _bounds(self) -> tuple[float, float]:
        follow = self._tools.settings.follow
        if self.progress.stopping is not None:
            most = STOP_EVERY_S if self.progress.told_at is None else 2.0
            return follow.poll_min, min(follow.poll_max, max(follow.poll_min, most))
        if self._streaming() and not self._leaving.in_question:
            return follow.poll_max, follow.poll_max
        return follow.poll_min, follow.poll_max

    async def _rest(self, seconds: float) -> None:
        """Wait between two looks; again while the stream moves and the run's time is not over."""
        for _ in range(RESTS):
            moved_at = self.progress.moved_at
            woken = await self._sleep(seconds)
            moves = self._streaming() and self.progress.moved_at > moved_at
            in_question = self._leaving.in_question or self.progress.stopping is not None
            answered = self.progress.seen_at is not None  # else the clocks stand still
            if woken or not moves or in_question or not answered or self._left_s() < seconds:
                return

    def _left_s(self) -> float:
        """How long the run may still go on, in seconds."""
        seen_at = self.progress.seen_at
        since = 0.0 if seen_at is None else self._tools.clock.boottime() - seen_at
        return self._limits.run_timeout - self.progress.followed_s - since

    async def _sleep(self, seconds: float) -> bool:
        """Wait; True if something ended the wait."""
        woken = False
        with anyio.move_on_after(seconds):
            await self._wake.wait()
            woken = True
            since = self._tools.clock.boottime() - self._looked_at
            await self._tools.clock.sleep(
                max(0.0, self._tools.settings.follow.poll_min / 2 - since)
            )
        self._wake = anyio.Event()
        return woken

    async def _look(self) -> End | _Unsettled:
        run_id = self.job.run_id or ""
        with self._tools.passing(Act.STATUS):
            answer = await self._tools.client.run_status(run_id)
        observation = await self._observation(answer)
        before = self.progress.status
        now = self._tools.clock.boottime()
        self.progress, act = step(self.progress, observation, now, self._limits)
        self._looked_at = now
        if isinstance(act, End):
            return act
        if isinstance(answer, RunState):
            await self._leaving.saw_running()
        if act is Step.STOP:
            await self._stop()
        elif isinstance(answer, RunState):
            await self._look_at_chat(now)
        if self.progress.status is not before or now - self._saved_at >= SAVE_EVERY_S:
            await self.save()
        return _Unsettled(answer.retry_after if isinstance(answer, Trouble) else None)

    async def _observation(self, answer: RunState | Trouble) -> Observation:
        if isinstance(answer, RunState):
            return Seen(answer.status)
        self._tools.log.debug("poll.trouble", job_id=self.job.id, error=answer.error)
        if answer.kind is TroubleKind.UNAUTHORIZED:
            await self._gate.heard_401_in_passing()
        return Sign.MISSING if answer.kind is TroubleKind.NOT_FOUND else Sign.OUT_OF_REACH

    async def save(self) -> None:
        """Save the clocks and the last status. Raises LeaseLost."""
        status = self.progress.status
        seen = attempt.Seen(
            job=self.job,
            run_status=status.value if status else None,
            followed_s=self.progress.followed_s,
            quiet_s=self.progress.quiet_s,
        )
        verb = Joint(attempt.progress_each, seen)
        try:
            await self._tools.write(Act.PROGRESS, verb, job_id=self.job.id)
        except StoreUnavailable as error:
            self._tools.log.warning("progress.unsaved", job_id=self.job.id, error=str(error))
            return
        self._saved_at = self._tools.clock.boottime()

    async def _look_at_chat(self, now: float) -> None:
        """Read the chat now and then, where no stream tells whether the run moves."""
        every = min(CHAT_EVERY_S, self._limits.stall_timeout / 3)
        if self._streaming() or now - self._chat_read_at < every:
            return
        self._chat_read_at = now
        chat = await self._chat()
        if chat is None:
            return
        seen = (chat.updated_at, chat.last_assistant_message_at, _size(chat))
        if self._chat_seen is not None and seen != self._chat_seen:
            self.observe(Sign.NEWS)
        self._chat_seen = seen

    async def _chat(self) -> SessionChat | None:
        if self.job.chat_id is None or self.job.session_id is None:
            return None
        with self._tools.passing(Act.CHAT):
            chat = await self._tools.client.session_chat(self.job.session_id, self.job.chat_id)
        return None if isinstance(chat, Trouble) else chat

    async def _stop(self) -> None:
        """Ask the server to stop the run, if the chat still points at it: the route stops
        whatever the chat points at."""
        log = self._tools.log.bind(job_id=self.job.id, run_id=self.job.run_id)
        if self._is_fenced(log):
            return
        chat = await self._chat()
        if chat is None:
            await self._withhold_stop("its chat cannot be read")
            return
        if chat.active_stream_id != self.job.run_id:
            where = "no run" if chat.active_stream_id is None else "another run"
            await self._withhold_stop(f"its chat points at {where}")
            return
        verb = partial(
            attempt.begin_stop,
            grip=Grip.of(self.job),
            why=self.progress.stopping,
            followed_s=self.progress.followed_s,
            quiet_s=self.progress.quiet_s,
            by=self._tools.who.worker_id,
        )
        await self._tools.commit(Act.NOTE_STOP, verb, job_id=self.job.id)
        if self._is_fenced(log):
            return  # the database was away for long: another may hold the run by now
        self.observe(Sign.TOLD)
        with self._tools.passing(Act.STOP):
            answer = await self._tools.client.stop(chat.chat_id)
        log.info("stop.sent", why=self.progress.stopping, answer=str(answer))
        self.look_now()

    async def _withhold_stop(self, reason: str) -> None:
        """Say, once for each reason, that the run cannot be told to stop now."""
        if reason == self._withheld:
            return
        self._withheld = reason
        self._tools.log.warning("stop.withheld", job_id=self.job.id, reason=reason)
        verb = partial(
            attempt.withhold_stop,
            grip=Grip.of(self.job),
            why=self.progress.stopping,
            reason=reason,
            by=self._tools.who.worker_id,
        )
        await self._tools.commit(Act.NOTE_STOP, verb, job_id=self.job.id)

    def _is_fenced(self, log: structlog.typing.FilteringBoundLogger) -> bool:
        if self._heartbeat.may_act:
            return False
        log.warning("stop.withheld", reason="no good heartbeat")
        return True


def _size(chat: SessionChat) -> int:
    """How much the chat holds, in parts and characters of text."""
    parts = [
        part
        for message in chat.messages
        for part in message.get("parts") or ()
        if isinstance(part, dict)
    ]
    return len(parts) + sum(len(part.get("text") or "") for part in parts)
