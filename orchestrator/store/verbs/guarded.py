"""The one function that writes to `jobs` once a job exists.

Every change of a job names the lease and the state that the writer believes in, and checks that
it hit the row. A worker that lost its lease therefore changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    Update,
    and_,
    bindparam,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from orchestrator.errors import LeaseLost, NotAllowed, NotFound
from orchestrator.job import Job
from orchestrator.states import TRANSITIONS, ErrorKind, State, kinds_of
from orchestrator.store.rows import Kinds, Row, insert_rows, parameters, told
from orchestrator.store.schema import job_events, jobs
from orchestrator.store.types import db_now


@dataclass(frozen=True, slots=True)
class Grip:
    """What a writer believes of a job: the fence of every write.

    `lease` is the fencing number that the writer was given or has just read.
    """

    job_id: int
    lease: int
    state: State

    @classmethod
    def of(cls, job: Job) -> Grip:
        """The grip that a job as read gives."""
        return cls(job.id, job.lease, job.state)


def write(
    connection: Connection,
    grip: Grip,
    values: Mapping[str, Any],
    *,
    to: State | None = None,
    event: str | None = None,
    detail: Mapping[str, Any] | None = None,
    only_if: ColumnElement[bool] | None = None,
    seize: bool = False,
    by: str | None = None,
) -> Job:
    """Change one job, if it still is as `grip` says, and return it as it then stands.

    The arguments are those of `write_all`. Raises LeaseLost if no row was hit; nothing is written
    then.
    """
    written = write_all(
        connection,
        [grip],
        values,
        to=to,
        event=event,
        detail=detail,
        only_if=only_if,
        seize=seize,
        by=by,
    )
    if not written:
        raise LeaseLost(
            f"job {grip.job_id} is not {grip.state.value} under lease {grip.lease} any more"
        )
    return written[0]


def write_all(
    connection: Connection,
    grips: Sequence[Grip],
    values: Mapping[str, Any],
    *,
    to: State | None = None,
    event: str | None = None,
    detail: Mapping[str, Any] | None = None,
    only_if: ColumnElement[bool] | None = None,
    seize: bool = False,
    by: str | None = None,
) -> list[Job]:
    """Change those of the jobs that still are as their grips say, and return them in that order.

    All grips are of one state. `to` moves the jobs to another (or names the same one to keep it);
    `event` appends to `job_events` in the same transaction, and must be given with a move.
    `seize` raises the lease, so that whoever held a job before can write no more. `by` is the
    acting worker's id.
    """
    if not grips:
        return []
    if any(grip.state is not grips[0].state for grip in grips):
        raise AssertionError("jobs that are written together are in one state")
    came_from = grips[0].state
    changes = {**values, **moving(came_from, to, values, event)}
    sql = {name: value for name, value in changes.items() if isinstance(value, ClauseElement)}
    plain = {name: value for name, value in changes.items() if name not in sql}
    names, dialect = tuple(sorted(plain)), connection.dialect.name
    several = dialect if len(grips) > 1 else None
    statement = _update(came_from, names, only_if, several=several, seize=seize)
    if sql:
        statement = statement.values(sql)
    hit: dict[int, Job] = {}
    for which in _which(dialect, grips):
        rows = connection.execute(statement, {**which, **bound(plain)}).mappings()
        hit.update({row["id"]: Job.from_row(row) for row in rows})
    written = [hit[grip.job_id] for grip in grips if grip.job_id in hit]
    if event is not None:
        record_all(connection, written, event, came_from=came_from, detail=detail, by=by)
    return written


def fenced(
    held_as_believed: ColumnElement[bool], came_from: State, only_if: ColumnElement[bool] | None
) -> Update:
    """The one UPDATE of `jobs`: of those under the leases that their writers name, in one state."""
    # IS TRUE: few jobs are in such a state, by the statistics, and a planner that went for them
    # by the index of states would read the entry of each job that was in it since a vacuum.
    fence = and_(held_as_believed, (jobs.c.state == came_from.value).is_(true()))
    return update(jobs).where(fence if only_if is None else and_(fence, only_if))


def moving(
    came_from: State, to: State | None, changes: Mapping[str, Any], event: str | None
) -> dict[str, Any]:
    """The columns of a move, which is checked; none where the state stays."""
    if to is None or to is came_from:
        return {}
    _check_move(came_from, to, changes, event)
    return {"state": to.value} if kinds_of(to) else {"state": to.value, "error_kind": None}


@lru_cache(maxsize=128)
def _update(
    came_from: State,
    names: tuple[str, ...],
    only_if: ColumnElement[bool] | None,
    *,
    several: str | None,
    seize: bool,
) -> ReturningUpdate[Any]:
    """The statement for changes of these columns: to make it costs more than to run it.

    It is for one job, or for `several` in that dialect.
    """
    row = Row.of_parameters(HELD) if several is None else Row.of_list(several, HELD)
    statement = fenced(held_as(row), came_from, only_if).values(values_of(names))
    if seize:
        statement = statement.values(lease=jobs.c.lease + 1)
    return statement.values(updated_at=db_now()).returning(*jobs.c)


def values_of(names: Iterable[str]) -> dict[str, BindParameter[Any]]:
    """What an UPDATE of `jobs` sets these columns to; `bound` gives the values themselves."""
    return {name: bindparam(f"to_{name}", type_=jobs.c[name].type) for name in names}


def bound(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `values_of`."""
    return {f"to_{name}": value for name, value in values.items()}


