"""What a run does when a stream of ours breaks or is left: found out by watching.

A reader that leaves cancels the run on some servers and not on others. Each break is evidence.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from orchestrator.errors import StoreUnavailable
from orchestrator.job import Job
from orchestrator.recoup.answers import RunStatus
from orchestrator.store.verbs import streams
from orchestrator.store.verbs.guarded import Grip
from orchestrator.verdict import End
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools

BLAMED_S = 60.0
"""A cancellation that nobody asked for, this soon after a break, is the break's doing."""

SURVIVED_S = 2.0
"""A run that still goes on this long after a break has survived it: cancelling takes
milliseconds."""


class Leaving:
    """Watches one job's run after a stream of it was lost or left."""

    def __init__(self, *, tools: Tools, job: Job) -> None:
        self._tools = tools
        self._job = job
        # A predecessor's stream was lost when it died; that moment was written at the adoption.
        self._left_at = tools.clock.boottime() if job.stream_left_at is not None else None

    @property
    def in_question(self) -> bool:
        """True while a break's effect on the run is still to be seen."""
        return self._left_at is not None

    def broke(self) -> None:
        """Take note that a stream of ours was lost just now."""
        self._left_at = self._tools.clock.boottime()

    async def saw_running(self) -> None:
        """Take note that the run goes on; some time after a break, that is worth remembering."""
        if self._left_at is None or self._since_break() < SURVIVED_S:
            return
        self._left_at = None
        await self._learn(survived=True)

    async def judge(self, end: End) -> End:
        """Blame a break for a cancellation that nobody asked for, and remember that."""
        if end.status is not RunStatus.CANCELLED or end.stopping is not None:
            return end
        if self._left_at is None or self._since_break() > BLAMED_S:
            return end
        await self._learn(survived=False)
        return replace(end, left_stream=True)

    def _since_break(self) -> float:
        if self._left_at is None:
            return float("inf")
        return self._tools.clock.boottime() - self._left_at

    async def _learn(self, *, survived: bool) -> None:
        verb = partial(
            streams.learn_leaving,
            grip=Grip.of(self._job),
            api_origin=self._tools.who.api_origin,
            survived=survived,
            by=self._tools.who.worker_id,
        )
        self._tools.log.info("stream.leaving_learnt", job_id=self._job.id, survived=survived)
        try:
            await self._tools.write(Act.LEARN_LEAVING, verb, job_id=self._job.id)
        except StoreUnavailable as error:
            self._tools.log.warning("leaving.unwritten", job_id=self._job.id, error=str(error))
