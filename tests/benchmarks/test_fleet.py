"""The simulation of fleets: it measures its costs on a real server, and its queues add up."""

from __future__ import annotations

import os

import pytest

from benchmarks.fleet import Fleet, simulate
from benchmarks.fleet_costs import Cost, Costs, measure_costs
from orchestrator.store.engine import parse_url

FLAT = {
    kind: Costs(server=Cost(0.001, 0.0001), client=Cost(0.001, 0.0), clock=Cost(0.003, 0.0001))
    for kind in ("mark", "ids", "checkpoint", "settle")
}


def fleet(workers: int, *, cores: int = 4) -> Fleet:
    return Fleet(workers=workers, runs=500, run_s=60.0, checkpoint_s=5.0, cores=cores, lasts_s=20.0)


@pytest.mark.skipif(
    "TEST_POSTGRES_URL" in os.environ, reason="the server may be of another machine"
)
def test_each_kind_of_write_has_a_cost(postgres_url: str) -> None:
    costs = measure_costs(parse_url(postgres_url), rounds=2)
    assert costs.keys() == {"mark", "ids", "checkpoint", "settle"}
    for cost in costs.values():
        assert cost.clock.of(128) > cost.server.of(128) > 0
        assert cost.client.of(128) > 0


def test_a_fleet_settles_what_its_runs_give_and_loads_the_server_in_step() -> None:
    one, ten = simulate(fleet(1), FLAT), simulate(fleet(10), FLAT)
    assert one.per_s == pytest.approx(500 / 65.0, rel=0.2)
    assert ten.extras["rows_per_s"] == pytest.approx(10 * one.extras["rows_per_s"], rel=0.1)
    assert ten.extras["server_percent"] == pytest.approx(10 * one.extras["server_percent"], rel=0.2)


def test_a_server_that_is_too_small_makes_writes_wait() -> None:
    enough, small = simulate(fleet(40), FLAT), simulate(fleet(40, cores=1), FLAT)
    assert small.extras["server_percent"] > 90
    assert small.extras["write_p99_ms"] > 2 * enough.extras["write_p99_ms"]
