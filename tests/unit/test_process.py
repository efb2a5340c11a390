from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.worker.process import Life, identify, life_of

OWN = identify("1.0")

pytestmark = pytest.mark.skipif(
    OWN.boot_id is None or OWN.pid_namespace is None, reason="only Linux tells this much"
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its input to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    yield process
    process.communicate(timeout=30)


def at(pid: int, **changes: Any) -> Life:
    return life_of(dataclasses.replace(OWN, pid=pid, process_started=None, **changes), OWN)


def test_each_start_has_a_name_of_its_own() -> None:
    again = identify("1.0")
    assert again.worker_id != OWN.worker_id
    assert dataclasses.replace(again, worker_id=OWN.worker_id) == OWN
    assert (OWN.pid, OWN.version) == (os.getpid(), "1.0")


def test_this_process_lives() -> None:
    assert life_of(OWN, identify("1.0")) is Life.ALIVE


def test_a_child_lives_and_then_is_a_zombie_and_then_gone(
    child: subprocess.Popen[bytes],
) -> None:
    assert at(child.pid) is Life.ALIVE
    assert child.stdin is not None
    child.stdin.close()
    # Waits until it has ended without reaping it: that is a zombie.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert at(child.pid) is Life.DEAD
    child.wait(timeout=30)
    assert at(child.pid) is Life.DEAD
    child.stdin = None


def test_a_pid_that_another_process_has_now_is_dead(child: subprocess.Popen[bytes]) -> None:
    reused = dataclasses.replace(OWN, pid=child.pid, process_started="1")
    assert life_of(reused, OWN) is Life.DEAD


@pytest.mark.parametrize("field", ["boot_id", "pid_namespace", "host"])
def test_what_cannot_be_seen_from_here_is_unknown(field: str) -> None:
    assert at(2**22 - 1, **{field: "another"}) is Life.UNKNOWN


@pytest.mark.parametrize("field", ["boot_id", "pid_namespace"])
def test_a_system_that_does_not_tell_leaves_it_to_the_heartbeat(field: str) -> None:
    assert at(2**22 - 1, **{field: None}) is Life.UNKNOWN
    unsaid: dict[str, Any] = {field: None}
    blind = dataclasses.replace(OWN, **unsaid)
    assert life_of(blind, blind) is Life.UNKNOWN
