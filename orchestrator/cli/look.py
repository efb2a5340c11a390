"""Look: `status`, `jobs`, `show`, `watch`, `queues`, `workers`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import click

from orchestrator.api import Orchestrator
from orchestrator.cli import page_of_job, report
from orchestrator.cli.failures import SOME_NOT_COMPLETED
from orchestrator.cli.frame import Frame, command, pass_frame
from orchestrator.cli.options import as_json, filters, job_id, job_ids
from orchestrator.cli.render import (
    JOB_COLUMNS,
    Column,
    Output,
    job_row,
    money,
    plain,
    span,
    start_of,
)
from orchestrator.cli.watching import watch_all
from orchestrator.config import Settings, fingerprint
from orchestrator.errors import ConfigError
from orchestrator.job import Job
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import look as verbs
from orchestrator.store.verbs.look import Filter
from orchestrator.store.verbs.survey import survey, worker_rows

PAGE = 500
"""Jobs read at a time, so that an export needs little memory."""


# --- status -----------------------------------------------------------------------------------


@command
@filters("batch", "queues", "tag", "since", "until")
@as_json
@pass_frame
def status(frame: Frame, *, wanted: Filter, as_json: bool) -> None:
    """Say what ran, what failed and why, and what waits.

    Counts, cost, failures by cause, jobs in doubt with the command that decides them, what
    queued jobs wait for, closed gates, workers, and the jobs that run longest.
    """
    anyio.run(_status, frame.settings(), frame.output(), wanted, as_json)


async def _status(settings: Settings, out: Output, wanted: Filter, as_json: bool) -> None:
    async with Store.open(parse_url(settings.database.url)) as store:
        found = await store.read(survey, wanted)
    if as_json:
        out.json(report.as_document(found))
    else:
        report.write(out, found, settings, _own_fingerprint(settings))


def _own_fingerprint(settings: Settings) -> str | None:
    try:
        return fingerprint(settings.api.key_source(os.environ).read_key())
    except ConfigError:
        return None  # looking needs no key; only the part about other keys is left out


# --- jobs -------------------------------------------------------------------------------------


@command
@filters()
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)
@click.option("--all", "everything", is_flag=True, help="No limit.")
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, all columns.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all columns.")
@pass_frame
def jobs(
    frame: Frame,
    *,
    wanted: Filter,
    limit: int,
    everything: bool,
    newest: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List or export jobs."""
    if as_json and as_csv:
        raise click.UsageError("choose --json or --csv")
    form = "json" if as_json else "csv" if as_csv else "table"
    most = None if everything else limit
    anyio.run(_jobs, frame, frame.settings(), wanted, most, newest, form)


async def _jobs(
    frame: Frame, settings: Settings, wanted: Filter, most: int | None, newest: bool, form: str
) -> None:
    out = frame.output()
    shown = 0
    async with Store.open(parse_url(settings.database.url)) as store:
        if form == "csv":
            out.csv([JOB_COLUMNS])
        async for page in _pages(store, wanted, most, newest):
            _write_page(out, page, form, first=shown == 0)
            shown += len(page)
        total = await store.read(verbs.count, wanted) if shown == most else shown
    if shown == 0 and form == "table" and out.terminal:
        out.line("no jobs")
    if total > shown:
        frame.warn(f"{shown} of {total} jobs; --all gives every one, --limit more")


async def _pages(
    store: Store, wanted: Filter, most: int | None, newest: bool
) -> AsyncIterator[list[Job]]:
    left, after = most, None
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = await store.read(verbs.page, wanted, limit=size, newest=newest, after_id=after)
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1].id
        left = None if left is None else left - len(page)


def _write_page(out: Output, page: list[Job], form: str, *, first: bool) -> None:
    match form:
        case "json":
            for job in page:
                out.json(job, indent=None)
        case "csv":
            out.csv(job_row(job) for job in page)
        case _:
            out.table(_JOB_COLUMNS, [_job_cells(job) for job in page], header=first)


_JOB_COLUMNS = (
    Column("id", right=True),
    Column("state"),
    Column("queue"),
    Column("attempt", right=True),
    Column("error_kind"),
    Column("cost", right=True),
    Column("took", right=True),
    Column("prompt", whole=False),
    Column("result", whole=False),
)


def _job_cells(job: Job) -> tuple[object, ...]:
    return (
        job.id,
        job.state.value,
        job.queue,
        job.attempt,
        job.error_kind,
        money(job.cost_usd),
        took(job),
        start_of(page_of_job.asked(job)),
        start_of(job.result_text or job.error),
    )


def took(job: Job) -> str:
    """How long a job's run took, from its acceptance to its end; empty before its end."""
    began = job.accepted_at or job.sent_at
    if began is None or job.finished_at is None:
        return ""
    return span((job.finished_at - began).total_seconds())


