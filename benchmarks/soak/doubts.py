"""Why a job came into doubt: what the server did to its request, or the harness to its worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.soak.evidence import Evidence, Row
from benchmarks.soak.journal import Deed
from benchmarks.soak.plan import SUBMIT_TIMEOUT_S

_SLACK_S = 1.0
_CUT = frozenset({"reset", "close", "break_body"})
_AMBIGUOUS = frozenset({202, 500, 502, 503, 504})
_DIED = "its worker died"
_ENDS = {Deed.KILL: "worker killed", Deed.FREEZE: "worker frozen", Deed.TERM: "worker stopped"}


def reason(evidence: Evidence, doubt: Row) -> str | None:
    """Say why the job of an event `… -> in_doubt` came into doubt; None: nothing explains it."""
    mark = _mark_before(evidence, doubt)
    if mark is None:
        return None
    start, end = mark["at"] - _SLACK_S, doubt["at"] + _SLACK_S
    by_worker = _what_befell(evidence, mark["worker_id"], start, end)
    if _DIED in _words(doubt):
        return by_worker
    for call in evidence.submissions_of.get(doubt["job_id"], ()):
        if start <= call["at"] <= end:
            found = _at_server(call)
            if found is not None:
                return found
    if any(act.touches(start, end) for act in evidence.journal.of(Deed.NO_API)):
        return "API refused connections"
    return by_worker


def _mark_before(evidence: Evidence, doubt: Row) -> Row | None:
    marks = [
        event
        for event in evidence.events_of[doubt["job_id"]]
        if event["event"] == "submit.marked" and event["id"] < doubt["id"]
    ]
    return marks[-1] if marks else None


def _words(event: Row) -> str:
    detail: Mapping[str, Any] = event["detail"] or {}
    return str(detail.get("error", ""))


def _at_server(call: Row) -> str | None:
    """Say what the server did to a submission that left it in doubt; None if it was clear."""
    cut = _CUT & set(call["faults"])
    if cut:
        return f"answer lost ({', '.join(sorted(cut))})"
    ended = call["ended_at"]
    if "delay" in call["faults"] and (ended is None or ended - call["at"] >= SUBMIT_TIMEOUT_S):
        return "answer too late"
    if "answer" in call["faults"] and call["status"] in _AMBIGUOUS:
        return f"answered {call['status']}"
    return None


def _what_befell(evidence: Evidence, worker_id: str, start: float, end: float) -> str | None:
    pid = evidence.pids.get(worker_id)
    for act in evidence.journal.of(*_ENDS):
        if act.pid == pid and act.touches(start, end):
            return _ENDS[act.deed]
    return None
