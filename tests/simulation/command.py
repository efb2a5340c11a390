"""The command line: replay one seed, or run many and sum up."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import pytest

from .mutations import MUTATIONS
from .plan import plan
from .world import Laboratory, Verdict

_AT_ONCE = 250
"""Seeds of one laboratory at most: what failed is shown after each such lot."""

_LAST_LINES = 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments say; exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one seed")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--mutations", action="store_true", help="find seeds that catch them")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the whole trace")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        sys.exit(_replay(given.seed, whole=given.verbose))
    if given.mutations:
        sys.exit(_hunt(range(given.start, given.start + given.seeds)))
    sys.exit(_many(range(given.start, given.start + given.seeds), given.jobs))


def explain(verdict: Verdict, last: int | None = _LAST_LINES) -> str:
    """A failed seed in words: what was broken, how it came, and how to see it again."""
    return "\n".join(
        (
            f"seed {verdict.seed}:",
            *(f"  {words}" for words in verdict.broken),
            *verdict.trace.lines(last),
            f"replay: python -m tests.simulation --seed {verdict.seed} -v",
        )
    )


def run_seeds(seeds: Iterable[int], laboratory: Laboratory) -> Iterator[Verdict]:
    """Run seeds one after the other."""
    gc.collect()
    gc.freeze()  # what is there now stays: collections between seeds need not look at it
    try:
        for number, seed in enumerate(seeds):
            if number % 10 == 0:
                gc.collect()
            yield laboratory.run(plan(seed))
    finally:
        gc.unfreeze()


@dataclass(slots=True)
class Summary:
    """What many seeds showed together; `failed` holds their explanations."""

    seeds: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Take the figures of other seeds in."""
        self.seeds += other.seeds
        self.virtual_s += other.virtual_s
        self.cpu_s += other.cpu_s
        self.counts += other.counts
        self.states += other.states
        self.failed += other.failed

    def lines(self) -> Iterator[str]:
        """The figures as text."""
        yield (
            f"{self.seeds} seeds, {self.virtual_s / 3600:.1f} virtual hours, "
            f"{self.cpu_s:.0f} s of CPU, {len(self.failed)} failed"
        )
        yield "jobs: " + ", ".join(f"{count} {what}" for what, count in self.states.most_common())
        yield "faults: " + ", ".join(f"{count} {what}" for what, count in self.counts.most_common())


def _chunk(seeds: range) -> Summary:
    began = time.process_time()
    summary = Summary()
    for verdict in run_seeds(seeds, Laboratory()):
        summary.seeds += 1
        summary.virtual_s += verdict.virtual_s
        summary.counts += verdict.counts
        summary.states += verdict.states
        if verdict.broken:
            summary.failed.append(explain(verdict))
    summary.cpu_s = time.process_time() - began
    return summary


def _many(seeds: range, jobs: int) -> int:
    size = min(_AT_ONCE, -(-len(seeds) // jobs))
    chunks = [seeds[at : at + size] for at in range(0, len(seeds), size)]
    total = Summary()
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        for number, summary in enumerate(pool.map(_chunk, chunks), start=1):
            total.add(summary)
            for words in summary.failed:
                print(words, flush=True)
            _progress(number, len(chunks))
    print(*total.lines(), sep="\n")
    return 1 if total.failed else 0


def _hunt(seeds: range) -> int:
    """Print for each planted bug the first seeds that catch it."""
    laboratory = Laboratory()
    missed = 0
    for name, plant in MUTATIONS.items():
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            verdicts = run_seeds(seeds, laboratory)
            caught = [one.seed for one in islice((v for v in verdicts if v.broken), 2)]
        missed += not caught
        print(f'    "{name}": {tuple(caught)},', flush=True)
    return 1 if missed else 0


def _progress(done: int, chunks: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{chunks}", end="", file=sys.stderr, flush=True)


def _replay(seed: int, *, whole: bool) -> int:
    verdict = Laboratory().run(plan(seed))
    show = partial(print, sep="\n")
    show(explain(verdict, None if whole else _LAST_LINES))
    show(f"states: {dict(verdict.states)}", f"trace: {verdict.trace.digest()}")
    return 1 if verdict.broken else 0
