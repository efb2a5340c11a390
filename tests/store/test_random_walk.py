"""Random walks of several workers and a person over a few jobs, with writers that come too late.

Meanwhile somebody sets the database's clock, by up to an hour forward and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
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
from sqlalchemy import Connection, select

from orchestrator.decide import Policy, after_death, in_doubt, internal, may_retry, rejected
from orchestrator.errors import LeaseLost, NotAllowed
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.request import job_values
from orchestrator.states import CLAIMED, ErrorKind, OnInDoubt, State
from orchestrator.store import sqlite
from orchestrator.store.schema import jobs
from orchestrator.store.verbs import attempt, claim, crew, due, look, outcomes, people, streams
from orchestrator.store.verbs.attempt import Marking
from orchestrator.store.verbs.crew import Identity, Peer
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.outcomes import Applied
from orchestrator.store.verbs.streams import Saving, Segment

from . import promises
from .desk import DONE, FAILED, Desk, accepted, who
from .settable import SettableClock

T = TypeVar("T")
P = ParamSpec("P")

WORKERS = ("w1", "w2", "w3")
POLICY = Policy(OnInDoubt.HOLD)
DEFERRED = Outcome(State.QUEUED, "submit.deferred", error="429", defer=True, refund=True)
NOT_SENT = Outcome(State.QUEUED, "submit.not_sent", error="refused", defer=True)
REMOTELY_FAILED = dataclasses.replace(FAILED, columns={"run_status": "failed"})
KEPT = [Message(0, "m", "assistant", "text", {"id": "m"}, "server")]

STEPS_S = (-3600, -301, -1, 1, 301, 3600)
"""By how much the database's clock is set; 300 s is what the policy `resubmit` waits."""

workers = st.sampled_from(WORKERS)
numbers = st.integers(0, 2)


def named(worker: str) -> Identity:
    return Identity(worker, "host", None, None, 1, None, "0")


def adopt_run(connection: Connection, job_id: int) -> Job:
    return people.adopt_run(connection, job_id, run_id="r", chat_id="c", session_id="s")


def adopt_ended(connection: Connection, job_id: int) -> Job:
    return people.adopt_ended(connection, job_id, DONE, KEPT, chat_id="c", session_id="s")


RESOLUTIONS = (people.resubmit, people.give_up, adopt_run, adopt_ended)


def mark(connection: Connection, seen: Job, by: str) -> Job:
    return attempt.mark_each(connection, [Marking(job=seen, body={}, by=by)])[0]


def apply(
    connection: Connection, seen: Job, outcome: Outcome, kept: Sequence[Message] | None = None
) -> Job:
    applied = Applied(job=seen, outcome=outcome, by=seen.worker_id or "", kept=kept)
    return outcomes.apply_each(connection, [applied])[0]


def checkpoint(connection: Connection, seen: Job, segment: Segment) -> Job:
    saving = Saving(job=seen, segment=segment, followed_s=1.0, quiet_s=0.0)
    streams.checkpoint_each(connection, [saving])
    return look.load(connection, seen.id)


