"""Durable job orchestrator for the Recoup chat API."""

from __future__ import annotations

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
