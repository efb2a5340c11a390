"""What the writes of a worker cost a PostgreSQL server, measured on one: the base of `fleet`.

Each kind of joint write is made for few and for many rows, in transactions as the worker makes
them. Of each the server's CPU is taken (its process, by `/proc`), the time until the commit's
answer, and the client thread's CPU; a line through them gives the cost of a transaction and of a
row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from sqlalchemy import URL, Connection, Engine, text

from benchmarks.common.life import prompt
from orchestrator.job import Job, Message
from orchestrator.outcome import Outcome
from orchestrator.request import job_values
from orchestrator.states import State
from orchestrator.store import migrations
from orchestrator.store.engine import pooled_engine
from orchestrator.store.verbs import attempt, claim, outcomes, streams
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.enqueue import enqueue_many

FEW, MANY = 4, 128
"""Rows of the two sizes of transaction that a line is drawn through."""

CHUNKS = 5
"""Chunks of a checkpoint's row: what a run of one chunk a second brings in 5 s."""

_WHO = Claimant("w", "http://127.0.0.1:9", "k")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a transaction, and of each of its rows."""

    fixed_s: float
    row_s: float

    def of(self, rows: int) -> float:
        """Seconds of a transaction of so many rows."""
        return self.fixed_s + rows * self.row_s


@dataclass(frozen=True, slots=True)
class Costs:
    """What a kind of write takes: of the server's CPU, of the client's, and by the clock."""

    server: Cost
    client: Cost
    clock: Cost


@dataclass(frozen=True, slots=True)
class _Taken:
    """One transaction's figures, in seconds."""

    server_s: float
    client_s: float
    clock_s: float


def measure_costs(url: URL, *, rounds: int) -> dict[str, Costs]:
    """Measure on an empty database; the kinds are `mark`, `ids`, `checkpoint` and `settle`.

    The median of `rounds` transactions of each size counts.
    """
    migrations.upgrade(url)
    engine = pooled_engine(url, size=1, prepared=True)
    try:
        taken = {rows: _lives(engine, rows, rounds) for rows in (FEW, MANY)}
    finally:
        engine.dispose()
    return {kind: _line(taken[FEW][kind], taken[MANY][kind]) for kind in taken[FEW]}


def _lives(engine: Engine, rows: int, rounds: int) -> dict[str, _Taken]:
    """Let `rows` jobs live together, `rounds` times; give each kind's median transaction."""
    found: dict[str, list[_Taken]] = {}
    for _ in range(rounds + 6):  # the first ones prepare their statements
        for kind, taken in _live(engine, rows).items():
            found.setdefault(kind, []).append(taken)
    return {kind: _median(each[6:]) for kind, each in found.items()}


def _live(engine: Engine, rows: int) -> dict[str, _Taken]:
    taken: dict[str, _Taken] = {}

    def run(kind: str, verb: Callable[[Connection], list[Job]]) -> list[Job]:
        taken[kind], result = _timed(engine, verb)
        return result

    def enqueue_and_claim(connection: Connection) -> list[Job]:
        enqueue_many(connection, [job_values({"prompt": prompt(n)}) for n in range(rows)])
        return claim.claim(connection, _WHO, rows)

    _, claimed = _timed(engine, enqueue_and_claim)
    marks = [attempt.Marking(job=job, body={"prompt": job.prompt}, by="w") for job in claimed]
    marked = run("mark", partial(attempt.mark_each, markings=marks))
    accepted = [
        outcomes.Applied(job=job, outcome=_accepted(job.id), by="w", streamed=True)
        for job in marked
    ]
    live = run("ids", partial(outcomes.apply_each, applied=accepted))
    chunk = {"type": "text-delta", "id": "1", "delta": "some words of an answer "}
    savings = [
        streams.Saving(
            job=job, segment=streams.Segment(0, [chunk] * CHUNKS), followed_s=5.0, quiet_s=0.0
        )
        for job in live
    ]
    taken["checkpoint"], _ = _timed(engine, partial(streams.checkpoint_each, savings=savings))
    ends = [
        outcomes.Applied(job=job, outcome=_completed(), by="w", kept=[_message()]) for job in live
    ]
    run("settle", partial(outcomes.apply_each, applied=ends))
    return taken


def _timed(engine: Engine, verb: Callable[[Connection], list[Job]]) -> tuple[_Taken, list[Job]]:
    with engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connection.rollback()
        server, client, clock = _cpu_s(pid), time.thread_time(), time.perf_counter()
        with connection.begin():
            result = verb(connection)
        spent = time.perf_counter() - clock
        return _Taken(_cpu_s(pid) - server, time.thread_time() - client, spent), result


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process: `schedstat` counts nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def _accepted(number: int) -> Outcome:
    ids = {
        "run_id": f"wrun_{number:026d}",
        "chat_id": f"chat-{number}",
        "session_id": f"session-{number}",
    }
    return Outcome(State.RUNNING, "submit.accepted", columns=ids)


def _completed() -> Outcome:
    columns = {"run_status": "completed", "result_text": "Done. " * 20, "cost_usd": 0.01}
    return Outcome(State.COMPLETED, "run.completed", columns=columns)


def _message() -> Message:
    words = "Done. " * 20
    whole = {"id": "m", "role": "assistant", "parts": [{"type": "text", "text": words}]}
    return Message(0, "m", "assistant", words, whole, "server")


def _median(taken: Sequence[_Taken]) -> _Taken:
    return _Taken(
        median(each.server_s for each in taken),
        median(each.client_s for each in taken),
        median(each.clock_s for each in taken),
    )


def _line(few: _Taken, many: _Taken) -> Costs:
    return Costs(
        server=_through(few.server_s, many.server_s),
        client=_through(few.client_s, many.client_s),
        clock=_through(few.clock_s, many.clock_s),
    )


def _through(few_s: float, many_s: float) -> Cost:
    row_s = max(0.0, (many_s - few_s) / (MANY - FEW))
    return Cost(max(0.0, few_s - FEW * row_s), row_s)
