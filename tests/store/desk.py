"""A database of a test, and short words for what tests do with jobs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, select, text, update

from orchestrator.decide import Policy, in_doubt
from orchestrator.job import Event, Job
from orchestrator.outcome import Outcome
from orchestrator.request import job_values
from orchestrator.states import ErrorKind, OnInDoubt, State
from orchestrator.store import sqlite
from orchestrator.store.schema import jobs
from orchestrator.store.verbs import attempt, claim, crew, look, outcomes, people, streams
from orchestrator.store.verbs.attempt import Marking
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.crew import Identity
from orchestrator.store.verbs.enqueue import OnConflict, enqueue_many
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.streams import Closing, Place, Saving, Segment

T = TypeVar("T")
P = ParamSpec("P")

ORIGIN, KEY = "https://api.example", "k1"
HOLD = Policy(OnInDoubt.HOLD)

DONE = Outcome(State.COMPLETED, "run.completed", columns={"result_text": "done"})
FAILED = Outcome(State.FAILED, "run.run_failed", ErrorKind.RUN_FAILED, "it failed")
DOUBT = in_doubt("the answer was lost", HOLD)


def who(worker: str = "w1", *, queues: tuple[str, ...] = (), key: str = KEY) -> Claimant:
    return Claimant(worker, ORIGIN, key, queues)


def identity(worker: str, pid: int = 1) -> Identity:
    return Identity(worker, "host", "boot", "pidns", pid, "1", "0")


def accepted(number: int = 1) -> Outcome:
    return Outcome(
        State.RUNNING,
        "submit.accepted",
        http_status=202,
        columns={
            "run_id": f"wrun_{number}",
            "chat_id": f"chat-{number}",
            "session_id": f"session-{number}",
        },
    )


class Desk:
    """Runs each verb in a transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(**{sqlite.WRITE: True})
        self._numbers = itertools.count(1)

    def write(
        self, verb: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._writing.begin() as connection:
            return verb(connection, *args, **kwargs)

    def read(
        self, verb: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self.engine.begin() as connection:
            return verb(connection, *args, **kwargs)

    def sql(self, statement: str, **values: Any) -> None:
        self.write(lambda connection: connection.execute(text(statement), values))

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        return self.read(look.rows, query, values)

    # --- jobs ---------------------------------------------------------------------------------

    def enqueue(self, prompt: str | None = "hello", **options: Any) -> Job:
        messages = options.get("messages")
        row = job_values({**options, "prompt": None if messages else prompt})
        return self.get(self.write(enqueue_many, [row])[0].id)

    def enqueue_all(
        self, *rows: dict[str, Any], on_conflict: OnConflict = OnConflict.RETURN
    ) -> list[tuple[int, bool]]:
        checked = [job_values({"prompt": "hello", **row}) for row in rows]
        return [(done.id, done.created) for done in self.write(enqueue_many, checked, on_conflict)]

    def get(self, job_id: int) -> Job:
        return self.read(look.load, job_id)

    def age(self, job_id: int, **seconds: float) -> Job:
        """Move times of a job's row into the past by so many seconds each."""

        def shift(connection: Connection) -> None:
            columns = [jobs.c[name] for name in seconds]
            row = connection.execute(select(*columns).where(jobs.c.id == job_id)).one()
            moved: dict[str, datetime] = {
                name: value - timedelta(seconds=seconds[name])
                for name, value in zip(seconds, row, strict=True)
            }
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(moved))

        self.write(shift)
        return self.get(job_id)

    def event_names(self, job_id: int) -> list[str]:
        return [event.event for event in self.events(job_id)]

    def events(self, job_id: int) -> list[Event]:
        return self.read(look.events, job_id)

    # --- a worker's acts ----------------------------------------------------------------------

    def start(self, worker: str = "w1", *, pid: int = 1, key: str = KEY) -> Claimant:
        claimant = who(worker, key=key)
        self.write(crew.register, identity(worker, pid), claimant)
        return claimant

    def beat(self, worker: str = "w1") -> bool:
        return self.write(crew.prove_life, identity(worker), who(worker))

    def claim(self, worker: str = "w1", limit: int = 10, **options: Any) -> list[Job]:
        return self.write(claim.claim, who(worker, **options), limit)

    def mark(self, job: Job) -> Job:
        marking = Marking(job=job, body={"prompt": job.prompt}, by=job.worker_id or "?")
        return self.write(attempt.mark_each, [marking])[0]

    def checkpoint(
        self, job: Job, segment: Segment, *, followed_s: float = 0.0, quiet_s: float = 0.0
    ) -> Job:
        saving = Saving(job=job, segment=segment, followed_s=followed_s, quiet_s=quiet_s)
        self.write(streams.checkpoint_each, [saving])
        return self.get(job.id)

    def open_stream(self, job: Job) -> Place:
        return self.write(streams.open_each, [job])[0]

    def try_stream(self, job: Job, *, trials: int) -> bool:
        """Whether a stream of the job may be opened while leaving one is on trial."""
        place = self.write(streams.open_if_safe, job, api_origin=ORIGIN, trials=trials)
        return place is Place.TAKEN

    def close_stream(self, job: Job, *, left: bool = False) -> Job:
        self.write(streams.close_each, [Closing(job=job, left=left)])
        return self.get(job.id)

    def apply(self, job: Job, outcome: Outcome, **options: Any) -> Job:
        return self.write(outcomes.apply, Grip.of(job), outcome, **options)

    # --- jobs in a state ----------------------------------------------------------------------

    def submitting(self, **options: Any) -> Job:
        job = self.enqueue(**options)
        return next(taken for taken in self.claim(limit=1000) if taken.id == job.id)

    def sent(self, **options: Any) -> Job:
        return self.mark(self.submitting(**options))

    def running(self, **options: Any) -> Job:
        return self.apply(self.sent(**options), accepted(next(self._numbers)))

    def doubtful(self, **options: Any) -> Job:
        return self.apply(self.sent(**options), DOUBT)

    def completed(self, **options: Any) -> Job:
        return self.apply(self.running(**options), DONE)

    def failed(self, **options: Any) -> Job:
        return self.apply(self.running(**options), FAILED)

    def cancelled(self, **options: Any) -> Job:
        return self.write(people.cancel, self.enqueue(**options).id)

    def one_in(self, state: State, **options: Any) -> Job:
        """Return a job in `state`, on the way that jobs usually take there."""
        ways: dict[State, Callable[..., Job]] = {
            State.QUEUED: self.enqueue,
            State.SUBMITTING: self.submitting,
            State.IN_DOUBT: self.doubtful,
            State.RUNNING: self.running,
            State.COMPLETED: self.completed,
            State.FAILED: self.failed,
            State.CANCELLED: self.cancelled,
        }
        return ways[state](**options)
