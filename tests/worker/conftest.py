from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from orchestrator.store import migrations
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.testing import DevServer, Pace, Timing
from orchestrator.worker import collect, gate, waits

from .harness import Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the present schema."""
    path = tmp_path_factory.mktemp("blank") / "jobs.db"
    migrations.upgrade(parse_url(f"sqlite:///{path}"))
    return path


@pytest.fixture
def timing() -> Timing:
    return Timing(pace=Pace(chunk=0.001, early_failure=0.1), stop_limit=1.0)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of minutes; what they stand between stays as it is."""
    monkeypatch.setattr(collect, "_SPREAD", (0.02, 0.02, 0.05, 0.05))
    monkeypatch.setattr(collect, "Backoff", _quick_backoff)
    monkeypatch.setattr(gate, "LOOK_AGAIN_S", 0.2)
    monkeypatch.setattr(gate, "PROBE_FIRST_S", 0.05)
    monkeypatch.setattr(gate, "PROBE_MOST_S", 0.4)
    monkeypatch.setattr(gate, "PAYMENT_FIRST_S", 0.3)
    monkeypatch.setattr(gate, "PAYMENT_MOST_S", 0.6)


def _quick_backoff(*, first: float, most: float, rand: waits.Random) -> waits.Backoff:
    return waits.Backoff(first=first / 20, most=most / 20, rand=rand)


@pytest.fixture
async def bench(tmp_path: Path, blank: Path, timing: Timing) -> AsyncIterator[Bench]:
    path = tmp_path / "jobs.db"
    shutil.copy(blank, path)
    async with (
        DevServer(timing=timing) as server,
        Store.open(parse_url(f"sqlite:///{path}")) as store,
    ):
        yield Bench(server=server, store=store, path=path)
