"""What one soak is made of: its size, its faults' rates, and the settings of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

KEY: Final = "recoup_sk_soak"

LIMITS: Final[Mapping[str, int]] = MappingProxyType({"narrow": 4, "lane": 12})
"""Queues with a limit of live jobs in the whole database."""

WEIGHTS: Final[Mapping[str, int]] = MappingProxyType({"news": 3, "lane": 2})
"""Queues with a weight other than 1."""

MODES: Final = ("auto", "stream", "auto", "poll")
"""`follow.mode` of the workers, by their place in the crew."""

SUBMIT_TIMEOUT_S: Final = 6.0
DEAD_AFTER_S: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One soak. Durations are in seconds; rates are mean seconds between two strikes, 0 is never.

    `later` is the share of the jobs that a second process enqueues while the workers run, at
    `enqueue_rate` jobs a second. The storm lasts until `calm_at` of the jobs are at rest, at most
    `storm_s`; then everything is mended, and what is left has `calm_s` to come to rest.
    """

    jobs: int = 1000
    seed: int = 1
    workers: int = 4
    later: float = 0.5
    enqueue_rate: float = 60.0
    storm_s: float = 2400.0
    calm_s: float = 600.0
    calm_at: float = 0.97
    recipes: tuple[str, ...] = ()
    faults: bool = True
    kill_every_s: float = 7.0
    restart_every_s: float = 60.0
    episode_every_s: float = 25.0
    cancel_every_s: float = 3.0
    revoke_at: tuple[float, ...] = (0.35, 0.65)
    """The key is revoked when so large a share of the jobs is at rest, and given back later."""


def environment(url: str, database: str, place: int) -> dict[str, str]:
    """Return the settings of the worker at a place of the crew, as environment variables.

    The times are a tenth of the defaults or less, so that runs of seconds meet what runs of hours
    meet with the defaults.
    """
    return {
        "RECOUP_API_KEY": KEY,
        "ORCHESTRATOR_API__BASE_URL": url,
        "ORCHESTRATOR_DATABASE__URL": database,
        "ORCHESTRATOR_WORKER__POLL_INTERVAL": "0.5",
        "ORCHESTRATOR_WORKER__CONCURRENCY": "60",
        "ORCHESTRATOR_WORKER__HEARTBEAT": "1",
        "ORCHESTRATOR_WORKER__DEAD_AFTER": str(DEAD_AFTER_S),
        "ORCHESTRATOR_WORKER__DRAIN_TIMEOUT": "20",
        "ORCHESTRATOR_WORKER__PRIORITY_STEP": "30",
        "ORCHESTRATOR_SUBMIT__TIMEOUT": str(SUBMIT_TIMEOUT_S),
        "ORCHESTRATOR_GENERATE__TIMEOUT": "15",
        "ORCHESTRATOR_FOLLOW__MODE": MODES[place % len(MODES)],
        "ORCHESTRATOR_FOLLOW__POLL_MIN": "0.5",
        "ORCHESTRATOR_FOLLOW__POLL_MAX": "3",
        "ORCHESTRATOR_FOLLOW__CHECKPOINT_EVERY": "1",
        "ORCHESTRATOR_LOG__FORMAT": "json",
    }
