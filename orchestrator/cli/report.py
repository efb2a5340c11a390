"""The page that `status` prints."""

from __future__ import annotations

from typing import Any

from orchestrator.cli.render import Output, moment, money, plain, span, start_of
from orchestrator.config import Settings, safe_url
from orchestrator.states import State
from orchestrator.store.verbs.gate import Gate
from orchestrator.store.verbs.survey import LISTED, Group, Survey


def as_document(found: Survey) -> dict[str, Any]:
    """Return the survey as one JSON document."""
    document = {
        name: plain(getattr(found, name))
        for name in ("now", "totals", "failures", "in_doubt", "waiting", "longest", "gates")
    }
    states = {state.value: 0 for state in State}
    kinds: dict[str, int] = {}
    for (state, kind), number in found.counts.items():
        states[state] += number
        if kind is not None:
            kinds[kind] = kinds.get(kind, 0) + number
    return {
        "states": states,
        "error_kinds": kinds,
        **document,
        "keys": [
            {"api_origin": origin, "key_fingerprint": key, "jobs": number}
            for origin, key, number in found.keys
        ],
        "workers": plain(found.workers),
        "paused_queues": plain(found.paused),
    }


def write(out: Output, found: Survey, settings: Settings, own_key: str | None) -> None:
    """Print the survey for a person. `own_key` is the fingerprint of the configured key."""
    out.line(f"{safe_url(settings.database.url)} at {moment(found.now)} UTC")
    _counts(out, found)
    _gates(out, found, settings.api.base_url, own_key)
    _failures(out, found)
    _in_doubt(out, found)
    _waiting(out, found)
    _longest(out, found)
    _workers(out, found, settings.worker.dead_after)
    if own_key is not None:
        _other_keys(out, found, settings.api.base_url, own_key)


def _counts(out: Output, found: Survey) -> None:
    out.line()
    if not found.counts:
        out.line("no jobs")
        return
    for state in State:
        kinds = {kind: n for (name, kind), n in found.counts.items() if name == state.value}
        if not kinds:
            continue
        shown = ", ".join(
            f"{n} {kind}" for kind, n in sorted(kinds.items(), key=str) if kind not in (None, state)
        )
        out.line(f"{state.value:<11}{sum(kinds.values()):>8}" + (f"   {shown}" if shown else ""))
    cost, tokens = found.totals["cost_usd"], found.totals["total_tokens"]
    unknown = found.totals["of_unknown_cost"]
    more = f"; {unknown:,} more runs told no cost" if unknown else ""
    out.line(f"{'cost':<11}{money(cost):>8}   {tokens:,} tokens, earlier attempts included{more}")


def _gates(out: Output, found: Survey, origin: str, own_key: str | None) -> None:
    """Tell of closed gates, but not of those whose key nobody uses any more."""
    used = {(worker["api_origin"], worker["key_fingerprint"]) for worker in found.workers}
    for gate in found.gates:
        mine = (gate.api_origin, gate.key_fingerprint) in {*used, (origin, own_key)}
        if gate.open or (own_key is not None and not mine):
            continue
        out.heading(f"gate closed: {why_closed(gate)}")
        out.line(f"  {gate.api_origin}, key {gate.key_fingerprint}; {next_probe(gate)}")


def why_closed(gate: Gate) -> str:
    """Say since when a gate is closed, and for what."""
    at = gate.closed_at or gate.suspected_at
    since = f" since {moment(at)} UTC" if at is not None else ""
    if gate.closed_at is None:
        return f"a 401 is looked at again{since}"
    return f"{gate.reason}{since}" + (f": {gate.detail}" if gate.detail else "")


def next_probe(gate: Gate) -> str:
    """Say what opens a closed gate."""
    if gate.next_probe_at is None:
        return "only you open it: orchestrator gate open"
    return f"the next probe is due at {moment(gate.next_probe_at)} UTC (a worker sends it)"


