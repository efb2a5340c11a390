from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.testing import DevServer, Pace, Timing
from orchestrator.worker import collect, gate, waits

from .harness import Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


BOTH_DATABASES = frozenset(
    {
        "test_awkward_moments_of_workers",
        "test_database_trouble",
        "test_doubt",
        "test_gate",
        "test_huge_answers",
        "test_limits",
        "test_odd_rows",
        "test_saver",
        "test_streams",
        "test_submit",
        "test_takeover",
    }
)
"""The modules whose tests run on PostgreSQL too: those where the database decides what happens."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bench_url" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        both = module in BOTH_DATABASES and not metafunc.definition.get_closest_marker(
            "sqlite_only"
        )
        urls = ["sqlite_url", "postgres_url"] if both else ["sqlite_url"]
        metafunc.parametrize("bench_url", urls, indirect=True, ids=lambda name: name[:-4])


@pytest.fixture
def bench_url(request: pytest.FixtureRequest) -> str:
    """The database of a test's workers."""
    url: str = request.getfixturevalue(request.param)
    return url


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
async def bench(bench_url: str, timing: Timing) -> AsyncIterator[Bench]:
    async with (
        DevServer(timing=timing) as server,
        Store.open(parse_url(bench_url)) as store,
    ):
        yield Bench(server=server, store=store, url=bench_url)
