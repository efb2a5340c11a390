"""Many workers on one PostgreSQL, where no machine at hand is big enough: a simulation.

`python -m benchmarks.fleet [--cores 8]` measures first what each kind of write costs a server here
(`benchmarks.fleet_costs`), and then lets fleets of workers share a simulated server of so many
cores. Each worker holds `--runs` runs, that live `--run-s` seconds and are saved every
`--checkpoint-s`; its writes share one transaction at a time, as in the worker. What is told of a
fleet: how busy the server is, how long a write waits for its durable answer, and how busy the
worker's own database thread is.

Left out: the network between them, locks, vacuum and what the disk does beyond one sync.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random

from benchmarks.common.database import durable_server
from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured
from benchmarks.common.results import add_save, save, table
from benchmarks.fleet_costs import Cost, Costs, measure_costs
from orchestrator.store.commit import MAX_BATCH
from orchestrator.worker.saver import AT_ONCE, SHARES

POST_S = 5.0
"""How long the service takes to accept a run."""

WARM_SHARE = 0.25
"""The share of the simulated time that is not counted: the queues fill up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is simulated. Times are seconds."""

    workers: int
    runs: int
    run_s: float
    checkpoint_s: float
    cores: int
    lasts_s: float


@dataclass(slots=True)
class Clock:
    """Virtual time: what is due next happens next."""

    now: float = 0.0
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        heapq.heappush(self._due, (self.now + seconds, next(self._order), act))

    def run(self, until: float) -> None:
        """Let everything happen that is due until then."""
        while self._due and self._due[0][0] <= until:
            self.now, _, act = heapq.heappop(self._due)
            act()


class Server:
    """A database server of so many cores: transactions wait for a free one, first come first."""

    def __init__(self, clock: Clock, cores: int) -> None:
        self.busy_s = 0.0
        self._clock = clock
        self._free = cores
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()

    def serve(self, seconds: float, done: Callable[[], None]) -> None:
        """Call `done` when a core has worked on it for so long."""
        self._waiting.append((seconds, done))
        self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            seconds, done = self._waiting.popleft()
            self._free -= 1
            self.busy_s += seconds
            self._clock.after(seconds, partial(self._over, done))

    def _over(self, done: Callable[[], None]) -> None:
        self._free += 1
        done()
        self._next()


@dataclass(frozen=True, slots=True)
class Pending:
    """Rows of one kind that wait for a transaction; `then` is called once they are durable."""

    kind: str
    rows: int
    since: float
    then: Callable[[], None]


@dataclass(slots=True)
class Seen:
    """What was seen after the warm-up."""

    since: float
    waits: list[float] = field(default_factory=list)
    transactions: int = 0
    rows: int = 0
    thread_s: float = 0.0
    settled: int = 0


class SimulatedWorker:
    """A worker's writes: those of its jobs' lives, and its checkpoints."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        server: Server,
        costs: Mapping[str, Costs],
        seen: Seen,
        random: Random,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._server = server
        self._costs = costs
        self._seen = seen
        self._random = random
        self._pending: list[Pending] = []
        self._committing = False

    def begin(self) -> None:
        """Start in the middle: each run is somewhere in its life."""
        life_s = POST_S + self._fleet.run_s
        for _ in range(self._fleet.runs):
            self._clock.after(self._random.random() * life_s, partial(self._write, "settle"))
        turn_s = self._fleet.checkpoint_s / SHARES
        self._clock.after(self._random.random() * turn_s, self._save)

    # --- a job's life: mark, POST, ids, run, settle, and the next one ---------------------------

    def _write(self, kind: str) -> None:
        then = {
            "mark": partial(self._clock.after, POST_S, partial(self._write, "ids")),
            "ids": partial(self._clock.after, self._fleet.run_s, partial(self._write, "settle")),
            "settle": self._settled,
        }[kind]
        self._add(Pending(kind, 1, self._clock.now, then))

    def _settled(self) -> None:
        if self._clock.now >= self._seen.since:
            self._seen.settled += 1
        self._write("mark")  # its claim is one row more of such a write, for many places at once

    def _save(self) -> None:
        left = self._fleet.runs // SHARES
        while left > 0:
            rows = min(left, AT_ONCE)
            self._add(Pending("checkpoint", rows, self._clock.now, lambda: None))
            left -= rows
        self._clock.after(self._fleet.checkpoint_s / SHARES, self._save)

    # --- group commit: one transaction at a time ------------------------------------------------

    def _add(self, pending: Pending) -> None:
        self._pending.append(pending)
        if not self._committing:
            self._commit()

    def _commit(self) -> None:
        batch, rows = [], 0
        for pending in self._pending[:MAX_BATCH]:
            if batch and rows + pending.rows > MAX_BATCH:
                break
            batch.append(pending)
            rows += pending.rows
        if not batch:
            return
        del self._pending[: len(batch)]
        self._committing = True
        server_s, client_s, else_s = self._times(batch)
        if self._clock.now >= self._seen.since:
            self._seen.transactions += 1
            self._seen.rows += rows
            self._seen.thread_s += client_s
        committed = partial(self._committed, batch)
        served = partial(self._clock.after, else_s, committed)
        self._clock.after(client_s, partial(self._server.serve, server_s, served))

    def _times(self, batch: list[Pending]) -> tuple[float, float, float]:
        """Seconds of the server's CPU, of the client's, and of neither: messages, and the disk."""
        rows = Counter[str]()
        for pending in batch:
            rows[pending.kind] += pending.rows
        first = self._costs[batch[0].kind]

        def seconds(part: Callable[[Costs], Cost]) -> float:
            each = (n * part(self._costs[kind]).row_s for kind, n in rows.items())
            return part(first).fixed_s + sum(each)

        server_s, client_s = (
            seconds(lambda costs: costs.server),
            seconds(lambda costs: costs.client),
        )
        clock_s = seconds(lambda costs: costs.clock)
        return server_s, client_s, max(0.0, clock_s - server_s - client_s)

    def _committed(self, batch: list[Pending]) -> None:
        self._committing = False
        for pending in batch:
            if pending.since >= self._seen.since and pending.kind != "checkpoint":
                self._seen.waits.append(self._clock.now - pending.since)
            pending.then()
        if not self._committing:
            self._commit()