def _failures(out: Output, found: Survey) -> None:
    if not found.failures:
        return
    out.heading("failed")
    for group in found.failures[:LISTED]:
        out.line(
            f"  {group.count:>6}  {group.error_kind}: {start_of(group.text, 300)}{_varies(group)}"
        )
        out.line(f"          {_examples(group)}")
    _more(out, len(found.failures) - LISTED, "causes")


def _in_doubt(out: Output, found: Survey) -> None:
    if not found.in_doubt:
        return
    out.heading("in doubt: a run may have been started")
    for row in found.in_doubt:
        sent = f"sent {moment(row['sent_at'])} UTC: " if row["sent_at"] is not None else ""
        out.line(f"  {row['id']:>6}  {sent}{start_of(row['error'], 300)}")
        if row["resubmit_at"] is not None:
            out.line(f"          is sent again at {moment(row['resubmit_at'])} UTC")
        else:
            out.line(f"          decide: orchestrator resolve {row['id']}")
    number = sum(n for (state, _), n in found.counts.items() if state == State.IN_DOUBT.value)
    _more(out, number - len(found.in_doubt), "jobs: orchestrator jobs --state in_doubt")


def _waiting(out: Output, found: Survey) -> None:
    if not found.waiting:
        return
    out.heading("queued, waiting for")
    for group in found.waiting[:LISTED]:
        out.line(f"  {group.count:>6}  {start_of(group.text, 300)}{_varies(group)}")
        out.line(f"          {_examples(group)}")
    _more(out, len(found.waiting) - LISTED, "reasons")
    for row in found.paused:
        reason = f": {row['paused_reason']}" if row["paused_reason"] else ""
        out.line(f"  queue {row['name']} is paused since {moment(row['paused_at'])} UTC{reason}")
        out.line(f"          let it go on: orchestrator resume {row['name']}")


def _longest(out: Output, found: Survey) -> None:
    if not found.longest:
        return
    out.heading("running longest")
    for row in found.longest:
        so_far = span((found.now - row["since"]).total_seconds()) if row["since"] else "?"
        quiet = f", nothing since {span(row['quiet_s'])}" if row["quiet_s"] >= 60 else ""
        nobody = ", followed by no worker" if row["worker_id"] is None else ""
        out.line(f"  {row['id']:>6}  {so_far}{quiet}{nobody}")


def _workers(out: Output, found: Survey, dead_after: float) -> None:
    out.heading("workers")
    if not found.workers:
        out.line("  none is running: orchestrator worker")
    for row in found.workers:
        beat = f"last beat {span(row['silent_s'])} ago"
        out.line(
            f"  {row['host']} pid {row['pid']}: {worker_state(row, dead_after)}, "
            f"{row['held']} jobs, {beat}"
        )


def worker_state(row: dict[str, Any], dead_after: float) -> str:
    """Say whether a worker lives: `alive`, `silent` for longer than it may be, or `stopped`."""
    if row["stopped_at"] is not None:
        return "stopped"
    return "alive" if row["silent_s"] <= dead_after else "silent"


def _other_keys(out: Output, found: Survey, origin: str, own_key: str) -> None:
    others = [entry for entry in found.keys if entry[:2] != (origin, own_key)]
    if not others:
        return
    out.heading("live or in doubt under another API or key")
    for where, key, number in others:
        out.line(f"  {number:>6}  {where}, key {key}: only a worker with that key follows them")
        if where == origin:
            out.line(f"          if the key was replaced: orchestrator gate rekey {key}")


def _varies(group: Group) -> str:
    return "" if group.alike else "   (and others like it)"


def _examples(group: Group) -> str:
    ids = ", ".join(str(job_id) for job_id in group.examples)
    last = f"; the last at {moment(group.last_at)} UTC" if group.last_at is not None else ""
    all_named = group.count <= len(group.examples)
    word = "for example" if not all_named else "job" if group.count == 1 else "jobs"
    return f"{word} {ids}{last}"


def _more(out: Output, number: int, what: str) -> None:
    if number > 0:
        out.line(f"          … and {number} more {what}")
