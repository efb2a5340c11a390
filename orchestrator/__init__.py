"""Durable job orchestrator for the Recoup chat API.

The names below are the public API. Each is imported when it is first asked for, so that the command
line does not load a database and two HTTP libraries to print its help.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Filter, JobHandle, OnConflict, Orchestrator, Update
    from orchestrator.config import Settings, load_settings
    from orchestrator.errors import (
        ConfigError,
        DuplicateKey,
        InvalidJob,
        JobFailed,
        JobInDoubt,
        LeaseLost,
        NotAllowed,
        NotFound,
        OrchestratorError,
        SchemaMismatch,
        StoreUnavailable,
    )
    from orchestrator.job import Event, Job, Message
    from orchestrator.states import ErrorKind, OnInDoubt, State
    from orchestrator.version import __version__

_HOMES = {
    "api": ("Filter", "JobHandle", "OnConflict", "Orchestrator", "Update"),
    "config": ("Settings", "load_settings"),
    "errors": (
        "ConfigError",
        "DuplicateKey",
        "InvalidJob",
        "JobFailed",
        "JobInDoubt",
        "LeaseLost",
        "NotAllowed",
        "NotFound",
        "OrchestratorError",
        "SchemaMismatch",
        "StoreUnavailable",
    ),
    "job": ("Event", "Job", "Message"),
    "states": ("ErrorKind", "OnInDoubt", "State"),
    "version": ("__version__",),
}

__all__ = [
    "ConfigError",
    "DuplicateKey",
    "ErrorKind",
    "Event",
    "Filter",
    "InvalidJob",
    "Job",
    "JobFailed",
    "JobHandle",
    "JobInDoubt",
    "LeaseLost",
    "Message",
    "NotAllowed",
    "NotFound",
    "OnConflict",
    "OnInDoubt",
    "Orchestrator",
    "OrchestratorError",
    "SchemaMismatch",
    "Settings",
    "State",
    "StoreUnavailable",
    "Update",
    "__version__",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module where it lives."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for people who explore."""
    return sorted(__all__)