def simulate(fleet: Fleet, costs: Mapping[str, Costs]) -> Measured:
    """Let a fleet work for a while, and say what was seen of it."""
    clock = Clock()
    server = Server(clock, fleet.cores)
    seen = Seen(fleet.lasts_s * WARM_SHARE)
    for number in range(fleet.workers):
        random = Random(f"worker {number}")  # noqa: S311 - chance must repeat from its seed
        SimulatedWorker(fleet, clock, server, costs, seen, random).begin()
    clock.run(seen.since)
    busy_before = server.busy_s
    clock.run(fleet.lasts_s)
    counted_s = fleet.lasts_s - seen.since
    waits = sorted(seen.waits) or [0.0]
    extras = {
        "workers": fleet.workers,
        "live_runs": fleet.workers * fleet.runs,
        "server_percent": 100 * (server.busy_s - busy_before) / counted_s / fleet.cores,
        "write_p50_ms": 1000 * waits[len(waits) // 2],
        "write_p99_ms": 1000 * waits[int(len(waits) * 0.99)],
        "rows_per_s": seen.rows / counted_s,
        "transactions_per_s": seen.transactions / counted_s,
        "thread_percent": 100 * seen.thread_s / counted_s / fleet.workers,
    }
    return Measured("fleet", seen.settled, counted_s, 0.0, extras)


def told(cost: Costs) -> str:
    """A kind's costs in milliseconds, of a transaction and of each row."""
    parts = {"server": cost.server, "client": cost.client, "clock": cost.clock}
    return ", ".join(
        f"{name} {part.fixed_s * 1000:.2f} ms and {part.row_s * 1000:.3f} a row"
        for name, part in parts.items()
    )


def main() -> int:
    """Read the arguments, measure the costs, simulate each fleet, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 30, 60, 100, 200])
    parser.add_argument("--runs", type=int, default=2000, help="live in each worker")
    parser.add_argument("--run-s", type=float, default=600.0)
    parser.add_argument("--checkpoint-s", type=float, default=5.0)
    parser.add_argument("--cores", type=int, default=8, help="of the simulated server")
    parser.add_argument("--lasts-s", type=float, default=40.0, help="of virtual time")
    parser.add_argument("--cost-rounds", type=int, default=30)
    parser.add_argument("--postgres", help="a durable server on this machine")
    add_save(parser)
    given = parser.parse_args()
    with durable_server(given.postgres) as database, database.fresh() as url:
        facts = machine(postgresql=database.version)
        costs = measure_costs(url, rounds=given.cost_rounds)
    for kind, cost in costs.items():
        print(f"{kind}: {told(cost)}", flush=True)
    found: dict[str, list[Measured]] = {}
    for workers in given.workers:
        fleet = Fleet(
            workers=workers,
            runs=given.runs,
            run_s=given.run_s,
            checkpoint_s=given.checkpoint_s,
            cores=given.cores,
            lasts_s=given.lasts_s,
        )
        found[f"{workers} workers"] = [simulate(fleet, costs)]
    print(table(found))
    save(given.save, "fleet", found, facts, cores=given.cores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
