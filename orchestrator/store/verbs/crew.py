"""Workers as the database sees them: birth, heartbeat, death, and what the dead leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import ColumnElement, Connection, and_, insert, or_, select, update

from orchestrator.errors import ConfigError, LeaseLost
from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.states import CLAIMED, State
from orchestrator.store.schema import gates, is_claimed, jobs, workers
from orchestrator.store.types import db_now
from orchestrator.store.upsert import insert_if_absent
from orchestrator.store.verbs import outcomes
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.guarded import Grip, each_that_still_fits, held, write


@dataclass(frozen=True, slots=True)
class Identity:
    """One start of one process. `process_started` and `boot_id` tell a reused pid apart."""

    worker_id: str
    host: str
    boot_id: str | None
    pid_namespace: str | None
    pid: int
    process_started: str | None
    version: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker's row."""

    identity: Identity
    last_heartbeat_at: datetime
    started_at: datetime
    stopped_at: datetime | None
    silent_s: float
    """Seconds since its last heartbeat, by the database's clock."""


def register(
    connection: Connection, identity: Identity, who: Claimant, *, dead_after: float = 60.0
) -> None:
    """Insert the row of a worker that starts, and the gate's row of its origin and key.

    Raises ConfigError for a SQLite file on which a worker of another machine was heard within
    `dead_after` seconds: SQLite's locks hold within one machine only.
    """
    if connection.dialect.name == "sqlite":
        _refuse_other_machines(connection, identity, dead_after)
    _insert_worker(connection, identity, who)
    ensure_gate(connection, who)


def _refuse_other_machines(connection: Connection, own: Identity, dead_after: float) -> None:
    # After a reboot the host is the same, and between containers of one machine the boot is.
    elsewhere = select(workers.c.host, workers.c.pid).where(
        workers.c.stopped_at.is_(None),
        workers.c.last_heartbeat_at > db_now(-dead_after),
        workers.c.host != own.host,
        workers.c.boot_id != own.boot_id,
    )
    other = connection.execute(elsewhere.limit(1)).first()
    if other is not None:
        raise ConfigError(
            f"database.url: a worker on host {other.host!r} (pid {other.pid}) works on this SQLite "
            "file, and its locks hold within one machine only: stop that worker and wait "
            f"{dead_after:g} s, or use one postgresql:// database for all machines"
        )


def _insert_worker(connection: Connection, identity: Identity, who: Claimant) -> None:
    connection.execute(
        insert(workers).values(
            id=identity.worker_id,
            host=identity.host,
            boot_id=identity.boot_id,
            pid_namespace=identity.pid_namespace,
            pid=identity.pid,
            process_started=identity.process_started,
            version=identity.version,
            api_origin=who.api_origin,
            key_fingerprint=who.key_fingerprint,
            queues=list(who.queues) or None,
            started_at=db_now(),
            last_heartbeat_at=db_now(),
        )
    )


def ensure_gate(connection: Connection, who: Claimant) -> None:
    """Make the gate's row of an origin and key, open, if there is none."""
    insert_if_absent(
        connection,
        gates,
        {
            "api_origin": who.api_origin,
            "key_fingerprint": who.key_fingerprint,
            "probes": 0,
            "generation": 0,
            "leaving": "unknown",
            "breaks_survived": 0,
        },
    )


def prove_life(connection: Connection, identity: Identity, who: Claimant) -> bool:
    """Say that the worker lives; False if it had been declared dead, or its row was deleted.

    Either is taken back: the worker holds no lease by it, and those that it lost stay lost.
    """
    alive = {"last_heartbeat_at": db_now(), "stopped_at": None}
    own = update(workers).where(workers.c.id == identity.worker_id).values(alive)
    if connection.execute(own.where(workers.c.stopped_at.is_(None))).rowcount:
        return True
    if not connection.execute(own).rowcount:
        _insert_worker(connection, identity, who)
    return False


def bury(connection: Connection, worker_id: str) -> None:
    """Write down that a worker has stopped."""
    connection.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.stopped_at.is_(None))
        .values(stopped_at=db_now())
    )


def peers(connection: Connection, *, stopped: bool = False) -> list[Peer]:
    """Return the workers that have not stopped, or with `stopped` all of them, oldest first."""
    statement = select(workers, db_now().label("now")).order_by(workers.c.started_at)
    if not stopped:
        statement = statement.where(workers.c.stopped_at.is_(None))
    return [
        Peer(
            identity=Identity(
                worker_id=row["id"],
                host=row["host"],
                boot_id=row["boot_id"],
                pid_namespace=row["pid_namespace"],
                pid=row["pid"],
                process_started=row["process_started"],
                version=row["version"],
            ),
            last_heartbeat_at=row["last_heartbeat_at"],
            started_at=row["started_at"],
            stopped_at=row["stopped_at"],
            silent_s=(row["now"] - row["last_heartbeat_at"]).total_seconds(),
        )
        for row in connection.execute(statement).mappings()
    ]


