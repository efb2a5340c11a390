"""What becomes of a job, as a value: decisions give it, the store applies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from orchestrator.states import ErrorKind, State


class Signal(StrEnum):
    """What an answer says about the API as a whole; the gate counts these."""

    ACCEPTED = "accepted"
    UNAUTHORIZED = "unauthorized"
    PAYMENT_REQUIRED = "payment_required"
    WRONG_HOST = "wrong_host"
    AMBIGUOUS = "ambiguous"
    UNREACHED = "unreached"
    REFUSED = "refused"
    """The API refused one request in its own words: it is there, and judges."""
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a job.

    `defer` (only with `queued`) asks for a back-off, of `retry_after` seconds where the server
    named them. `refund` gives the attempt's number back: the server said that nothing started.
    `columns` are further columns to write.
    """

    state: State
    event: str
    error_kind: ErrorKind | None = None
    error: str | None = None
    http_status: int | None = None
    columns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    defer: bool = False
    retry_after: float | None = None
    refund: bool = False
    resubmit_after: float | None = None
    signal: Signal = Signal.NEUTRAL
