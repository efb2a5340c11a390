"""Submit: connect, mark, send, and commit what the answer made of the job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
from sqlalchemy import Connection

from orchestrator import decide
from orchestrator.errors import InvalidJob, LeaseLost, StoreUnavailable
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome, Signal
from orchestrator.recoup.answers import Answered, Generated, NotSent, Submission
from orchestrator.request import request_body
from orchestrator.states import Endpoint, State
from orchestrator.store.commit import Joint
from orchestrator.store.verbs import attempt, outcomes, streams
from orchestrator.store.verbs.attempt import Marking
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.outcomes import Applied
from orchestrator.store.verbs.streams import Accepted
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools

_GONE = frozenset({404, 405})

STALE_CONNECTION_S = 10.0
"""How long the mark may take: a server closes a connection that says nothing, and a request on
one that is just closing would be in doubt."""


class Submitter:
    """Takes a claimed job to `running`, or to whatever else its answer makes of it."""

    def __init__(self, *, tools: Tools, gate: Gatekeeper, heartbeat: Heartbeat) -> None:
        self._tools = tools
        self._gate = gate
        self._heartbeat = heartbeat

    async def submit(self, job: Job, *, began: float) -> tuple[Job | None, Signal]:
        """Submit a job that this worker has just claimed, at `began` in boot time.

        Returns the job as it then stands, or None if the lease was lost, with what the answer
        says about the API. Runs to its end even if the caller is cancelled: an answer that is
        thrown away is a run that is lost. The wait is bounded by `[submit] timeout` (or
        `[generate] timeout`), and then by the database coming back.
        """
        with anyio.CancelScope(shield=True):
            after, outcome = await self._submit(job)
            if outcome is not None:
                await self._tell_gate(outcome, began)
        return after, outcome.signal if outcome is not None else Signal.NEUTRAL

    async def _submit(self, job: Job) -> tuple[Job | None, Outcome | None]:
        try:
            body = request_body(job)
        except InvalidJob as error:
            outcome = decide.rejected(str(error))
            return await self._settle(job, outcome), outcome
        sending = _Sending(tools=self._tools, heartbeat=self._heartbeat, job=job, body=body)
        try:
            answer = await self._send(job, body, sending)
        except StoreUnavailable as error:
            return await self._put_back(job, str(error)), None
        if isinstance(answer, NotSent) and answer.refused_by_mark:
            return await self._put_back(job, answer.error), None
        outcome = await self._decide(job, answer)
        return await self._commit(sending.job, answer, outcome), outcome

    async def _tell_gate(self, outcome: Outcome, began: float) -> None:
        try:
            await self._gate.heard(outcome.signal, outcome.error, began=began)
        except StoreUnavailable as error:
            # The next answer says the same; the job itself is committed.
            self._tools.log.warning("gate.unwritten", error=str(error))

    async def _send(self, job: Job, body: dict[str, Any], sending: _Sending) -> Submission:
        client = self._tools.client
        send = client.generate if job.endpoint is Endpoint.GENERATE else client.start_run
        with self._tools.passing(Act.POST):
            return await send(body, mark=sending.mark, around=self._tools.passing(Act.BODY))

    async def _decide(self, job: Job, answer: Submission) -> Outcome:
        missing = (
            job.endpoint is Endpoint.GENERATE
            and isinstance(answer, Answered)
            and answer.status in _GONE
            and not answer.envelope
        )
        if missing and isinstance(answer, Answered) and await self._speaks_the_api():
            return decide.endpoint_missing(answer)
        return decide.after_submit(answer, self._tools.policy.of(job))

    async def _speaks_the_api(self) -> bool:
        return await self._tools.client.check_key() is None

    async def _commit(self, job: Job, answer: Submission, outcome: Outcome) -> Job | None:
        """Commit an answer; nothing is awaited between the answer and this."""
        log = self._tools.log.bind(job_id=job.id, attempt=job.attempt)
        say = log.warning if outcome.error_kind is not None else log.info
        say(outcome.event, state=outcome.state.value, error=outcome.error, **_ids(outcome))
        if isinstance(answer, Generated):
            return await self._settle(job, outcome, _kept(answer, outcome))
        return await self._settle(job, outcome)

    async def _settle(
        self, job: Job, outcome: Outcome, kept: list[Message] | None = None
    ) -> Job | None:
        tools = self._tools
        by = tools.who.worker_id
        try:
            return await tools.commit(
                Act.ANSWER, self._applying(job, outcome, kept), job_id=job.id, urgent=True
            )
        except LeaseLost:
            tools.log.warning("lease.lost", job_id=job.id, attempt=job.attempt, while_="submitting")
        if job.sent_at is None:
            return None
        return await tools.commit(
            Act.LATE_ANSWER,
            partial(
                attempt.keep_late_answer,
                job_id=job.id,
                attempt=job.attempt,
                outcome=outcome,
                by=by,
                kept=kept or (),
            ),
            job_id=job.id,
            urgent=True,
        )

    def _applying(
        self, job: Job, outcome: Outcome, kept: list[Message] | None
    ) -> Callable[[Connection], Job]:
        by = self._tools.who.worker_id
        if outcome.state is State.RUNNING or outcome.state.settled:
            applied = Applied(job=job, outcome=outcome, by=by, kept=kept)
            if self._is_streamed(outcome):
                mode, origin = self._tools.settings.follow.mode, self._tools.who.api_origin
                safe_at = origin if mode == "auto" else None
                return Joint(streams.accept_each, Accepted(applied=applied, if_safe_at=safe_at))
            return Joint(outcomes.apply_each, applied)
        backoff_s = self._tools.submit_wait.seconds(job.deferrals + 1, outcome.retry_after)
        return partial(
            outcomes.apply, grip=Grip.of(job), outcome=outcome, backoff_s=backoff_s, by=by
        )

    def _is_streamed(self, outcome: Outcome) -> bool:
        """True if the run's stream is opened as soon as its ids are committed."""
        followed = outcome.state is State.RUNNING and outcome.columns.get("chat_id") is not None
        return followed and self._tools.settings.follow.mode != "poll"

    async def _put_back(self, job: Job, why: str) -> Job | None:
        """Queue a job again of which surely nothing was sent, if it still is ours."""
        tools = self._tools
        verb = partial(
            attempt.put_back,
            grip=Grip.of(job),
            why=f"nothing was sent: {why}",
            backoff_s=tools.submit_wait.seconds(job.deferrals + 1),
            by=tools.who.worker_id,
        )
        try:
            return await tools.commit(Act.PUT_BACK, verb, job_id=job.id, urgent=True)
        except LeaseLost:
            return None


