"""Values for tests, made from the little that a test cares about."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from orchestrator.job import Job
from orchestrator.states import Endpoint, State

MOMENT = datetime(2026, 1, 31, 8, tzinfo=UTC)

_STARTING: dict[str, Any] = {
    "id": 1,
    "queue": "default",
    "priority": 0,
    "state": State.QUEUED,
    "endpoint": Endpoint.RUNS,
    "available_at": MOMENT,
    "attempt": 0,
    "max_attempts": 1,
    "lease": 0,
    "deferrals": 0,
    "resubmits": 0,
    "followed_s": 0.0,
    "quiet_s": 0.0,
    "created_at": MOMENT,
    "updated_at": MOMENT,
}


def a_job(**columns: Any) -> Job:
    """A queued job as its row stands, but for the columns given."""
    blank = dict.fromkeys(field.name for field in fields(Job))
    return Job(**{**blank, **_STARTING, **columns})
