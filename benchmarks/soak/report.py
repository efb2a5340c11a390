"""The report of a soak: figures, invariants, and the event logs of jobs that broke one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.soak import doubts
from benchmarks.soak.checks import CHECKS, Violation, deaths_taken_back
from benchmarks.soak.evidence import Evidence
from benchmarks.soak.journal import Deed
from benchmarks.soak.plan import LIMITS

_SHOWN = 10
"""Violations of one invariant whose event logs the text shows; the JSON names all."""


@dataclass(frozen=True, slots=True)
class Report:
    """Figures by name, and each invariant with its violations."""

    evidence: Evidence
    figures: dict[str, Any]
    violations: dict[str, list[Violation]]

    @property
    def held(self) -> bool:
        """True if no invariant is broken."""
        return not any(self.violations.values())

    def as_json(self) -> str:
        """The whole report as JSON, with the event logs of all jobs that broke an invariant."""
        broken = {each.job_id for found in self.violations.values() for each in found}
        value = {
            "held": self.held,
            "plan": asdict(self.evidence.plan),
            "figures": self.figures,
            "violations": {
                name: [asdict(each) for each in found] for name, found in self.violations.items()
            },
            "events": {
                job_id: self.evidence.events_of[job_id] for job_id in broken if job_id is not None
            },
        }
        return json.dumps(value, indent=2, default=str)

    def as_text(self) -> str:
        """The report for a person."""
        return "\n".join((*_figures(self.figures), "", *self._invariants()))

    def _invariants(self) -> Iterator[str]:
        yield "invariants"
        for name, check in CHECKS.items():
            found = self.violations[name]
            says = (check.__doc__ or "").strip().splitlines()[0]
            yield f"  {'held  ' if not found else 'BROKEN'}  {name:<20} {says}"
        for name, found in self.violations.items():
            if found:
                yield from ("", f"{name}: {len(found)} violations")
                for each in found[:_SHOWN]:
                    yield from _violation(self.evidence, each)


def judge(evidence: Evidence, seconds: float, storm_s: float) -> Report:
    """Check every invariant; `seconds` is the length of the soak, `storm_s` that of its storm."""
    violations = {name: list(check(evidence)) for name, check in CHECKS.items()}
    return Report(evidence, figures(evidence, seconds, storm_s), violations)


def figures(evidence: Evidence, seconds: float, storm_s: float) -> dict[str, Any]:
    """Count what happened."""
    jobs = evidence.jobs.values()
    journal = evidence.journal
    doubtful = [e for e in evidence.events if e["to_state"] == "in_doubt" and e["from_state"]]
    repaired = sum(e["from_state"] == "in_doubt" for e in evidence.events)
    cut = [act for act in journal.of(Deed.NO_DATABASE) if "immediate" in act.detail]
    return {
        "soak": {
            "jobs": len(jobs),
            "seconds": round(seconds),
            "of them storm": round(storm_s),
            "jobs a second": round(len(jobs) / seconds, 1),
            "runs accepted by the API": len(evidence.runs),
            "requests to the API": sum(a["count"] for a in evidence.counters["answers"]),
            "events written": len(evidence.events),
        },
        "jobs by end": _sorted(job["error_kind"] or job["state"] for job in jobs),
        "attempts that a further one followed": _sorted(
            row["error_kind"] for row in evidence.attempts
        ),
        "doubts": {
            "came into doubt": len(doubtful),
            "repaired by a late answer": repaired,
            **_sorted(doubts.reason(evidence, event) or "UNEXPLAINED" for event in doubtful),
        },
        "what happened to workers": {
            "started": len(journal.of(Deed.START)),
            "killed": len(journal.of(Deed.KILL)),
            "stopped": len(journal.of(Deed.TERM)),
            "frozen": len(journal.of(Deed.FREEZE)),
            "declared dead while frozen, and back": len(list(deaths_taken_back(evidence))),
        },
        "what happened to the database": {
            "restarts": len(journal.of(Deed.NO_DATABASE)),
            "of them as a crash": len(cut),
            "seconds away": round(_seconds(journal.of(Deed.NO_DATABASE)), 1),
        },
        "what happened to the API": {
            "key revoked": len(journal.of(Deed.NO_KEY)),
            "connections refused": len(journal.of(Deed.NO_API)),
            **_sorted(act.detail for act in journal.of(Deed.EPISODE)),
        },
        "submissions answered": _answers(evidence, {"start", "generate"}),
        "other calls answered": _answers(
            evidence, {"status", "stream", "chat", "stop", "chats", "room"}
        ),
        "rescues": _sorted(
            event["event"]
            for event in evidence.events
            if event["event"] in {"run.adopted", "run.released", "rescue.requeued"}
        ),
        "messages kept": _sorted(row["source"] for row in evidence.messages),
        "most live jobs seen": {
            **{
                f"{queue} (limit {limit})": evidence.watch.most_live[queue]
                for queue, limit in LIMITS.items()
            },
            "looks": evidence.watch.looks,
            "of them with more, by late answers": len(evidence.watch.excesses),
        },
        "cancellations asked for": {"jobs": len(evidence.asked)},
    }


def _answers(evidence: Evidence, routes: set[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for answer in evidence.counters["answers"]:
        if answer["route"] in routes:
            found[str(answer["status"] or "none")] += answer["count"]
    return dict(sorted(found.items()))


def _sorted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _seconds(acts: list[Any]) -> float:
    return float(sum(act.until - act.at for act in acts))


def _figures(figures: dict[str, Any]) -> Iterator[str]:
    for name, group in figures.items():
        yield name
        if not group:
            yield "  none"
        for label, value in group.items():
            yield f"  {label:<38} {value:>10,}" if not isinstance(value, str) else f"  {label}"


def _violation(evidence: Evidence, violation: Violation) -> Iterator[str]:
    where = f"job {violation.job_id}: " if violation.job_id is not None else ""
    yield f"  {where}{violation.words}"
    for event in evidence.events_of.get(violation.job_id or 0, ()):
        at = datetime.fromtimestamp(event["at"], UTC).strftime("%H:%M:%S.%f")[:-3]
        move = f"{event['from_state']} -> {event['to_state']}"
        detail = json.dumps(event["detail"]) if event["detail"] else ""
        who = (event["worker_id"] or "")[:8]
        yield f"    {at} {event['event']:<22} {move:<26} lease {event['lease']} {who} {detail}"
