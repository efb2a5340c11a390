"""A job as a value: the row of `jobs` that a worker, the API and the command line hand around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from orchestrator.states import Endpoint, ErrorKind, OnInDoubt, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of `jobs`, with the column's names. Times are aware and in UTC, `_s` are seconds."""

    id: int
    queue: str
    priority: int
    batch: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None
    state: State
    endpoint: Endpoint
    prompt: str | None
    input_messages: list[dict[str, Any]] | None
    model: str | None
    artist_id: str | None
    account_id: str | None
    organization_id: str | None
    room_id: str | None
    topic: str | None
    exclude_tools: list[str] | None
    unique_key: str | None
    scheduled_at: datetime | None
    available_at: datetime
    expires_at: datetime | None
    attempt: int
    max_attempts: int
    retry_on: list[str] | None
    on_in_doubt: OnInDoubt | None
    run_timeout: float | None
    stall_timeout: float | None
    lease: int
    deferrals: int
    resubmits: int
    resubmit_at: datetime | None
    request: dict[str, Any] | None
    worker_id: str | None
    api_origin: str | None
    key_fingerprint: str | None
    run_id: str | None
    chat_id: str | None
    session_id: str | None
    run_status: str | None
    error_kind: ErrorKind | None
    error: str | None
    http_status: int | None
    result_text: str | None
    finish_reason: str | None
    model_used: str | None
    input_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    sent_at: datetime | None
    accepted_at: datetime | None
    finished_at: datetime | None
    followed_s: float
    quiet_s: float
    stream_opened_at: datetime | None
    stream_left_at: datetime | None
    created_at: datetime
    cancel_requested_at: datetime | None
    updated_at: datetime

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        """Build a job from a row's mapping; the words of fixed lists become their enums."""
        values = {name: row[name] for name in _FIELDS}
        values["state"] = State(values["state"])
        values["endpoint"] = Endpoint(values["endpoint"])
        if values["on_in_doubt"] is not None:
            values["on_in_doubt"] = OnInDoubt(values["on_in_doubt"])
        if values["error_kind"] is not None:
            values["error_kind"] = ErrorKind(values["error_kind"])
        return cls(**values)

    def evolve(self, changes: Mapping[str, Any]) -> Self:
        """Return the job with other values of some columns; the words of lists become enums.

        `dataclasses.replace` does the same at twice the cost, which every write of a job pays.
        """
        evolved = object.__new__(type(self))
        for name in _FIELDS:
            value = changes[name] if name in changes else getattr(self, name)
            object.__setattr__(evolved, name, value)
        if "state" in changes:
            object.__setattr__(evolved, "state", State(changes["state"]))
        if changes.get("error_kind") is not None:
            object.__setattr__(evolved, "error_kind", ErrorKind(changes["error_kind"]))
        return evolved


_FIELDS = tuple(field.name for field in fields(Job))


@dataclass(frozen=True, slots=True)
class Message:
    """One row of `messages`: `message` is the whole UIMessage, `text` its plain text."""

    position: int
    message_id: str | None
    role: str
    text: str
    message: dict[str, Any]
    source: str


@dataclass(frozen=True, slots=True)
class Event:
    """One row of `job_events`."""

    id: int
    job_id: int
    at: datetime
    event: str
    from_state: str | None
    to_state: str | None
    attempt: int | None
    lease: int | None
    worker_id: str | None
    detail: dict[str, Any] | None
