"""What is known after a soak: the tables, the server's ledger, the harness's journal, the logs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.soak.database import Books
from benchmarks.soak.journal import Journal
from benchmarks.soak.plan import Plan
from benchmarks.soak.recipes import number_of
from benchmarks.soak.watch import Watch

Row = Mapping[str, Any]

_JOBS = """SELECT id, queue, batch, state, endpoint, unique_key, prompt, attempt,
 max_attempts, lease, run_id, chat_id, run_status, error_kind, error, result_text
 FROM jobs ORDER BY id"""
_ATTEMPTS = "SELECT job_id, attempt, run_id, run_status, error_kind FROM attempts ORDER BY 1, 2"
_EVENTS = """SELECT id, job_id, extract(epoch FROM at)::float8 AS at, event, from_state, to_state,
 attempt, lease, worker_id, detail FROM job_events ORDER BY id"""
_MESSAGES = "SELECT job_id, attempt, position, source, message FROM messages ORDER BY 1, 2, 3"
_WORKERS = "SELECT id, pid FROM workers"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All of it. `enqueued` maps the number of each job to the id that `enqueue` returned;
    `asked` are the ids whose cancellation was asked for; `logs` the lines of each worker's log."""

    plan: Plan
    enqueued: Mapping[int, int]
    asked: frozenset[int]
    journal: Journal
    watch: Watch
    logs: Sequence[Sequence[Row]]
    jobs: Mapping[int, Row]
    attempts: Sequence[Row]
    events: Sequence[Row]
    messages: Sequence[Row]
    pids: Mapping[str, int]
    runs: Sequence[Row]
    submissions: Sequence[Row]
    counters: Row

    @cached_property
    def events_of(self) -> Mapping[int, list[Row]]:
        """The events of each job, oldest first."""
        return _by(self.events, "job_id")

    @cached_property
    def run_of(self) -> Mapping[str, Row]:
        """The server's runs by id."""
        return {run["run_id"]: run for run in self.runs}

    @cached_property
    def runs_of(self) -> Mapping[int, list[Row]]:
        """The server's runs of each job, oldest first."""
        found: dict[int, list[Row]] = defaultdict(list)
        for run in sorted(self.runs, key=lambda run: float(run["created_at"])):
            found[self._job_of(run["prompt"])].append(run)
        return found

    @cached_property
    def submissions_of(self) -> Mapping[int, list[Row]]:
        """The requests that may start a run, as the server got them, of each job."""
        found: dict[int, list[Row]] = defaultdict(list)
        for call in self.submissions:
            found[self._job_of(call["prompt"])].append(call)
        return found

    @cached_property
    def attempts_of(self) -> Mapping[int, list[Row]]:
        """The earlier attempts of each job."""
        return _by(self.attempts, "job_id")

    def _job_of(self, prompt: str | None) -> int:
        number = number_of(prompt or "")
        return self.enqueued.get(number, 0) if number is not None else 0


async def gather(
    *,
    plan: Plan,
    books: Books,
    ledger: Path,
    folder: Path,
    enqueued: Mapping[int, int],
    asked: frozenset[int],
    journal: Journal,
    watch: Watch,
) -> Evidence:
    """Read everything. Raises RuntimeError if the database is away."""
    runs, submissions, counters = _read(ledger)
    return Evidence(
        plan=plan,
        enqueued=enqueued,
        asked=asked,
        journal=journal,
        watch=watch,
        logs=_logs(folder),
        jobs={row["id"]: row for row in await _all(books, _JOBS)},
        attempts=await _all(books, _ATTEMPTS),
        events=await _all(books, _EVENTS),
        messages=await _all(books, _MESSAGES),
        pids={row["id"]: row["pid"] for row in await _all(books, _WORKERS)},
        runs=runs,
        submissions=submissions,
        counters=counters,
    )


def _read(ledger: Path) -> tuple[list[Row], list[Row], Row]:
    """The runs, the submissions and the counters that the server wrote down."""
    runs: list[Row] = []
    submissions: list[Row] = []
    counters: Row = {}
    with ledger.open(encoding="utf-8") as file:
        for entry in map(json.loads, file):
            if "run" in entry:
                runs.append(entry["run"])
            elif "submission" in entry:
                submissions.append(entry["submission"])
            else:
                counters = entry["counters"]
    return runs, submissions, counters


def _logs(folder: Path) -> list[list[Row]]:
    return [_log(path) for path in sorted(folder.glob("worker-*.log"))]


async def _all(books: Books, query: str) -> list[dict[str, Any]]:
    rows = await books.ask(query)
    if rows is None:
        raise RuntimeError("the database is away after the soak")
    return rows


def _log(path: Path) -> list[Row]:
    """The JSON lines of a log; what is none (a traceback) is kept as text."""
    lines: list[Row] = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        lines.append(entry if isinstance(entry, dict) else {"text": line, "file": path.name})
    return lines


def _by(rows: Sequence[Row], name: str) -> Mapping[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return found