def held_by(connection: Connection, worker_id: str) -> list[Job]:
    """Return the jobs that a worker holds, in order of id."""
    statement = select(jobs).where(jobs.c.worker_id == worker_id, is_claimed()).order_by(jobs.c.id)
    return [Job.from_row(row) for row in connection.execute(statement).mappings()]


def cancellations(connection: Connection, worker_id: str) -> list[int]:
    """Return the ids of a worker's jobs whose cancellation was asked for."""
    statement = select(jobs.c.id).where(
        jobs.c.worker_id == worker_id,
        is_claimed(),
        jobs.c.cancel_requested_at.is_not(None),
    )
    return list(connection.execute(statement).scalars())


def abandoned(connection: Connection) -> list[Job]:
    """Return the claimed jobs that nobody holds: of dead workers, of stopped ones, of none.

    Those that another worker is just rescuing are left out.
    """
    statement = select(jobs).where(_is_abandoned()).order_by(jobs.c.id)
    rows = connection.execute(statement.with_for_update(skip_locked=True)).mappings()
    return [Job.from_row(row) for row in rows]


def anything_abandoned(connection: Connection) -> bool:
    """True if there is a claimed job that nobody holds; without a lock, so a hint."""
    return connection.execute(select(jobs.c.id).where(_is_abandoned()).limit(1)).first() is not None


def _is_abandoned() -> ColumnElement[bool]:
    alive = select(workers.c.id).where(workers.c.stopped_at.is_(None))
    return and_(is_claimed(), or_(jobs.c.worker_id.is_(None), jobs.c.worker_id.not_in(alive)))


def rescue(
    connection: Connection,
    who: Claimant,
    dead: Sequence[Peer],
    decide: Callable[[Job], Outcome | None],
) -> tuple[list[Job], list[Job]]:
    """Mend what the dead left, in guarded writes, and return (adopted, mended).

    One of `dead` that has beaten since it was looked at is not dead. `decide` gives the outcome
    of a submission that was cut off, or None for a run to adopt. Runs of another origin or key
    are left to workers that have that key.
    """
    for peer in dead:
        _declare_dead(connection, peer)
    adopted: list[Job] = []
    mended: list[Job] = []
    for job in abandoned(connection):
        outcome = decide(job)
        grip = Grip.of(job)
        if outcome is not None:
            apply = partial(outcomes.apply, connection, grip, outcome, seize=True, by=who.worker_id)
            mended += each_that_still_fits([apply])
        elif (job.api_origin, job.key_fingerprint) == (who.api_origin, who.key_fingerprint):
            adopted += each_that_still_fits([partial(_adopt, connection, who, job)])
    return adopted, mended


def _declare_dead(connection: Connection, peer: Peer) -> None:
    """Write a worker's death down, unless it has proved its life after we looked."""
    connection.execute(
        update(workers)
        .where(
            workers.c.id == peer.identity.worker_id,
            workers.c.last_heartbeat_at == peer.last_heartbeat_at,
            workers.c.stopped_at.is_(None),
        )
        .values(stopped_at=db_now())
    )


def _adopt(connection: Connection, who: Claimant, job: Job) -> Job:
    # A stream that its worker still held when it died was lost then: what the run did about it
    # is still to be learnt, so the place is given back and the moment is kept.
    lost = {"stream_left_at": db_now()} if job.stream_opened_at is not None else {}
    return write(
        connection,
        Grip.of(job),
        {"worker_id": who.worker_id, "stream_opened_at": None, **lost},
        event="run.adopted",
        detail={"from": job.worker_id},
        seize=True,
        by=who.worker_id,
    )


def release(connection: Connection, grip: Grip, by: str) -> Job:
    """Give a running job back for another worker to adopt; its run goes on."""
    if grip.state is not State.RUNNING:
        raise AssertionError("only a running job is released; a submission is decided")
    return write(connection, grip, {"worker_id": None}, event="run.released", seize=True, by=by)


def mend_own(
    connection: Connection,
    *,
    job_id: int,
    lease: int,
    decide: Callable[[Job], Outcome],
    by: str,
) -> Job:
    """Settle a job of ours at which this program failed. Raises LeaseLost if it is ours no more."""
    job = held(connection, job_id)
    if job.lease != lease or job.state not in CLAIMED:
        raise LeaseLost(f"job {job_id} is not held under lease {lease} any more")
    return outcomes.apply(connection, Grip.of(job), decide(job), seize=True, by=by)


def seconds_since(connection: Connection, moment: datetime) -> float:
    """Return the seconds since a time, by the database's clock."""
    now: datetime = connection.execute(select(db_now())).scalar_one()
    return (now - moment).total_seconds()
