from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.testing import DevServer, Pace, Timing

from .shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
async def server(shell: Shell) -> AsyncIterator[DevServer]:
    async with DevServer(timing=Timing(pace=Pace(chunk=0.001, early_failure=0.1))) as server:
        shell.env |= {"ORCHESTRATOR_API__BASE_URL": server.url, "RECOUP_API_KEY": server.key}
        yield server
