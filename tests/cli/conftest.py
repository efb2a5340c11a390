from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from orchestrator.testing import DevServer, Pace, Timing

from .shell import Shell

QUICK = Timing(pace=Pace(chunk=0.001, early_failure=0.1))


@contextlib.contextmanager
def serving(shell: Shell, portal: BlockingPortal, timing: Timing = QUICK) -> Iterator[DevServer]:
    """Open a dev server for the block, and let the shell's commands know of it."""
    with portal.wrap_async_context_manager(DevServer(timing=timing)) as server:
        shell.env |= {"ORCHESTRATOR_API__BASE_URL": server.url, "RECOUP_API_KEY": server.key}
        yield server


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """A loop in a thread, for the dev server: the commands have the main thread's for theirs."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def server(shell: Shell, portal: BlockingPortal) -> Iterator[DevServer]:
    with serving(shell, portal) as server:
        yield server
