"""Who claims jobs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, and what it may take. `queues` empty means all of them."""

    worker_id: str
    api_origin: str
    key_fingerprint: str
    queues: tuple[str, ...] = ()
