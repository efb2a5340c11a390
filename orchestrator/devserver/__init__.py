"""The Recoup API on loopback: scripted model, real chunk streams, durable runs, every fault."""

from __future__ import annotations

from orchestrator.devserver.faults import PRESETS, Fault, Faults, Kind
from orchestrator.devserver.plan import Pace
from orchestrator.devserver.record import Call, Record
from orchestrator.devserver.server import DEV_KEY, DevServer, serve
from orchestrator.devserver.timing import Timing

__all__ = [
    "DEV_KEY",
    "PRESETS",
    "Call",
    "DevServer",
    "Fault",
    "Faults",
    "Kind",
    "Pace",
    "Record",
    "Timing",
    "serve",
]
