"""The page that `show` prints of one job."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, column, select, table

from orchestrator.cli.render import Column, Output, money, plain
from orchestrator.job import Event, Job, Message
from orchestrator.partial import PartialText
from orchestrator.store.verbs import look

_APART = frozenset(
    {"id", "state", "prompt", "input_messages", "result_text", "request", "cost_usd"}
)
"""Columns with a place of their own on the page."""

_waiting = table("waiting", column("id"), column("waiting_for"))


@dataclass(frozen=True, slots=True)
class Page:
    """A job with everything that belongs to it. `text` is its answer, or what there is of it."""

    job: Job
    waiting_for: str | None
    events: list[Event]
    attempts: list[dict[str, Any]]
    messages: list[Message]
    text: str


def read(connection: Connection, job_id: int) -> Page:
    """Read the page in the caller's one transaction. Raises NotFound."""
    job = look.load(connection, job_id)
    waits = select(_waiting.c.waiting_for).where(_waiting.c.id == job_id)
    return Page(
        job=job,
        waiting_for=connection.execute(waits).scalar_one_or_none(),
        events=look.events(connection, job_id),
        attempts=[row._asdict() for row in look.previous_attempts(connection, job_id)],
        messages=look.messages_of(connection, job_id),
        text=PartialText().read(connection, job),
    )


def as_document(page: Page, *, messages: bool) -> dict[str, Any]:
    """Return the page as one JSON document."""
    document = {
        **plain(page.job),
        "waiting_for": page.waiting_for,
        "text": page.text,
        "events": plain(page.events),
        "attempts": plain(page.attempts),
    }
    return {**document, "messages": plain(page.messages)} if messages else document


def write(out: Output, page: Page, *, messages: bool) -> None:
    """Print the page for a person."""
    job = page.job
    kind = f" ({job.error_kind})" if job.error_kind else ""
    out.line(f"job {job.id}: {job.state.value}{kind}", style="bold")
    if page.waiting_for is not None:
        out.line(f"waits for {page.waiting_for}")
    out.line()
    values = plain(job)
    names = [name for name in values if name not in _APART]
    cost = money(job.cost_usd)
    out.pairs([("cost", cost), *((name, values[name]) for name in names)])
    out.heading("prompt")
    out.text(asked(job))
    for attempt in page.attempts:
        out.heading(f"attempt {attempt['attempt']}: {attempt['state']}")
        out.pairs((name, plain(value)) for name, value in attempt.items() if name not in _SHOWN)
    out.heading("events")
    columns = [Column("at"), Column("event"), Column("to"), Column("detail", whole=False)]
    out.table(columns, [_event_cells(event) for event in page.events])
    if messages:
        for message in page.messages:
            out.heading(f"message {message.position}: {message.role}, from the {message.source}")
            out.text(json.dumps(message.message, indent=2, ensure_ascii=False))
    if page.text:
        out.heading("text" if job.result_text is not None else "text so far")
        out.text(page.text)


_SHOWN = frozenset({"job_id", "attempt", "state", "request"})


def _event_cells(event: Event) -> tuple[object, ...]:
    return event.at, event.event, event.to_state, event.detail


def asked(job: Job) -> str:
    """Return what a job asks: its prompt, or its messages as JSON."""
    if job.prompt is not None:
        return job.prompt
    return json.dumps(job.input_messages, ensure_ascii=False) if job.input_messages else ""
