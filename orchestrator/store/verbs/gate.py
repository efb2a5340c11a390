"""The gate's row: one for each API origin and key, shared by all workers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from orchestrator.store.schema import gates, workers
from orchestrator.store.types import db_now
from orchestrator.store.verbs.claimant import Claimant


class Reason(StrEnum):
    """Why a gate is closed."""

    UNAUTHORIZED = "unauthorized"
    PAYMENT_REQUIRED = "payment_required"
    OUTAGE = "outage"
    WRONG_HOST = "wrong_host"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate as it stands. `suspected_at`: a first 401 came, and a second look is due."""

    api_origin: str
    key_fingerprint: str
    closed_at: datetime | None
    reason: Reason | None
    detail: str | None
    suspected_at: datetime | None
    next_probe_at: datetime | None
    probes: int
    generation: int
    leaving: str

    @property
    def open(self) -> bool:
        """True while submissions may pass."""
        return self.closed_at is None and self.suspected_at is None


_COLUMNS = (
    gates.c.api_origin,
    gates.c.key_fingerprint,
    gates.c.closed_at,
    gates.c.reason,
    gates.c.detail,
    gates.c.suspected_at,
    gates.c.next_probe_at,
    gates.c.probes,
    gates.c.generation,
    gates.c.leaving,
)


def all_gates(connection: Connection) -> list[Gate]:
    """Return every gate."""
    rows = connection.execute(select(*_COLUMNS).order_by(gates.c.api_origin)).mappings()
    return [
        Gate(**{**row, "reason": Reason(row["reason"]) if row["reason"] else None}) for row in rows
    ]


def read(connection: Connection, who: Claimant) -> Gate:
    """Return the gate of an origin and key; one without a row is open."""
    for gate in all_gates(connection):
        if (gate.api_origin, gate.key_fingerprint) == (who.api_origin, who.key_fingerprint):
            return gate
    return Gate(
        api_origin=who.api_origin,
        key_fingerprint=who.key_fingerprint,
        closed_at=None,
        reason=None,
        detail=None,
        suspected_at=None,
        next_probe_at=None,
        probes=0,
        generation=0,
        leaving="unknown",
    )


def suspect(connection: Connection, who: Claimant, *, look_again_s: float) -> None:
    """Hold submissions after a first 401 until a second look, in `look_again_s` seconds."""
    _set(
        connection,
        who,
        {"suspected_at": db_now(), "next_probe_at": db_now(look_again_s), "probes": 0},
        and_(gates.c.closed_at.is_(None), gates.c.suspected_at.is_(None)),
    )


def close(
    connection: Connection, who: Claimant, reason: Reason, detail: str, *, probe_s: float | None
) -> bool:
    """Close the gate, the first probe in `probe_s` seconds (None: only a person opens it).

    Returns True if this call closed it; a gate that is closed already keeps its reason.
    """
    return _set(
        connection,
        who,
        {
            "closed_at": db_now(),
            "reason": reason.value,
            "detail": detail,
            "suspected_at": None,
            "next_probe_at": None if probe_s is None else db_now(probe_s),
            "probes": 0,
            "probing_worker_id": None,
            "probing_until": None,
            "generation": gates.c.generation + 1,
        },
        gates.c.closed_at.is_(None),
    )


def open_gate(
    connection: Connection, who: Claimant, *, by_person: bool = False, seen: int | None = None
) -> bool:
    """Open the gate; True if it was closed or suspected.

    Only a person opens what an operator closed. With `seen`, a generation, a gate that was closed
    anew since stays closed.
    """
    shut = or_(gates.c.closed_at.is_not(None), gates.c.suspected_at.is_not(None))
    if not by_person:
        shut = and_(shut, or_(gates.c.reason.is_(None), gates.c.reason != Reason.OPERATOR.value))
    if seen is not None:
        shut = and_(shut, gates.c.generation == seen)
    return _set(
        connection,
        who,
        {
            "closed_at": None,
            "reason": None,
            "detail": None,
            "suspected_at": None,
            "next_probe_at": None,
            "probes": 0,
            "probing_worker_id": None,
            "probing_until": None,
            "generation": gates.c.generation + 1,
        },
        shut,
    )


def close_by_person(connection: Connection, who: Claimant, detail: str | None) -> None:
    """Close the gate until a person opens it, whatever it was closed for before."""
    open_gate(connection, who, by_person=True)
    close(connection, who, Reason.OPERATOR, detail or "closed by hand", probe_s=None)


def set_leaving(connection: Connection, api_origin: str, leaving: str) -> None:
    """Write down what a trial showed of leaving a stream at an origin: `safe` or `unsafe`."""
    connection.execute(
        update(gates).where(gates.c.api_origin == api_origin).values(leaving=leaving)
    )


def begin_probe(connection: Connection, who: Claimant, *, for_s: float, now: bool = False) -> bool:
    """Take the right to probe for `for_s` seconds, if a probe is due and nobody else has it.

    `now` probes before the time, as a worker does once when it starts. What a worker that has
    stopped, or this one itself, left of a probe hinders nobody.
    """
    others = select(workers.c.id).where(
        workers.c.stopped_at.is_(None), workers.c.id != who.worker_id
    )
    free = or_(
        gates.c.probing_until.is_(None),
        gates.c.probing_until < db_now(),
        gates.c.probing_worker_id.not_in(others),
    )
    due = free if now else and_(free, gates.c.next_probe_at <= db_now())
    automatic = or_(gates.c.reason.is_(None), gates.c.reason != Reason.OPERATOR.value)
    shut = or_(gates.c.closed_at.is_not(None), gates.c.suspected_at.is_not(None))
    return _set(
        connection,
        who,
        {"probing_worker_id": who.worker_id, "probing_until": db_now(for_s)},
        and_(due, shut, automatic),
    )


def end_probe(connection: Connection, who: Claimant, *, next_s: float, detail: str | None) -> None:
    """Give the right to probe back after a failed one; the next is due in `next_s` seconds."""
    values: dict[str, Any] = {
        "probing_worker_id": None,
        "probing_until": None,
        "next_probe_at": db_now(next_s),
        "probes": gates.c.probes + 1,
    }
    if detail is not None:
        values["detail"] = detail
    _set(connection, who, values, gates.c.probing_worker_id == who.worker_id)


def _set(
    connection: Connection,
    who: Claimant,
    values: dict[str, Any],
    only_if: ColumnElement[bool],
) -> bool:
    statement = (
        update(gates)
        .where(
            gates.c.api_origin == who.api_origin,
            gates.c.key_fingerprint == who.key_fingerprint,
            only_if,
        )
        .values(values)
    )
    return connection.execute(statement).rowcount == 1
