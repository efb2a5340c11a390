"""How often a run's status is asked for, and how late its end is known: in virtual time.

Run `python -m benchmarks.polling [--runs 50]`. The worker is the real one on the simulated clock
and database of `tests.simulation`, with its default settings, in each follow mode; its peers ask
at fixed intervals. All go to the same imagined API, whose runs last about 5 s, 5 min and 40 min
(each up to a twentieth more or less, evenly spread, so that no interval fits by luck), send a chunk
every 5 s, and whose streams are cut as the live service cuts them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any, cast

import anyio

from benchmarks.common.machine import machine
from benchmarks.common.measured import Measured, quantile
from benchmarks.common.results import add_save, save, table
from benchmarks.polling_api import Api
from orchestrator.config import load_settings
from orchestrator.request import job_values
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.worker.tools import Tools
from tests.simulation.database import EPOCH, Database, Reach, SimStore
from tests.simulation.process import ORIGIN, Process, SimClock, SimLog
from tests.simulation.timeline import Loop, Timeline, repeatable
from tests.simulation.trace import Trace

LENGTHS_S = {"5 s": 5.0, "5 min": 300.0, "40 min": 2400.0}
MODES = ("stream", "auto", "poll")
FIXED_S = (1.0, 5.0, 30.0)

MOST_DELAY = 0.02
"""The share of its run by which an end may be known late, if that is more than `LEAST_DELAY_S`."""

LEAST_DELAY_S = 1.0
_SPREAD = 0.05
_BOUND_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Runs of one length under one policy: their lengths come from the seed alone."""

    length_s: float
    runs: int
    seed: int

    def lengths(self) -> list[float]:
        """How long each run lasts, in the order of their starts."""
        random = Random(f"lengths {self.seed}")  # noqa: S311  # no secret
        return [self.length_s * random.uniform(1 - _SPREAD, 1 + _SPREAD) for _ in range(self.runs)]


def followed(sample: Sample, mode: str, database: Database) -> Measured:
    """Let the worker follow the runs to their ends."""
    timeline = Timeline(Random(f"timeline {sample.seed}"))  # noqa: S311  # as above
    api = Api(lambda: timeline.now, sample.lengths())
    database.empty(lambda: timeline.now)
    with repeatable():
        process = _process(timeline, database, api, sample, mode)
        database.write(
            partial(
                enqueue_many,
                rows=[job_values({"prompt": f"{number}"}) for number in range(sample.runs)],
            )
        )
        process.loop.begin(process.main())
        timeline.run(partial(_all_settled, database), bound=_BOUND_S)
        process.loop.bury()
    assert process.fault is None, process.fault
    rows = database.rows("SELECT state, run_id, finished_at FROM jobs")
    assert {state for state, *_ in rows} == {"completed"}, rows
    known = {run_id: _seconds(at) for _, run_id, at in rows}
    return _measured(f"{mode} mode", sample, api, known)


def _process(
    timeline: Timeline, database: Database, api: Api, sample: Sample, mode: str
) -> Process:
    loop = Loop(timeline, "worker")
    random = Random(f"worker {sample.seed}")  # noqa: S311  # as above
    trace = Trace(lambda: timeline.now)
    places = {"concurrency": sample.runs}
    settings = load_settings(
        environ={}, overrides={"worker": places, "submit": places, "follow": {"mode": mode}}
    )
    store = SimStore(
        database=database,
        reach=Reach(),
        cut=set(),
        process=loop,
        apart=True,
        random=random,
        trace=trace,
        on_commit=lambda _who: None,
    )
    tools = Tools(
        store=store,
        client=cast("Any", api),
        settings=settings,
        clock=SimClock(timeline, 0.0),
        who=Claimant("worker", ORIGIN, "key"),
        log=SimLog(trace, "worker", _Deaf()),  # type: ignore[arg-type] # what of it the worker uses
        rand=random.random,
    )
    return Process(
        name="worker", loop=loop, tools=tools, client=cast("Any", api), on_abort=lambda _who: None
    )


class _Deaf:
    """Hears of nothing; a fault of the program still ends the benchmark."""

    def learns(self, process: str, run_id: str) -> None:
        """A run's id is known."""

    def faulty(self, event: str, words: str) -> None:
        """A fault of the program."""
        raise AssertionError(f"{event}: {words}")


def _all_settled(database: Database) -> bool:
    return not database.rows("SELECT 1 FROM jobs WHERE state <> 'completed' LIMIT 1")


