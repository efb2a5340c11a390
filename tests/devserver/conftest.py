from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.testing import DevServer, Pace, Timing

from .client import Client, open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def timing() -> Timing:
    return Timing(pace=Pace(chunk=0.001, early_failure=0.5))


@pytest.fixture
async def server(timing: Timing) -> AsyncIterator[DevServer]:
    async with DevServer(timing=timing) as server:
        yield server


@pytest.fixture
async def client(server: DevServer) -> AsyncIterator[Client]:
    async with open_client(server) as http:
        yield Client(server, http)
