"""The scenario of a seed: its jobs, its workers, and when which fault begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

SETTLED_BY_S = 7200.0
"""Virtual seconds after the calm by which everything must be settled."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job to enqueue at a time, with the options of `enqueue`. The n-th gets the id n."""

    at: float
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens at a time: the name of a fault or of a person's deed, with details."""

    at: float
    what: str
    detail: dict[str, Any]


MOMENTS = ("claims", "marks", "posts", "accepts", "adopts", "puts back", "doubts", "settles")
"""What a worker does at the moments that ambushes wait for."""


@dataclass(frozen=True, slots=True)
class Ambush:
    """A fault that waits for a worker to do `moment` for the `number`-th time in the simulation,
    and strikes that worker `delay` seconds later, for `lasts` seconds."""

    moment: str
    number: int
    delay: float
    what: str
    lasts: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a seed decides beforehand. `calm_at` is when the last fault ends."""

    seed: int
    workers: int
    settings: dict[str, dict[str, Any]]
    jobs: tuple[PlannedJob, ...]
    acts: tuple[Act, ...]
    ambushes: tuple[Ambush, ...]
    limits: dict[str, int]
    apart: bool
    """Heartbeats and long writes have transactions of their own, as on PostgreSQL."""
    calm_at: float
    settled_by_s: float = SETTLED_BY_S


def plan(seed: int) -> Plan:
    """Make the scenario of a seed."""
    random = Random(f"plan {seed}")
    workers = random.choice((1, 2, 2, 2, 3))
    calm_at = random.uniform(8.0, 32.0)
    times = sorted(
        random.choice((0.0, random.uniform(0.0, calm_at)))
        for _ in range(random.choice((2, 3, 4, 5)))
    )
    jobs = tuple(_job(random, number, at) for number, at in enumerate(times, start=1))
    limits = {"narrow": random.choice((1, 2))} if random.random() < 0.4 else {}
    return Plan(
        seed=seed,
        workers=workers,
        settings=_settings(random),
        jobs=jobs,
        acts=tuple(sorted(_acts(random, workers, len(jobs), calm_at), key=lambda act: act.at)),
        ambushes=tuple(_ambush(random) for _ in range(random.choice((0, 1, 2, 3, 5)))),
        limits=limits,
        apart=random.random() < 0.5,
        calm_at=calm_at,
    )


def _settings(random: Random) -> dict[str, dict[str, Any]]:
    return {
        "worker": {
            "poll_interval": random.choice((2.0, 6.0, 6.0, 6.0)),
            "heartbeat": 4.0,
            "dead_after": random.choice((9.0, 15.0)),
            "drain_timeout": random.choice((5.0, 30.0)),
            "concurrency": random.choice((2, 20)),
        },
        "submit": {
            "timeout": 20.0,
            "concurrency": random.choice((1, 4)),
            "on_in_doubt": random.choice(("hold", "hold", "hold", "fail")),
        },
        "follow": {
            "mode": random.choice(("auto", "auto", "stream", "poll")),
            "trial_streams": random.choice((1, 4)),
            "poll_min": 1.0,
            "poll_max": random.choice((5.0, 15.0)),
            "checkpoint_every": 2.0,
            "stall_timeout": 120.0,
            "run_timeout": 600.0,
        },
    }


# --- jobs -------------------------------------------------------------------------------------

_SCRIPTS = (
    "",
    "",
    "delay=0.3",
    "first=3 delay=0.5",
    "provision=2 delay=0.2",
    "provision=8",
    "provision=15 delay=0.2",
    "steps=2 tool_time=4 delay=0.2",
    "steps=2 tool_time=12 tools=2",
    "steps=3 tool_time=3 retry_step=2",
    "reasoning sources tail=3",
    "commit commit_time=2 delay=0.2",
    "fail=1 attempts=2",
    "fail=0",
    "steps=2 fail=2 attempts=1 tool_time=2",
    "tokens=12 delay=1 stop_time=2",
    "tokens=15 delay=2",
    "steps=3 tool_time=14 delay=0.2",
    "no_stream delay=0.5",
    "no_message",
    "finish=length",
    "queued=3",
    "hang",
)


def _job(random: Random, number: int, at: float) -> PlannedJob:
    script = random.choice(_SCRIPTS)
    options: dict[str, Any] = {"prompt": f"job {number}." + (f" [{script}]" if script else "")}
    if script == "hang":
        options[random.choice(("run_timeout", "stall_timeout"))] = 25.0
    if random.random() < 0.25:
        options["max_attempts"] = 2
    if random.random() < 0.2:
        options["on_in_doubt"] = random.choice(("fail", "resubmit", "hold"))
    if random.random() < 0.3:
        options["priority"] = random.randint(-2, 2)
    if random.random() < 0.4:
        options["queue"] = random.choice(("narrow", "other"))
    return PlannedJob(at, options)


# --- what goes wrong --------------------------------------------------------------------------


def _acts(random: Random, workers: int, jobs: int, calm_at: float) -> list[Act]:
    acts: list[Act] = []
    for _ in range(random.randint(0, 7)):
        at = random.uniform(0.0, calm_at * 0.9)
        until = min(calm_at, at + random.choice((0.5, 3.0, 10.0, 25.0)) * random.random() * 2)
        acts += random.choice(_FAULTS)(random, workers, at, until)
    for _ in range(random.choice((0, 0, 1, 2, 4))):
        acts.append(_deed(random, jobs, random.uniform(0.0, calm_at)))
    return acts


def _span(what: str, at: float, until: float, **detail: Any) -> list[Act]:
    return [Act(at, what, detail), Act(until, f"{what} ends", detail)]


def _crash(random: Random, workers: int, at: float, until: float) -> list[Act]:
    slot = random.randrange(workers)
    return [Act(at, "crash", {"slot": slot}), Act(until, "start again", {"slot": slot})]


def _drain(random: Random, workers: int, at: float, until: float) -> list[Act]:
    slot = random.randrange(workers)
    return [Act(at, "drain", {"slot": slot}), Act(until, "start again", {"slot": slot})]


def _freeze(random: Random, workers: int, at: float, until: float) -> list[Act]:
    return _span("freeze", at, until, slot=random.randrange(workers))


def _api_partition(random: Random, workers: int, at: float, until: float) -> list[Act]:
    return _span("api partition", at, until, slot=random.randrange(workers))


def _database_partition(random: Random, workers: int, at: float, until: float) -> list[Act]:
    return _span("database partition", at, until, slot=random.randrange(workers))


def _database_down(_random: Random, _workers: int, at: float, until: float) -> list[Act]:
    return _span("database down", at, until)


def _shaky_database(random: Random, _workers: int, at: float, until: float) -> list[Act]:
    chance = random.choice((0.05, 0.2))
    return _span("shaky database", at, until, lost_before=chance, undone=chance, lost_after=chance)


def _slow_database(_random: Random, _workers: int, at: float, until: float) -> list[Act]:
    return _span("slow database", at, until)


def _clock_jump(random: Random, _workers: int, at: float, _until: float) -> list[Act]:
    seconds = random.choice((-40.0, -5.0, 10.0, 60.0, 600.0))
    return [Act(at, "clock jump", {"seconds": seconds})]


def _api_down(_random: Random, _workers: int, at: float, until: float) -> list[Act]:
    return _span("api down", at, until)


def _bad_network(random: Random, _workers: int, at: float, until: float) -> list[Act]:
    return _span(
        "bad network",
        at,
        until,
        refused=random.choice((0.0, 0.3)),
        unanswered=random.choice((0.0, 0.1)),
        doomed=random.choice((0.1, 0.4)),
        delay=random.choice(((0.001, 0.02), (0.01, 2.0), (0.5, 6.0))),
    )


_API_FAULTS: tuple[dict[str, Any], ...] = (
    {"fault": "proxy-502", "route": "start"},
    {"fault": "proxy-502", "route": "*"},
    {"fault": "server-error", "route": "status"},
    {"fault": "rate-limited", "route": "*"},
    {"fault": "busy", "route": "start"},
    {"fault": "unauthorized", "route": "*"},
    {"fault": "payment-required", "route": "start"},
    {"fault": "run-not-found"},
    {"fault": "not-found", "route": "chat"},
    {"fault": "lost-answer"},
    {"fault": "not-started"},
    {"fault": "started-but-500"},
    {"fault": "broken-body"},
    {"fault": "cut"},
    {"fault": "drop"},
    {"fault": "no-stream"},
    {"fault": "lone-finish"},
    {"fault": "no-messages"},
    {"fault": "missing-step"},
    {"fault": "cancel-on-leave"},
)


def _api_fault(random: Random, _workers: int, at: float, until: float) -> list[Act]:
    fields = {**random.choice(_API_FAULTS), "probability": random.choice((0.3, 1.0))}
    return [Act(at, "api fault", {**fields, "seconds": until - at})]


_FAULTS = (
    _crash,
    _crash,
    _drain,
    _freeze,
    _freeze,
    _api_partition,
    _database_partition,
    _database_partition,
    _database_down,
    _shaky_database,
    _shaky_database,
    _slow_database,
    _clock_jump,
    _clock_jump,
    _api_down,
    _bad_network,
    _bad_network,
    _api_fault,
    _api_fault,
    _api_fault,
)


_TRAPS = (
    # The worker sleeps between its mark and its request; it streams when it dies; its answer
    # comes when the database is away; it is cut off from its POST, from a stop, from a settling.
    Ambush("marks", 1, 0.0005, "freeze", 20.0),
    Ambush("accepts", 1, 5.0, "crash", 30.0),
    Ambush("accepts", 2, 4.0, "freeze", 20.0),
    Ambush("posts", 1, 0.01, "database partition", 20.0),
    Ambush("posts", 2, 0.01, "api partition", 30.0),
    Ambush("settles", 1, 0.0, "crash", 10.0),
)


def _ambush(random: Random) -> Ambush:
    if random.random() < 0.4:
        return random.choice(_TRAPS)
    return Ambush(
        moment=random.choice(("marks", "marks", "posts", *MOMENTS)),
        number=random.choice((1, 1, 2, 3, 5)),
        delay=random.choice((0.0, 0.0005, 0.01, 0.05, 0.5, 2.0, 6.0)),
        what=random.choice(("crash", "freeze", "freeze", "api partition", "database partition")),
        lasts=random.choice((1.0, 8.0, 14.0, 20.0, 40.0)),
    )


def _deed(random: Random, jobs: int, at: float) -> Act:
    what = random.choice(("cancel", "cancel", "pause", "resolve", "resolve", "retry"))
    if what == "resolve":
        how = random.choice(("resubmit", "adopt", "give up"))
        return Act(at, what, {"job": random.randint(1, jobs), "how": how})
    if what == "pause":
        return Act(at, "pause", {"queue": random.choice(("default", "narrow"))})
    return Act(at, what, {"job": random.randint(1, jobs)})