class Walk(RuleBasedStateMachine):
    """`held` are the jobs as workers last saw them; most of them are out of date."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self.connection = desk.engine.connect().execution_options(**{sqlite.WRITE: True})
        self.transaction = self.connection.begin()
        self.clock = SettableClock(self.connection)
        self.jobs: dict[int, Job] = {}
        """The jobs as they stood after the last rule."""
        self.held: list[Job] = []
        self.beats = dict.fromkeys(WORKERS, 0)
        self.looks: dict[str, tuple[list[Peer], dict[str, int]]] = {}
        """What a worker saw of the others, and how often each had beaten then."""
        self.dead: set[str] = set()

    def teardown(self) -> None:
        self.transaction.rollback()
        self.connection.close()

    @rule(seconds=st.sampled_from(STEPS_S))
    def step_the_clock(self, seconds: int) -> None:
        self.clock.step(seconds)

    @initialize(
        wishes=st.lists(
            st.fixed_dictionaries(
                {
                    "max_attempts": st.integers(1, 3),
                    "on_in_doubt": st.sampled_from([None, *OnInDoubt]),
                    "priority": st.integers(0, 1),
                    "expires_in_s": st.sampled_from([None, None, 600]),
                    "start": st.sampled_from(["queued", "sent", "running", "in doubt"]),
                }
            ),
            min_size=1,
            max_size=3,
        )
    )
    def begin(self, wishes: list[dict[str, Any]]) -> None:
        for worker in WORKERS:
            self.do(crew.register, named(worker), who(worker))
        # Those that stay queued come last: each other one is the only one that can be claimed.
        for wish in sorted(wishes, key=lambda wish: wish["start"] == "queued"):
            start, expires_in_s = wish.pop("start"), wish.pop("expires_in_s")
            if expires_in_s is not None:
                wish["expires_at"] = datetime.now(UTC) + timedelta(seconds=expires_in_s)
            self.do(enqueue_many, [job_values({"prompt": "x", **wish})])
            if start != "queued":
                self.bring(start)

    def bring(self, start: str) -> None:
        """Bring the queued job to where a walk of its own would seldom come."""
        self.held += self.do(claim.claim, who("w1"), 1)
        self.held.append(self.do(mark, self.held[-1], "w1"))
        sent = self.held[-1]
        match start:
            case "running":
                self.held.append(self.do(outcomes.apply, Grip.of(sent), accepted(sent.id)))
            case "in doubt":
                lost = in_doubt("lost", POLICY.of(sent))
                self.held.append(self.do(outcomes.apply, Grip.of(sent), lost))

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
        now = self.jobs[seen.id]
        fits = (now.lease, now.state) == (seen.lease, seen.state) and allowed
        try:
            self.held.append(self.do(verb))
        except LeaseLost:
            assert not fits
            assert self.load(seen.id) == now
        else:
            assert fits

    def by_person(self, job_id: int, state_fits: bool, verb: Callable[[Connection], Job]) -> None:
        now = self.jobs[job_id]
        try:
            self.do(verb)
        except NotAllowed:
            assert not state_fits
            assert self.load(job_id) == now
        else:
            assert state_fits

    def job(self, number: int) -> Job:
        return list(self.jobs.values())[number % len(self.jobs)]

    # --- what workers do ----------------------------------------------------------------------

    @rule(worker=workers, limit=st.integers(1, 2), earlier_s=st.sampled_from((0, 0, 0, 3600)))
    def claim(self, worker: str, limit: int, earlier_s: int) -> None:
        self.clock.step(-earlier_s)
        before = self.clock.read()
        taken = self.do(claim.claim, who(worker), limit)
        after = self.clock.read()
        assert all(job.worker_id == worker for job in taken)
        assert all(self.jobs[job.id].available_at <= after for job in taken)
        left = self.jobs.keys() - {job.id for job in taken}
        assert len(taken) == limit or not [
            job
            for job in map(self.jobs.get, left)
            if job is not None
            and (job.state, job.cancel_requested_at) == (State.QUEUED, None)
            and job.available_at <= before
            and (job.expires_at is None or job.expires_at > after)
        ]
        self.held += taken

    @precondition(lambda self: self.held)
    @rule(data=st.data(), late=st.integers(0, 3), times=st.integers(1, 3))
    def act(self, data: st.DataObject, late: int, times: int) -> None:
        """Do something to jobs as workers saw them, which often still are as they saw them."""
        for _ in range(times):
            current = [seen for seen in self.held if self.jobs[seen.id] == seen]
            seen = data.draw(st.sampled_from(current if current and late < 3 else self.held[-20:]))
            data.draw(st.sampled_from(self.acts(seen)))(seen)
            self.every_promise_holds()

    def acts(self, seen: Job) -> list[Callable[[Job], None]]:
        """What a worker does with a job that it sees so; what is common stands more than once."""
        match seen.state, seen.sent_at:
            case State.SUBMITTING, None:
                return [self.mark, self.mark, self.mark, self.put_back, self.not_sent, self.err]
            case State.SUBMITTING, _:
                common = [self.accept, self.accept, self.accept, self.lose_the_answer]
                rare = [self.answer_late, self.refuse, self.put_back, self.defer, self.generate]
                return [*common, *rare, self.err]
            case State.RUNNING, _:
                common = [self.checkpoint, self.checkpoint, self.complete, self.fail]
                return [*common, self.release, self.err]
        return [self.answer_late]

    def mark(self, seen: Job) -> None:
        now = self.jobs[seen.id]
        self.by_holder(
            seen,
            lambda c: mark(c, seen, seen.worker_id or ""),
            allowed=now.sent_at is None and now.cancel_requested_at is None,
        )

    def put_back(self, seen: Job) -> None:
        self.by_holder(
            seen,
            lambda c: attempt.put_back(c, Grip.of(seen), why="no route", backoff_s=60.0, by="w"),
        )

    def apply(self, seen: Job, outcome: Outcome) -> None:
        if outcome.state is State.RUNNING or outcome.state.settled:
            self.by_holder(seen, lambda c: apply(c, seen, outcome))
        else:
            self.by_holder(seen, lambda c: outcomes.apply(c, Grip.of(seen), outcome))

    def not_sent(self, seen: Job) -> None:
        if self.jobs[seen.id].sent_at is None:  # a worker knows of its own mark
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
        if may_retry(seen, outcome):
            self.by_holder(
                seen,
                lambda c: outcomes.settle(c, Grip.of(seen), outcome, KEPT, retry_after_s=0.0),
            )
        else:
            self.by_holder(seen, lambda c: apply(c, seen, outcome, KEPT))

    def checkpoint(self, seen: Job) -> None:
        saved = streams.segments(self.connection, seen.id, seen.attempt)
        first = sum(len(segment.chunks) for segment in saved)
        segment = Segment(first, [{"n": first}])
        self.by_holder(
            seen,
            lambda c: checkpoint(c, seen, segment),
        )

    def release(self, seen: Job) -> None:
        self.by_holder(seen, lambda c: crew.release(c, Grip.of(seen), "w"))

    def err(self, seen: Job) -> None:
        """Fail at a job by a fault of our own."""
        now = self.jobs[seen.id]
        fault = internal(RuntimeError("x"))
        try:
            self.do(crew.mend_own, job_id=seen.id, lease=seen.lease, decide=lambda _: fault, by="w")
        except LeaseLost:
            assert now.lease != seen.lease or now.state not in CLAIMED
        else:
            assert now.lease == seen.lease

    def answer_late(self, seen: Job) -> None:
        now, before = self.jobs[seen.id], look.events(self.connection, seen.id)
        answer = accepted(seen.id * 100 + seen.attempt)
        self.do(attempt.keep_late_answer, seen.id, seen.attempt, answer, "w")
        repairs = now.state is State.IN_DOUBT and now.attempt == seen.attempt
        assert (self.load(seen.id) != now) == repairs
        after = look.events(self.connection, seen.id, after_id=before[-1].id)
        assert after[0].event == "submit.late_answer"

    @rule(worker=workers)
    def beat(self, worker: str) -> None:
        """Prove life: a worker that was declared dead hears of it, whatever the clock says."""
        known = self.do(crew.prove_life, named(worker), who(worker))
        assert known == (worker not in self.dead)
        self.beats[worker] += 1
        self.dead.discard(worker)

    @rule(worker=workers)
    def look_around(self, worker: str) -> None:
        """See how the others stand, and stall: what is done about it comes later."""
        self.looks[worker] = (self.do(crew.peers), dict(self.beats))

    @rule(worker=workers, silent=st.sets(workers, max_size=2))
    def rescue(self, worker: str, silent: set[str]) -> None:
        self.beat(worker)
        if worker not in self.looks:
            self.look_around(worker)
        peers, beats = self.looks.pop(worker)
        gone = [peer for peer in peers if peer.identity.worker_id in silent - {worker}]
        adopted, mended = self.do(
            crew.rescue, who(worker), gone, lambda job: after_death(job, POLICY.of(job))
        )
        names = {peer.identity.worker_id for peer in gone}
        self.dead |= {name for name in names if self.beats[name] == beats[name]}
        living = {peer.identity.worker_id for peer in self.do(crew.peers)}
        assert living == set(WORKERS) - self.dead
        assert all(job.worker_id == worker for job in adopted)
        assert all(job.state not in CLAIMED for job in mended)
        assert crew.abandoned(self.connection) == []
        self.held += adopted

    @rule(later_s=st.sampled_from((0, 301, 3600)))
    def sweep(self, later_s: int) -> None:
        self.clock.step(later_s)
        assert all(job.state is State.CANCELLED for job in self.do(people.sweep_cancelled))
        assert all(job.resubmits == 1 for job in self.do(people.due_resubmits))
        assert all(job.error_kind is ErrorKind.EXPIRED for job in self.do(due.expire))
        assert not due.waiting(self.connection, who()).sweep

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

    @invariant()
    def every_promise_holds(self) -> None:
        """One query for each table, and not for each job, keeps thousands of steps cheap."""
        rows = self.connection.execute(select(jobs).order_by(jobs.c.id)).mappings()
        self.jobs = {row["id"]: Job.from_row(row) for row in rows}
        promises.each_row_is_consistent(self.connection, self.jobs)
        promises.the_log_tells_every_move_and_only_legal_ones(self.connection, self.jobs)
        promises.what_belongs_to_attempts_stays_with_them(self.connection)
        self.a_job_has_one_holder_at_most()

    def a_job_has_one_holder_at_most(self) -> None:
        for seen in self.held:
            now = self.jobs[seen.id]
            if (seen.lease, seen.state) == (now.lease, now.state):
                assert seen.worker_id == now.worker_id


def test_random_walks_keep_every_promise(desk: Desk) -> None:
    class HereWalk(Walk):
        def __init__(self) -> None:
            super().__init__(desk)

    run_state_machine_as_test(
        HereWalk,
        settings=settings(
            # On PostgreSQL a step costs three times as much, and the verbs are the same.
            max_examples=45 if desk.engine.dialect.name == "sqlite" else 20,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
