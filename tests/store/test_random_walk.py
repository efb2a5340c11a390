"""Random walks of several workers and a person over a few jobs, with writers that come too late."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, select, text

from orchestrator.decide import Policy, after_death, in_doubt, internal, may_retry, rejected
from orchestrator.errors import LeaseLost, NotAllowed
from orchestrator.job import Event, Job, Message
from orchestrator.outcome import Outcome
from orchestrator.request import job_values
from orchestrator.states import CLAIMED, TRANSITIONS, OnInDoubt, State, kinds_of
from orchestrator.store import sqlite
from orchestrator.store.schema import jobs, messages, stream_checkpoints
from orchestrator.store.verbs import attempt, claim, crew, look, outcomes, people
from orchestrator.store.verbs.attempt import Segment
from orchestrator.store.verbs.crew import Identity
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.store.verbs.guarded import Grip

from .desk import DONE, FAILED, Desk, accepted, who

T = TypeVar("T")
P = ParamSpec("P")

WORKERS = ("w1", "w2", "w3")
POLICY = Policy(OnInDoubt.HOLD)
DEFERRED = Outcome(State.QUEUED, "submit.deferred", error="429", defer=True, refund=True)
NOT_SENT = Outcome(State.QUEUED, "submit.not_sent", error="refused", defer=True)
REMOTELY_FAILED = dataclasses.replace(FAILED, columns={"run_status": "failed"})
KEPT = [Message(0, "m", "assistant", "text", {"id": "m"}, "server")]

workers = st.sampled_from(WORKERS)
numbers = st.integers(0, 2)


def adopt_run(connection: Connection, job_id: int) -> Job:
    return people.adopt_run(connection, job_id, run_id="r", chat_id="c", session_id="s")


def adopt_ended(connection: Connection, job_id: int) -> Job:
    return people.adopt_ended(connection, job_id, DONE, KEPT, chat_id="c", session_id="s")


RESOLUTIONS = (people.resubmit, people.give_up, adopt_run, adopt_ended)


class Walk(RuleBasedStateMachine):
    """`held` are the jobs as workers last saw them; most of them are out of date."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.connection = desk.engine.connect().execution_options(**{sqlite.WRITE: True})
        self.transaction = self.connection.begin()
        self.held: list[Job] = []
        self.ids: list[int] = []

    def teardown(self) -> None:
        self.transaction.rollback()
        self.connection.close()

    @initialize(
        wishes=st.lists(
            st.fixed_dictionaries(
                {
                    "max_attempts": st.integers(1, 3),
                    "on_in_doubt": st.sampled_from([None, *OnInDoubt]),
                    "priority": st.integers(0, 1),
                }
            ),
            min_size=1,
            max_size=3,
        )
    )
    def begin(self, wishes: list[dict[str, Any]]) -> None:
        for worker in WORKERS:
            identity = Identity(worker, "host", None, None, 1, None, "0")
            self.do(crew.register, identity, who(worker))
        rows = [job_values({"prompt": "x", **wish}) for wish in wishes]
        self.ids += [done.id for done in self.do(enqueue_many, rows)]

    def do(
        self, verb: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self.connection.begin_nested():
            return verb(self.connection, *args, **kwargs)

    def load(self, job_id: int) -> Job:
        return look.load(self.connection, job_id)

    def by_holder(
        self, seen: Job, verb: Callable[[Connection], Job], *, allowed: bool = True
    ) -> None:
        """Let a worker write by what it last saw: it succeeds exactly if that still holds."""
        now = self.load(seen.id)
        fits = (now.lease, now.state) == (seen.lease, seen.state) and allowed
        try:
            self.held.append(self.do(verb))
        except LeaseLost:
            assert not fits
            assert self.load(seen.id) == now
        else:
            assert fits

    def by_person(self, job_id: int, state_fits: bool, verb: Callable[[Connection], Job]) -> None:
        now = self.load(job_id)
        try:
            self.do(verb)
        except NotAllowed:
            assert not state_fits
            assert self.load(job_id) == now
        else:
            assert state_fits

    def job(self, number: int) -> Job:
        return self.load(self.ids[number % len(self.ids)])

    # --- what workers do ----------------------------------------------------------------------

    @rule(worker=workers, limit=st.integers(1, 2))
    def claim(self, worker: str, limit: int) -> None:
        taken = self.do(claim.claim, who(worker), limit)
        assert all(job.worker_id == worker for job in taken)
        self.held += taken

    @precondition(lambda self: self.held)
    @rule(data=st.data(), late=st.integers(0, 3))
    def act(self, data: st.DataObject, late: int) -> None:
        """Do something to a job as a worker saw it, which often still is as it saw it."""
        now = {job_id: self.load(job_id) for job_id in self.ids}
        current = [seen for seen in self.held if now[seen.id] == seen]
        seen = data.draw(st.sampled_from(current if current and late else self.held[-20:]))
        match seen.state, seen.sent_at:
            case State.SUBMITTING, None:
                acts = [self.mark, self.mark, self.mark, self.put_back, self.not_sent, self.err]
            case State.SUBMITTING, _:
                acts = [self.accept, self.accept, self.accept, self.answer_late]
                acts += [self.lose_the_answer, self.lose_the_answer, self.refuse, self.put_back]
                acts += [self.defer, self.generate, self.err]
            case State.RUNNING, _:
                acts = [self.checkpoint, self.checkpoint, self.complete, self.fail, self.release]
                acts += [self.err]
            case _:
                acts = [self.answer_late]
        data.draw(st.sampled_from(acts))(seen)

    def mark(self, seen: Job) -> None:
        now = self.load(seen.id)
        self.by_holder(
            seen,
            lambda c: attempt.mark(c, Grip.of(seen), {}, seen.worker_id or ""),
            allowed=now.sent_at is None and now.cancel_requested_at is None,
        )

    def put_back(self, seen: Job) -> None:
        self.by_holder(
            seen,
            lambda c: attempt.put_back(c, Grip.of(seen), why="no route", backoff_s=0.0, by="w"),
        )

    def apply(self, seen: Job, outcome: Outcome) -> None:
        self.by_holder(seen, lambda c: outcomes.apply(c, Grip.of(seen), outcome))

    def not_sent(self, seen: Job) -> None:
        if self.load(seen.id).sent_at is None:  # a worker knows of its own mark
            self.apply(seen, NOT_SENT)

    def accept(self, seen: Job) -> None:
        self.apply(seen, accepted(seen.id * 100 + seen.attempt))

    def refuse(self, seen: Job) -> None:
        self.apply(seen, rejected("no"))

    def defer(self, seen: Job) -> None:
        self.apply(seen, DEFERRED)

    def generate(self, seen: Job) -> None:
        self.settle(seen, DONE)

    def lose_the_answer(self, seen: Job) -> None:
        self.apply(seen, in_doubt("lost", POLICY.of(seen)))

    def complete(self, seen: Job) -> None:
        self.settle(seen, DONE)

    def fail(self, seen: Job) -> None:
        self.settle(seen, REMOTELY_FAILED)

    def settle(self, seen: Job, outcome: Outcome) -> None:
        again = 0.0 if may_retry(seen, outcome) else None
        self.by_holder(
            seen,
            lambda c: outcomes.settle(c, Grip.of(seen), outcome, KEPT, retry_after_s=again),
        )

    def checkpoint(self, seen: Job) -> None:
        saved = attempt.segments(self.connection, seen.id, seen.attempt)
        first = sum(len(segment.chunks) for segment in saved)
        segment = Segment(first, [{"n": first}])
        self.by_holder(
            seen,
            lambda c: attempt.checkpoint(c, Grip.of(seen), segment, followed_s=1.0, quiet_s=0.0),
        )

    def release(self, seen: Job) -> None:
        self.by_holder(seen, lambda c: crew.release(c, Grip.of(seen), "w"))

    def err(self, seen: Job) -> None:
        """Fail at a job by a fault of our own."""
        now = self.load(seen.id)
        fault = internal(RuntimeError("x"))
        try:
            self.do(crew.mend_own, job_id=seen.id, lease=seen.lease, decide=lambda _: fault, by="w")
        except LeaseLost:
            assert now.lease != seen.lease or now.state not in CLAIMED
        else:
            assert now.lease == seen.lease

    def answer_late(self, seen: Job) -> None:
        now, before = self.load(seen.id), self.events(seen.id)
        answer = accepted(seen.id * 100 + seen.attempt)
        self.do(attempt.keep_late_answer, seen.id, seen.attempt, answer, "w")
        repairs = now.state is State.IN_DOUBT and now.attempt == seen.attempt
        assert (self.load(seen.id) != now) == repairs
        assert self.events(seen.id)[len(before)].event == "submit.late_answer"

    @rule(worker=workers, dead=st.sets(workers, max_size=2))
    def rescue(self, worker: str, dead: set[str]) -> None:
        identity = Identity(worker, "host", None, None, 1, None, "0")
        self.do(crew.prove_life, identity, who(worker))
        peers = self.do(crew.peers)
        gone = [peer for peer in peers if peer.identity.worker_id in dead - {worker}]
        adopted, mended = self.do(
            crew.rescue, who(worker), gone, lambda job: after_death(job, POLICY.of(job))
        )
        assert all(job.worker_id == worker for job in adopted)
        assert all(job.state not in CLAIMED for job in mended)
        assert crew.abandoned(self.connection) == []
        self.held += adopted

    @rule()
    def sweep(self) -> None:
        self.connection.execute(
            text("UPDATE jobs SET resubmit_at = created_at WHERE resubmit_at IS NOT NULL")
        )
        assert all(job.resubmits == 1 for job in self.do(people.due_resubmits))
        assert all(job.state is State.CANCELLED for job in self.do(people.sweep_cancelled))

    # --- what a person does -------------------------------------------------------------------

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        job = self.job(number)
        self.by_person(job.id, not job.state.settled, lambda c: people.cancel(c, job.id))

    @rule(number=numbers)
    def retry(self, number: int) -> None:
        job = self.job(number)
        self.by_person(job.id, job.state.settled, lambda c: people.retry(c, job.id))

    @rule(number=numbers, verb=st.sampled_from(RESOLUTIONS))
    def resolve(self, number: int, verb: Callable[[Connection, int], Job]) -> None:
        job = self.job(number)
        self.by_person(job.id, job.state is State.IN_DOUBT, lambda c: verb(c, job.id))

    # --- what always holds --------------------------------------------------------------------

    def events(self, job_id: int) -> list[Event]:
        return look.events(self.connection, job_id)

    @invariant()
    def each_row_is_consistent(self) -> None:
        for job_id in self.ids:
            job = self.load(job_id)
            assert (job.finished_at is not None) == job.state.settled
            assert job.error_kind in kinds_of(job.state) or not kinds_of(job.state)
            assert job.error_kind is None or kinds_of(job.state)
            if job.state in (State.QUEUED, State.IN_DOUBT):
                assert job.worker_id is None
            if job.state is State.QUEUED:
                assert (job.sent_at, job.run_id) == (None, None)
            if job.state in (State.IN_DOUBT, State.RUNNING, State.COMPLETED):
                assert job.sent_at is not None
                assert job.attempt >= 1
            archived = [row.attempt for row in look.previous_attempts(self.connection, job_id)]
            newest = job.attempt - 1 if job.sent_at is not None else job.attempt
            assert archived == list(range(1, newest + 1))

    @invariant()
    def the_log_tells_every_move_and_only_legal_ones(self) -> None:
        for job_id in self.ids:
            state, number, lease = None, 0, 0
            for event in self.events(job_id):
                if event.event == "submit.late_answer":
                    assert event.to_state is None
                    continue
                come_from = State(event.from_state) if event.from_state else state
                to = State(event.to_state or "")
                assert state is None or come_from is state
                assert to is come_from or state is None or to in TRANSITIONS[state]
                refunded = event.event in ("submit.deferred", "submit.not_sent")
                step = (event.attempt or 0) - number
                assert step == (1 if event.event == "submit.marked" else 0) or (
                    refunded and step == -1
                )
                assert (event.lease or 0) >= lease
                state, number, lease = to, event.attempt or 0, event.lease or 0
            job = self.load(job_id)
            assert (state, number) == (job.state, job.attempt)

    @invariant()
    def a_job_has_one_holder_at_most(self) -> None:
        for job_id in self.ids:
            now = self.load(job_id)
            holders = {
                seen.worker_id
                for seen in self.held
                if (seen.id, seen.lease, seen.state) == (now.id, now.lease, now.state)
            }
            assert holders <= {now.worker_id}

    @invariant()
    def what_belongs_to_attempts_stays_with_them(self) -> None:
        kept = select(jobs.c.id).join(messages, messages.c.job_id == jobs.c.id)
        assert not self.connection.execute(kept.where(messages.c.attempt > jobs.c.attempt)).all()
        saved = select(jobs.c.id).join(stream_checkpoints, stream_checkpoints.c.job_id == jobs.c.id)
        stray = (jobs.c.state != State.RUNNING.value) | (
            stream_checkpoints.c.attempt != jobs.c.attempt
        )
        assert not self.connection.execute(saved.where(stray)).all()


def test_random_walks_keep_every_promise(desk: Desk) -> None:
    class HereWalk(Walk):
        def __init__(self) -> None:
            super().__init__(desk)

    run_state_machine_as_test(
        HereWalk,
        settings=settings(
            max_examples=45,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
