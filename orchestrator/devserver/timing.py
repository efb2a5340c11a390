"""The server's own times, in one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.devserver.plan import Pace


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in seconds; the defaults are the live service's, save for the pace of the model."""

    pace: Pace = field(default_factory=Pace)
    provision: float = 0.0
    """Before each 202, while workspace and sandbox are made ready."""
    stream_limit: float = 123.0
    """How long one response of the stream route lasts at most."""
    watch: float = 0.5
    """How often a stream looks whether its run is over."""
    stop_limit: float = 8.0
    """How long the stop route waits for the end of the run."""
