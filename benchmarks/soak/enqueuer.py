"""Enqueue the jobs of a soak, in this process or as one of its own.

Run as `python -m benchmarks.soak.enqueuer --database URL --seed N --first N --count N --rate R
--ledger FILE`; what `enqueue` returned is written to the file, a line each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio

from benchmarks.soak.recipes import job
from orchestrator import Orchestrator
from orchestrator.errors import StoreUnavailable

_AT_ONCE = 100
_AGAIN_S = 0.5


async def enqueue(
    database: str,
    *,
    seed: int,
    numbers: range,
    rate: float | None,
    recipes: Sequence[str],
    on_enqueued: Callable[[int, int], None],
) -> None:
    """Enqueue jobs, `rate` a second (None: as fast as they go in); tells each number and id.

    A call that failed is made again with the same unique keys, as a caller does who does not know
    whether its transaction was committed.
    """
    async with Orchestrator(database) as orc:
        size = _AT_ONCE if rate is None else max(1, round(rate / 2))
        for start in range(numbers.start, numbers.stop, size):
            part = range(start, min(start + size, numbers.stop))
            while True:
                now = datetime.now(UTC)
                try:
                    rows = [job(seed, number, now, recipes) for number in part]
                    handles = await orc.enqueue_many(rows)
                except StoreUnavailable:
                    await anyio.sleep(_AGAIN_S)
                else:
                    break
            for number, handle in zip(part, handles, strict=True):
                on_enqueued(number, handle.id)
            if rate is not None:
                await anyio.sleep(size / rate)


async def run(given: argparse.Namespace) -> None:
    """Enqueue, and keep what came back."""
    with given.ledger.open("a", encoding="utf-8") as file:

        def keep(number: int, job_id: int) -> None:
            file.write(json.dumps([number, job_id]) + "\n")
            file.flush()

        await enqueue(
            given.database,
            seed=given.seed,
            numbers=range(given.first, given.first + given.count),
            rate=given.rate,
            recipes=given.recipes,
            on_enqueued=keep,
        )


def main() -> None:
    """Read the arguments and enqueue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--recipes", nargs="*", default=())
    parser.add_argument("--ledger", type=Path, required=True)
    anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
