"""The invariants: each check reads the evidence and gives what contradicts its promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from benchmarks.soak import doubts
from benchmarks.soak.evidence import Evidence, Row
from benchmarks.soak.journal import Act, Deed
from benchmarks.soak.messages import difference
from benchmarks.soak.plan import DEAD_AFTER_S, LIMITS
from benchmarks.soak.recipes import RECIPES
from orchestrator.states import TRANSITIONS, State

EXIT_TRY_LATER: Final = 75

_AT_REST: Final = frozenset({"completed", "failed", "cancelled", "in_doubt"})
_STOPPED: Final = frozenset({"cancelled", "timed_out", "stalled"})
_ENDS_OF: Final[Mapping[str, frozenset[str]]] = {
    "completed": frozenset(
        {"completed", "incomplete", "model_error", "no_output", "collect_failed"}
    ),
    "failed": _STOPPED | {"run_failed"},
    "cancelled": _STOPPED | {"cancelled_by_disconnect", "cancelled_remotely"},
}
"""How a job may end, by the status that its run has at the server."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be. `job_id` is None where it is about no job."""

    job_id: int | None
    words: str


Check = Callable[[Evidence], Iterator[Violation]]


def nothing_lost(evidence: Evidence) -> Iterator[Violation]:
    """Every job that `enqueue` returned is settled, or in doubt and waits for a person."""
    for number in range(evidence.plan.jobs):
        job_id = evidence.enqueued.get(number)
        if job_id is None:
            yield Violation(None, f"number {number} was never enqueued")
        elif job_id not in evidence.jobs:
            yield Violation(job_id, "its row is gone")
        elif evidence.jobs[job_id]["state"] not in _AT_REST:
            yield Violation(job_id, f"it is still {evidence.jobs[job_id]['state']}")
    strangers = evidence.jobs.keys() - set(evidence.enqueued.values())
    for job_id in sorted(strangers):
        yield Violation(job_id, "a row that no call of enqueue returned")


def every_run_known(evidence: Evidence) -> Iterator[Violation]:
    """Every run that the server accepted is in the tables, or its job came into doubt."""
    known = {row["run_id"] for row in (*evidence.jobs.values(), *evidence.attempts)}
    known |= {(event["detail"] or {}).get("run_id") for event in evidence.events}
    for job_id, runs in evidence.runs_of.items():
        for run in runs:
            if run["run_id"] in known:
                continue
            if not any(map(_is_doubt, evidence.events_of[job_id])):
                yield Violation(job_id, f"run {run['run_id']} is nowhere, and nothing was in doubt")


def started_once(evidence: Evidence) -> Iterator[Violation]:
    """No job has a second run, unless the API said that the one before failed or was cancelled."""
    for job_id, runs in evidence.runs_of.items():
        job = evidence.jobs.get(job_id)
        if job is None:
            yield Violation(None, f"a run of an unknown prompt: {runs[0]['prompt'][:60]}")
            continue
        if len(runs) > job["max_attempts"]:
            yield Violation(job_id, f"{len(runs)} runs, allowed are {job['max_attempts']}")
        for earlier in runs[:-1]:
            if earlier["status"] not in {"failed", "cancelled"}:
                words = f"{earlier['run_id']} is {earlier['status']}, and another run was started"
                yield Violation(job_id, words)
    for prompt, count in evidence.counters["runs_by_prompt"].items():
        if " generate " in prompt and count > 1:
            yield Violation(None, f"generated {count} times: {prompt[:40]}")


def doubts_explained(evidence: Evidence) -> Iterator[Violation]:
    """Every doubt has a cause that the server or the harness wrote down."""
    for event in filter(_is_doubt, evidence.events):
        if doubts.reason(evidence, event) is None:
            words = (event["detail"] or {}).get("error")
            yield Violation(event["job_id"], f"in doubt without a cause: {words}")


def messages_exact(evidence: Evidence) -> Iterator[Violation]:
    """Every stored message is the server's, and a completed job has one."""
    stored: dict[tuple[int, int], list[Row]] = {}
    for row in evidence.messages:
        stored.setdefault((row["job_id"], row["attempt"]), []).append(row)
    for job in evidence.jobs.values():
        rows = stored.get((job["id"], job["attempt"]), [])
        run = evidence.run_of.get(job["run_id"] or "")
        words = difference(job, rows, run)
        if words is not None:
            yield Violation(job["id"], words)


def verdicts_right(evidence: Evidence) -> Iterator[Violation]:
    """Every job ended as what it asked for, and what its run did, must end."""
    for job in evidence.jobs.values():
        if job["state"] not in {"completed", "failed", "cancelled"}:
            continue
        end = job["error_kind"] or job["state"]
        allowed = RECIPES[job["batch"]].ends | _by_circumstance(evidence, job["id"])
        if end not in allowed:
            yield Violation(job["id"], f"{job['batch']!r} ended as {end}: {job['error']}")
        run = evidence.run_of.get(job["run_id"] or "")
        if run is not None and end not in _ENDS_OF.get(run["status"], _without_a_chat(job, end)):
            yield Violation(job["id"], f"it ended as {end}, its run is {run['status']}")


