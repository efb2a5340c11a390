"""The promises, checked when a simulation is over: the database against the server's truth."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from orchestrator.devserver.runs import Run
from orchestrator.job import Event, Job
from orchestrator.states import TRANSITIONS, ErrorKind, OnInDoubt, State, kinds_of
from orchestrator.store.verbs import look

from .database import Database
from .plan import Plan
from .server import SimServer
from .watch import Watch

EVERYONE = "everyone"
"""In place of a worker's name: what went wrong may have struck any of them."""

_END_OF = {
    ErrorKind.RUN_FAILED: "failed",
    ErrorKind.CANCELLED_REMOTELY: "cancelled",
    ErrorKind.CANCELLED_BY_DISCONNECT: "cancelled",
    ErrorKind.MODEL_ERROR: "completed",
    ErrorKind.INCOMPLETE: "completed",
    ErrorKind.NO_OUTPUT: "completed",
    ErrorKind.COLLECT_FAILED: "completed",
}

_STOPPED = (ErrorKind.TIMED_OUT, ErrorKind.STALLED)

_DOUBTS = ("submit.in_doubt",)
_REFUNDED = frozenset({"submit.deferred", "submit.not_sent"})


class Judge:
    """Holds the end of a simulation against the promises."""

    def __init__(
        self,
        *,
        plan: Plan,
        database: Database,
        server: SimServer,
        watch: Watch,
        troubled: set[str],
        decided: Counter[int],
        killed: set[str],
    ) -> None:
        self._plan = plan
        self._database = database
        self._watch = watch
        self._troubled = troubled
        self._decided = decided
        self._killed = killed
        self._checks = (
            self._row,
            self._log,
            self._once,
            self._verdict,
            self._fold,
            self._kept,
            self._known,
            self._doubt,
        )
        self._runs: dict[int, list[Run]] = defaultdict(list)
        for run in server.runs:
            self._runs[int(run.order.prompt.removeprefix("job ").partition(".")[0])].append(run)

    def findings(self) -> Iterator[str]:
        """What is wrong, in sentences."""
        for number in range(1, len(self._plan.jobs) + 1):
            job = self._database.read(look.load, number)
            events = self._database.read(look.events, number)
            for check in self._checks:
                for words in check(job, events):
                    yield f"job {number} ({job.state}): {words}"

    # --- one job ------------------------------------------------------------------------------

    def _row(self, job: Job, _events: list[Event]) -> Iterator[str]:
        if not (job.state.settled or job.state is State.IN_DOUBT):
            yield "it is not settled"
        if (job.finished_at is not None) != job.state.settled:
            yield f"finished_at is {job.finished_at}"
        kinds = kinds_of(job.state)
        if job.error_kind not in kinds if kinds else job.error_kind is not None:
            yield f"error_kind is {job.error_kind}"
        if job.error_kind is ErrorKind.INTERNAL:
            yield f"a fault of the program: {job.error}"
        if job.state is State.COMPLETED and job.run_status not in ("completed", None):
            yield f"run_status is {job.run_status}"

    def _log(self, job: Job, events: list[Event]) -> Iterator[str]:
        """The log tells every move, and only legal ones."""
        state, attempt, lease = State.QUEUED, 0, 0
        for event in events:
            if event.event == "submit.late_answer":
                continue
            came_from = State(event.from_state) if event.from_state else state
            to = State(event.to_state or "")
            if came_from is not state or (to is not state and to not in TRANSITIONS[state]):
                yield f"the log goes from {state} by {event.event} ({event.from_state}) to {to}"
            step = (event.attempt or 0) - attempt
            if step != (event.event == "submit.marked") and not (
                step == -1 and event.event in _REFUNDED
            ):
                yield f"{event.event} moves the attempt by {step}"
            if (event.lease or 0) < lease:
                yield f"{event.event} has lease {event.lease} after {lease}"
            state, attempt, lease = to, event.attempt or 0, event.lease or 0
        if (state, attempt, lease) != (job.state, job.attempt, job.lease):
            yield f"the log ends at {state}, attempt {attempt}, lease {lease}"

    def _once(self, job: Job, events: list[Event]) -> Iterator[str]:
        """Never twice: each further run has its reason."""
        counts = Counter(event.event for event in events)
        retries = [event for event in events if event.event == "job.retried"]
        resubmits = counts["doubt.resubmitted"]
        runs = self._runs[job.id]
        if len(runs) > 1 + len(retries) + resubmits:
            yield f"{len(runs)} runs, after {len(retries)} retries and {resubmits} resubmits"
        if resubmits - self._decided[job.id] > (job.on_in_doubt is OnInDoubt.RESUBMIT):
            yield f"it was resubmitted {resubmits} times"
        ends = {run.order.run_id: run.status for run in runs}
        rows = {row.attempt: row for row in self._database.read(look.previous_attempts, job.id)}
        for event in retries:
            if (event.detail or {}).get("by") == "policy":
                end = ends.get(rows[event.attempt].run_id or "")
                if end not in ("failed", "cancelled"):
                    yield f"the policy began a new attempt after a run that is {end}"

    def _verdict(self, job: Job, events: list[Event]) -> Iterator[str]:
        """What the row says of its run is what the server says, and why it ended so."""
        run = self._run(job)
        if run is None:
            return
        names = {event.event for event in events}
        kind = job.error_kind
        if job.state is State.COMPLETED and run.status != "completed":
            yield f"it completed, and its run is {run.status}"
        if kind in _END_OF and run.status != _END_OF[kind]:
            yield f"it is {kind}, and its run is {run.status}"
        if kind is ErrorKind.RUN_LOST and not names & {"doubt.failed", "submit.in_doubt"}:
            yield f"its run counts as lost, and is {run.status}"
        if kind in (ErrorKind.TIMED_OUT, ErrorKind.STALLED) and not (
            job.run_timeout or job.stall_timeout
        ):
            yield f"it is {kind}, and has no time-out of its own"
        # A run whose chat never showed itself can be told nothing: patience alone ends that.
        if kind in _STOPPED and job.run_status in (None, "running") and "stop.sent" in names:
            yield f"it did not wait for the end of its run, which is {run.status}"
        if kind is ErrorKind.CANCELLED_REMOTELY and "stop.sent" not in names:
            yield "nobody cancelled its run"

    def _run(self, job: Job) -> Run | None:
        return next((run for run in self._runs[job.id] if run.order.run_id == job.run_id), None)

    def _fold(self, job: Job, events: list[Event]) -> Iterator[str]:
        """A stream that was read to its end gave the message that the server keeps."""
        run = self._run(job)
        if run is None or run.script.retry_step or run.script.no_message:
            return  # a step that ran again is twice in the stream
        faults = {act.detail.get("fault") for act in self._plan.acts}
        if faults & {"missing-step", "no-messages", "not-found"}:
            return
        for event in events:
            if event.event == "collect.difference" and run.status == "completed":
                yield f"the fold differs from the stored message: {event.detail}"

    def _kept(self, job: Job, _events: list[Event]) -> Iterator[str]:
        """The exact message."""
        if job.state is not State.COMPLETED:
            return
        run = self._run(job)
        if run is None:
            yield f"it completed with run {job.run_id}, which nobody started"
            return
        if (job.chat_id, job.session_id) != (run.order.chat_id, run.order.session_id):
            yield "its chat or session is another run's"
        rows = self._database.read(look.messages_of, job.id, None)
        if run.message is None and [row.source for row in rows] == ["stream"]:
            return  # the chat could not be read, and what was streamed is all that there is
        kept = [row.message for row in rows]
        truth = [] if run.message is None else [run.message]
        if _canonical(kept) != _canonical(truth):
            yield f"it kept {json.dumps(kept)[:300]}, the server {json.dumps(truth)[:300]}"

    def _known(self, job: Job, events: list[Event]) -> Iterator[str]:
        """Never lost: each run that was accepted is known, or its job was in doubt about it."""
        known = {job.run_id}
        known |= {row.run_id for row in self._database.read(look.previous_attempts, job.id)}
        known |= {(event.detail or {}).get("run_id") for event in events}
        unknown = [run for run in self._runs[job.id] if run.order.run_id not in known]
        doubts = sum(event.event in _DOUBTS for event in events)
        if len(unknown) > doubts:
            yield f"{len(unknown)} runs are not known, after {doubts} doubts"
        for run in unknown:
            learner = self._watch.learned.get(run.order.run_id, "")
            if learner and learner not in self._killed:
                yield f"{learner} learned of run {run.order.run_id}, and it is forgotten"

    def _doubt(self, job: Job, _events: list[Event]) -> Iterator[str]:
        """A job is in doubt only where something went wrong with its request."""
        if job.state is not State.IN_DOUBT:
            return
        posts = [post for post in self._watch.posts.values() if post.job in (job.id, None)]
        holder = self._watch.marked_by.get(job.id, "")
        if not any(post.trouble for post in posts) and not self._troubled & {holder, EVERYONE}:
            yield f"nothing went wrong with its request: {job.error}"


def _canonical(value: Any) -> Any:
    return json.loads(json.dumps(value))
