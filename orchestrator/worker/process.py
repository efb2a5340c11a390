"""Who this process is, and whether another on the same host still lives."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from orchestrator.store.verbs.crew import Identity

_PROC = Path("/proc")
_ZOMBIE_STATES = frozenset("ZXx")


class Life(Enum):
    """What can be said of a worker's process from here."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It runs elsewhere, or this system does not tell; only its heartbeat can say."""


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    started: str


def identify(version: str) -> Identity:
    """Return the identity of this start of this process."""
    pid = os.getpid()
    stat = _stat(pid)
    return Identity(
        worker_id=str(uuid.uuid4()),
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        process_started=stat.started if stat else None,
        version=version,
    )


def life_of(other: Identity, own: Identity) -> Life:
    """Say whether the process of `other` lives, seen from the host of `own`.

    Dead are: a process that is gone, a zombie, and a pid that another process has now. Only the
    same boot and the same pid namespace let one host be judged from the other's view.
    """
    known = (own.boot_id, own.pid_namespace)
    if None in known or known != (other.boot_id, other.pid_namespace) or own.host != other.host:
        return Life.UNKNOWN
    stat = _stat(other.pid)
    if stat is None:
        return Life.UNKNOWN if _exists(other.pid) else Life.DEAD
    if stat.state in _ZOMBIE_STATES:
        return Life.DEAD
    if other.process_started is not None and stat.started != other.process_started:
        return Life.DEAD
    return Life.ALIVE


def _boot_id() -> str | None:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None  # no Linux: heartbeats alone decide


def _pid_namespace() -> str | None:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return None  # no Linux: heartbeats alone decide


def _exists(pid: int) -> bool:
    """True if there is a process that `/proc` may only hide from us (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stat(pid: int) -> _Stat | None:
    """The state and start time of a process, or None if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the name in parentheses and may hold anything; the rest follows it.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], started=fields[19])