def _without_a_chat(job: Row, end: str) -> frozenset[str]:
    """What a job may end as while its run goes on: a run whose chat never showed, since its 202
    broke and it wrote nothing, cannot be stopped."""
    return frozenset({end} & _STOPPED if job["chat_id"] is None else ())


def _by_circumstance(evidence: Evidence, job_id: int) -> frozenset[str]:
    """The ends that a job may have for what happened to it."""
    ends = {"cancelled"} if job_id in evidence.asked else set()
    for call in evidence.submissions_of.get(job_id, ()):
        if "answer" in call["faults"]:
            ends |= {403: {"forbidden"}, 404: {"rejected"}}.get(call["status"], set())
        if "break_body" in call["faults"]:
            # Only the run's id came; a run that ends before its chat was found keeps no text.
            ends.add("collect_failed")
    if any(map(_chat_was_not_read, evidence.events_of[job_id])):
        # The stream saw the whole turn, and that the chat is empty nobody could know.
        ends.add("completed")
    return frozenset(ends)


def _chat_was_not_read(event: Row) -> bool:
    """True for a message of the stream that stands in for one that the API refused to show."""
    detail = event["detail"] if event["event"] == "collect.difference" else None
    return bool(detail) and detail["kept"] == "stream" and detail["why"] not in _READ


_READ = frozenset({"the chat holds no message", "the stored message is an earlier state"})
"""Why the stream's message is kept though the chat was read (`orchestrator/harvest.py`)."""


def paths_legal(evidence: Evidence) -> Iterator[Violation]:
    """The events of each job tell one story: each state leads to the next, leases only rise."""
    for job_id, job in evidence.jobs.items():
        state: str | None = None
        lease = 0
        for event in evidence.events_of[job_id]:
            if event["lease"] is not None:
                if event["lease"] < lease:
                    words = f"event {event['id']}: lease {event['lease']} after {lease}"
                    yield Violation(job_id, words)
                lease = event["lease"]
            came_from, to = event["from_state"], event["to_state"]
            if came_from is not None and came_from != state:
                yield Violation(job_id, f"event {event['id']} leaves {came_from}, it was {state}")
            if to is None or to == state:
                continue
            if state is not None and State(to) not in TRANSITIONS[State(state)]:
                yield Violation(job_id, f"event {event['id']} goes from {state} to {to}")
            state = to
        if state != job["state"]:
            yield Violation(job_id, f"its events end in {state}, its row in {job['state']}")


def limits_held(evidence: Evidence) -> Iterator[Violation]:
    """No queue was ever seen with more live jobs than its limit.

    A run that came out of doubt by a late answer is followed whatever the limit says, and does
    not count.
    """
    for excess in evidence.watch.excesses:
        repaired = sum(
            any(event["from_state"] == "in_doubt" for event in evidence.events_of[job_id])
            for job_id in excess.ids
        )
        if len(excess.ids) - repaired > LIMITS[excess.queue]:
            words = f"{excess.number} live jobs in {excess.queue}: {list(excess.ids)}"
            yield Violation(None, words)


def nobody_buried_alive(evidence: Evidence) -> Iterator[Violation]:
    """No worker was declared dead that the harness had not frozen."""
    for pid, entry in deaths_taken_back(evidence):
        frozen = any(
            act.pid == pid and act.touches(entry["at"] - 2 * DEAD_AFTER_S, entry["at"])
            for act in evidence.journal.of(Deed.FREEZE)
        )
        if not frozen:
            yield Violation(None, f"worker {pid} was declared dead at {entry['timestamp']}")


def deaths_taken_back(evidence: Evidence) -> Iterator[tuple[int, dict[str, Any]]]:
    """The pid and the log line of each worker that found itself declared dead."""
    for log in evidence.logs:
        pid = next((int(line["pid"]) for line in log if line.get("event") == "worker.started"), 0)
        for line in log:
            if line.get("event") == "worker.was_declared_dead":
                at = datetime.fromisoformat(line["timestamp"]).timestamp()
                yield pid, {**line, "at": at}


def ended_when_told(evidence: Evidence) -> Iterator[Violation]:
    """Workers ended when they were told to, or while the database was away at their start.

    -15 is a worker that was stopped before it could take the signal for itself.
    """
    journal = evidence.journal
    told = {act.pid for act in journal.of(Deed.KILL, Deed.TERM)}
    outages = journal.of(Deed.NO_DATABASE)
    for act in journal.of(Deed.EXIT):
        if act.pid in told and act.detail in {"0", "-9", "-15"}:
            continue
        if act.detail == str(EXIT_TRY_LATER) and _during(outages, act.at):
            continue
        yield Violation(None, f"worker {act.pid} ended by itself with {act.detail}")


def _during(acts: list[Act], at: float) -> bool:
    return any(act.touches(at - 30.0, at) for act in acts)


def _is_doubt(event: Row) -> bool:
    return bool(event["to_state"] == "in_doubt" and event["from_state"] not in {None, "in_doubt"})


CHECKS: Final[Mapping[str, Check]] = {
    "nothing lost": nothing_lost,
    "every run known": every_run_known,
    "started once": started_once,
    "doubts explained": doubts_explained,
    "messages exact": messages_exact,
    "verdicts right": verdicts_right,
    "paths legal": paths_legal,
    "limits held": limits_held,
    "nobody buried alive": nobody_buried_alive,
    "ended when told": ended_when_told,
}