HELD: Kinds = {"id": jobs.c.id.type, "lease": jobs.c.lease.type}
"""What a row tells of a job that is to be written."""


def held_as(row: Row) -> ColumnElement[bool]:
    """The fence of a job: its id, and the lease under which it is held, as a row says."""
    return and_(jobs.c.id == row.key("id"), jobs.c.lease == row.c["lease"])


def _which(dialect: str, grips: Sequence[Grip]) -> Iterable[dict[str, Any]]:
    """The parameters of the fence."""
    if len(grips) == 1:
        return [parameters(HELD, (grips[0].job_id, grips[0].lease))]
    held = [[grip.job_id for grip in grips], [grip.lease for grip in grips]]
    return told(dialect, HELD, held)


def held(connection: Connection, job_id: int) -> Job:
    """Return a job that a worker believes to hold, locked until the transaction ends.

    What is decided about it must not miss a mark that commits meanwhile: lease and state would
    still fit. Raises LeaseLost if its row is gone.
    """
    statement = select(jobs).where(jobs.c.id == job_id).with_for_update()
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise LeaseLost(f"the row of job {job_id} is gone")
    return Job.from_row(row)


def each_that_still_fits(verbs: Iterable[Callable[[], Job]]) -> list[Job]:
    """Run each verb and return the jobs; one that another worker was faster at is left out.

    The verbs name rows that were read a moment ago: two workers may see the same ones.
    """
    done: list[Job] = []
    for verb in verbs:
        with suppress(LeaseLost, NotAllowed, NotFound):
            done.append(verb())
    return done


def record(
    connection: Connection,
    job: Job,
    event: str,
    *,
    came_from: State | None = None,
    detail: Mapping[str, Any] | None = None,
    by: str | None = None,
) -> None:
    """Append an event to a job's log, in the same transaction as what it tells of."""
    record_all(connection, [job], event, came_from=came_from, detail=detail, by=by)


def record_all(
    connection: Connection,
    changed: Sequence[Job],
    event: str,
    *,
    came_from: State | None = None,
    detail: Mapping[str, Any] | None = None,
    by: str | None = None,
) -> None:
    """Append the same event to the log of each job that was just written, in one statement."""
    if not changed:
        return
    shared = {
        "event": event,
        "from_state": came_from.value if came_from else None,
        "worker_id": by,
        "detail": dict(detail) if detail else None,
    }
    rows = [
        {
            **shared,
            "job_id": job.id,
            "at": job.updated_at,
            "to_state": job.state.value,
            "attempt": job.attempt,
            "lease": job.lease,
        }
        for job in changed
    ]
    insert_rows(connection, job_events, rows)


def append(connection: Connection, **values: Any) -> None:
    """Append a row to `job_events`; it needs no lease, since it changes nothing."""
    connection.execute(_LOG_NOW, values)


_LOG_NOW = insert(job_events).values(at=db_now())


def _check_move(come_from: State, to: State, changes: Mapping[str, Any], event: str | None) -> None:
    """Refuse what the transition table does not know: a fault of this program."""
    if to not in TRANSITIONS[come_from]:
        raise AssertionError(f"no job goes from {come_from.value} to {to.value}")
    if event is None:
        raise AssertionError(f"a move to {to.value} needs an event")
    kinds = kinds_of(to)
    if kinds and ErrorKind(changes["error_kind"]) not in kinds:
        raise AssertionError(f"{changes['error_kind']} is no kind of {to.value}")