class _Sending:
    """One submission under way: marks it, and knows the job as the mark left it."""

    def __init__(
        self, *, tools: Tools, heartbeat: Heartbeat, job: Job, body: dict[str, Any]
    ) -> None:
        self.job = job
        self._tools = tools
        self._heartbeat = heartbeat
        self._body = body

    async def mark(self) -> bool:
        """Commit that the request begins to go out; False if it may not.

        A worker that could not beat for long may have been declared dead meanwhile: it does not
        send either, and its job is put back.
        """
        tools = self._tools
        began = tools.clock.boottime()
        marking = Marking(job=self.job, body=self._body, by=tools.who.worker_id)
        verb = Joint(attempt.mark_each, marking)
        try:
            self.job = await tools.write(Act.MARK, verb, job_id=self.job.id, urgent=True)
        except LeaseLost as error:
            tools.log.info("submit.withheld", job_id=self.job.id, reason=str(error))
            return False
        if not self._heartbeat.may_act:
            tools.log.warning("submit.withheld", job_id=self.job.id, reason="no good heartbeat")
            return False
        if tools.clock.boottime() - began > STALE_CONNECTION_S:
            tools.log.warning("submit.withheld", job_id=self.job.id, reason="a mark took too long")
            return False
        return True


def _ids(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in outcome.columns.items() if name.endswith("_id")}


def _kept(answer: Generated, outcome: Outcome) -> list[Message]:
    """The whole answer of the synchronous endpoint, as the one message of its job."""
    text = outcome.columns.get("result_text") or ""
    return [Message(0, None, "assistant", text, answer.body, "generate")]
