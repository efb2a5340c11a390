"""The floor: the requests and the fold of a job's life, and nothing else.

Run `python -m benchmarks.floor [--jobs 5000] [--in-flight 100] [--latency-ms 0] [--rounds 1]`. The
same HTTP library, transports, fresh connections and parsers as the worker's, no database: what a
bare script would need for the same. The stub runs in a process of its own. Prints one JSON line a
round; `--save` keeps them with the facts about the machine.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.common.life import client_of, live, prompt
from benchmarks.common.loops import add_loop, resolved, run
from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured, Stopwatch
from benchmarks.common.process import stub
from benchmarks.common.results import add_save, save


async def floor(base_url: str, *, jobs: int, in_flight: int) -> Measured:
    """Live `jobs` lives, `in_flight` of them at a time."""
    left = iter(range(jobs))
    async with client_of(base_url, in_flight) as client:

        async def one_after_another() -> None:
            for number in left:
                await live(client, prompt(number))

        watch = Stopwatch()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(one_after_another())
        return Measured("floor", jobs, *watch.read(), {"in_flight": in_flight})


def measured_floor(
    *, jobs: int, in_flight: int, latency_ms: float = 0.0, loop: str = "asyncio"
) -> Measured:
    """Run the stub and the floor in this process, and check what the stub counted."""
    with stub("--latency-ms", str(latency_ms)) as served:
        measured = run(floor(served.base_url, jobs=jobs, in_flight=in_flight), loop)
    served.check(jobs)
    more = {"latency_ms": latency_ms, "loop": resolved(loop), "stub_cpu_s": served.counts["cpu_s"]}
    measured.extras.update(more)
    return measured


def main() -> None:
    """Read the arguments, run, print one line a round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=1)
    add_save(parser)
    add_loop(parser, default="asyncio")
    given = parser.parse_args()
    rounds = []
    for _ in range(given.rounds):
        rounds.append(
            measured_floor(
                jobs=given.jobs,
                in_flight=given.in_flight,
                latency_ms=given.latency_ms,
                loop=given.loop,
            )
        )
        print(rounds[-1].line(), flush=True)
    save(given.save, "floor", {"floor": rounds}, machine())


if __name__ == "__main__":
    main()