def _seconds(at: str) -> float:
    return (datetime.fromisoformat(at).replace(tzinfo=UTC) - EPOCH).total_seconds()


def fixed(sample: Sample, every_s: float) -> Measured:
    """Ask for each run's status at a fixed interval, and then read its chat."""
    timeline = Timeline(Random(f"timeline {sample.seed}"))  # noqa: S311  # as above
    api = Api(lambda: timeline.now, sample.lengths())
    known: dict[str, float] = {}

    async def one(number: int) -> None:
        accepted = await api.begin(number)
        while not (await api.run_status(accepted.run_id)).status.terminal:  # noqa: ASYNC110  # it polls
            await anyio.sleep(every_s)
        await api.session_chat(accepted.session_id or "", accepted.chat_id or "")
        known[accepted.run_id] = timeline.now

    async def all_of_them() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(sample.runs):
                tasks.start_soon(one, number)

    with repeatable():
        loop = Loop(timeline, "peer")
        loop.begin(all_of_them())
        timeline.run(lambda: len(known) == sample.runs, bound=_BOUND_S)
        loop.bury()
    return _measured(f"every {every_s:g} s", sample, api, known)


def _measured(name: str, sample: Sample, api: Api, known: dict[str, float]) -> Measured:
    late = [known[run_id] - ended for run_id, ended in api.ends().items()]
    return Measured(
        name,
        sample.runs,
        timed(known),
        0.0,
        {
            "status_a_run": round(api.counts["status"] / sample.runs, 2),
            "stream_a_run": round(api.counts["stream"] / sample.runs, 2),
            "delay_mean_s": round(sum(late) / len(late), 3),
            "delay_p95_s": round(quantile(late, 0.95), 3),
            "delay_max_s": round(max(late), 3),
        },
    )


def timed(known: dict[str, float]) -> float:
    """When the last end was known, in virtual seconds from the beginning."""
    return max(known.values())


def verdicts(found: dict[str, dict[str, Measured]]) -> str:
    """What of the targets was reached. `auto` has none: it streams a few runs and polls the others
    until it has learnt what leaving a stream does.

    What the calls that follow an end take themselves is no fault of a poll: it is the longest
    delay of those who are told of the end by the stream, and is taken off.
    """
    lines = []
    for length, by_policy in found.items():
        stream, poll, five = (
            by_policy[name].extras for name in ("stream mode", "poll mode", "every 5 s")
        )
        fewer, sooner = _less("status_a_run", stream, five), _less("delay_mean_s", stream, five)
        lines.append(f"stream, {length}: fewer than every 5 s: {fewer}; sooner: {sooner}")
        most_s = max(LEAST_DELAY_S, MOST_DELAY * LENGTHS_S[length])
        waited_s = poll["delay_max_s"] - stream["delay_max_s"]
        lines.append(
            f"poll, {length}: at most {most_s:g} s late: {_word(waited_s <= most_s)} "
            f"({waited_s:.2f}); fewer than every 5 s: {_less('status_a_run', poll, five)}"
        )
    return "\n".join(lines)


def _less(figure: str, one: dict[str, Any], other: dict[str, Any]) -> str:
    return _word(one[figure] < other[figure])


def _word(reached: bool) -> str:
    return "yes" if reached else "NO"


def main() -> int:
    """Read the arguments, run, print the tables and what was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.polling", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="of each length, at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lengths", nargs="*", choices=LENGTHS_S, default=list(LENGTHS_S))
    add_save(parser)
    given = parser.parse_args()
    database = Database()
    found: dict[str, dict[str, Measured]] = {}
    for length in given.lengths:
        sample = Sample(LENGTHS_S[length], given.runs, given.seed)
        policies: dict[str, Callable[[], Measured]] = {
            **{f"{mode} mode": partial(followed, sample, mode, database) for mode in MODES},
            **{f"every {every_s:g} s": partial(fixed, sample, every_s) for every_s in FIXED_S},
        }
        found[length] = {}
        for policy, measure in policies.items():
            found[length][policy] = measure()
            print(length, found[length][policy].line(), flush=True)
    rounds = {
        f"{length}, {policy}": [figure]
        for length, by_policy in found.items()
        for policy, figure in by_policy.items()
    }
    print(table(rounds))
    print(verdicts(found))
    save(given.save, "polling", rounds, machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