# --- one job ------------------------------------------------------------------------------------


@command
@job_id
@click.option("--messages", is_flag=True, help="Show the whole messages.")
@click.option("--text", "text_only", is_flag=True, help="Print only the answer's text.")
@as_json
@pass_frame
def show(frame: Frame, *, job_id: int, messages: bool, text_only: bool, as_json: bool) -> int:
    """Show one job with its events and its text.

    --text prints the text as it is to a file or a pipe; on a terminal, what the terminal would
    obey is made visible. Without an answer it prints what there is so far, and the exit code is 3.
    """
    found = anyio.run(_page_of, frame.settings(), job_id)
    out = frame.output()
    if text_only:
        return _text_of(frame, out, found)
    if as_json:
        out.json(page_of_job.as_document(found, messages=messages))
    else:
        page_of_job.write(out, found, messages=messages)
    return 0


async def _page_of(settings: Settings, job_id: int) -> page_of_job.Page:
    async with Store.open(parse_url(settings.database.url)) as store:
        return await store.read(page_of_job.read, job_id)


def _text_of(frame: Frame, out: Output, found: page_of_job.Page) -> int:
    job = found.job
    if job.result_text is not None:
        out.raw(job.result_text)
        return 0
    if found.text:
        out.raw(found.text)
    what = "this is what there is of its text" if found.text else "it has no text"
    frame.warn(f"job {job.id} is {job.state.value}: {what}")
    return SOME_NOT_COMPLETED


@command
@job_ids
@pass_frame
def watch(frame: Frame, *, job_ids: tuple[int, ...]) -> int:
    """Show the text of jobs as it grows.

    Reads the database only, so it never disturbs a run. Ends when all are at rest, with exit
    code 3 if one of them did not complete.
    """
    if not job_ids:
        raise click.UsageError("name the job to watch")
    return anyio.run(_watch, frame.settings(), frame.output(), job_ids)


async def _watch(settings: Settings, out: Output, job_ids: tuple[int, ...]) -> int:
    async with Orchestrator(settings=settings) as orc:
        return await watch_all(orc, out, job_ids)


# --- queues and workers -------------------------------------------------------------------------


@command
@as_json
@pass_frame
def queues(frame: Frame, *, as_json: bool) -> None:
    """List the queues."""
    rows: list[dict[str, Any]] = anyio.run(_rows, frame.settings(), verbs.queue_rows)
    out = frame.output()
    if as_json:
        out.json(rows)
        return
    states = ("queued", "submitting", "running", "in_doubt", "completed", "failed", "cancelled")
    columns = [
        Column("queue"),
        *(Column(state, right=True) for state in states),
        Column("limit", right=True),
        Column("weight", right=True),
        Column("paused", whole=False),
    ]
    out.table(columns, [_queue_cells(row, states) for row in rows])


def _queue_cells(row: dict[str, Any], states: tuple[str, ...]) -> list[object]:
    paused = ""
    if row["paused_at"] is not None:
        reason = f": {row['paused_reason']}" if row["paused_reason"] else ""
        paused = f"since {plain(row['paused_at'])}{reason}"
    return [
        row["name"],
        *(row["jobs"].get(state, 0) for state in states),
        row["concurrency"],
        row["weight"],
        paused,
    ]


@command
@click.option("--all", "everything", is_flag=True, help="Those that have stopped, too.")
@as_json
@pass_frame
def workers(frame: Frame, *, everything: bool, as_json: bool) -> None:
    """List the workers."""
    settings = frame.settings()
    rows: list[dict[str, Any]] = anyio.run(_rows, settings, worker_rows, everything)
    out = frame.output()
    if as_json:
        out.json(rows)
        return
    columns = [
        *(Column(name) for name in ("id", "state", "host")),
        *(Column(name, right=True) for name in ("pid", "jobs", "last beat")),
        *(Column(name) for name in ("started", "key")),
        Column("api", whole=False),
    ]
    out.table(columns, [_worker_cells(row, settings.worker.dead_after) for row in rows])


def _worker_cells(row: dict[str, Any], dead_after: float) -> list[object]:
    return [
        row["id"],
        report.worker_state(row, dead_after),
        row["host"],
        row["pid"],
        row["held"],
        f"{span(row['silent_s'])} ago",
        row["started_at"],
        row["key_fingerprint"],
        row["api_origin"],
    ]


async def _rows(settings: Settings, verb: Any, *everything: bool) -> list[dict[str, Any]]:
    async with Store.open(parse_url(settings.database.url)) as store:
        if everything:
            return list(await store.read(verb, stopped=everything[0]))
        return list(await store.read(verb))
