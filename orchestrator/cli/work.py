"""Work: `enqueue`, `worker`, `wait`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, stop_never
from tenacity.wait import wait_exponential

from orchestrator import log
from orchestrator.api import JobHandle, Orchestrator
from orchestrator.cli.bulk import FORMS, Line, form_of, read_jobs, with_times
from orchestrator.cli.failures import SOME_NOT_COMPLETED, TRY_LATER, BadInput
from orchestrator.cli.frame import Frame, command, pass_frame
from orchestrator.cli.options import (
    as_json,
    content_of,
    duration,
    filters,
    job_ids,
    json_file,
    json_value,
)
from orchestrator.cli.render import Output, start_of
from orchestrator.config import Settings
from orchestrator.errors import DuplicateKey
from orchestrator.request import Defaults, job_values
from orchestrator.states import RETRYABLE_KINDS, Endpoint, OnInDoubt
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import look
from orchestrator.store.verbs.enqueue import OnConflict
from orchestrator.store.verbs.look import Filter

LOOK_FIRST_S, LOOK_MOST_S = 0.1, 1.0
"""How often `wait` looks at the database."""

TOLD = 20
"""Jobs that `wait` names at its end."""


# --- enqueue ----------------------------------------------------------------------------------


def _words(*names: str) -> dict[str, Any]:
    # Click would take an enum's members by their names, in capitals.
    return {"type": click.Choice(sorted(str(name) for name in names))}


_JOB_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("--messages",),
        {
            "type": json_file,
            "metavar": "FILE",
            "help": "A JSON file of messages, instead of a prompt; - is stdin.",
        },
    ),
    (("--model",), {"help": "The model; else the configured one, else the server's."}),
    (("--artist-id",), {"metavar": "UUID", "help": "The artist that the run is about."}),
    (("--account-id",), {"metavar": "UUID", "help": "The account, for a key that has several."}),
    (("--organization-id",), {"metavar": "UUID", "help": "The organization, likewise."}),
    (
        ("--endpoint",),
        {**_words(*Endpoint), "help": "The API's endpoint: durable runs, or the older one."},
    ),
    (("--room-id",), {"metavar": "UUID", "help": "The room (endpoint generate)."}),
    (("--topic",), {"help": "The topic (endpoint generate)."}),
    (
        ("--exclude-tools", "exclude_tools"),
        {"multiple": True, "metavar": "NAME", "help": "A tool to withhold (endpoint generate)."},
    ),
    (("--queue",), {"help": "The queue."}),
    (("--priority",), {"type": int, "help": "Higher goes first; 0 by default."}),
    (("--batch",), {"help": "A name for jobs that belong together."}),
    (("--tag", "tags"), {"multiple": True, "help": "A tag; may be given again."}),
    (
        ("--metadata",),
        {
            "type": json_value,
            "metavar": "JSON",
            "help": "A JSON object of your own, kept as it is.",
        },
    ),
    (("--unique-key",), {"metavar": "KEY", "help": "At most one job has this key."}),
    (
        ("--at", "--scheduled-at", "scheduled_at"),
        {"metavar": "TIME", "help": "Not before: 2026-01-31T08:00:00Z, or +2h."},
    ),
    (
        ("--expires", "--expires-at", "expires_at"),
        {"metavar": "TIME", "help": "Fail it if it was not sent until then; +2h counts from now."},
    ),
    (("--max-attempts",), {"type": int, "help": "Runs that it may start in all."}),
    (
        ("--retry-on",),
        {
            "multiple": True,
            **_words(*RETRYABLE_KINDS),
            "metavar": "KIND",
            "help": f"Start another after: {', '.join(sorted(RETRYABLE_KINDS))}.",
        },
    ),
    (
        ("--on-in-doubt",),
        {**_words(*OnInDoubt), "help": "What to do when it may have started a run."},
    ),
    (("--run-timeout",), {"metavar": "TIME", "help": "How long the run may take: 90m, 6h."}),
    (("--stall-timeout",), {"metavar": "TIME", "help": "How long it may show nothing new."}),
)


def _job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for names, attributes in reversed(_JOB_OPTIONS):
        function = click.option(*names, **attributes)(function)
    return function


@command
@click.argument("prompt", required=False)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Enqueue every line of a JSONL, CSV or text file, or none of them.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(sorted(FORMS)),
    help="The form of the file, where its name does not say it.",
)
@_job_options
@click.option(
    "--on-conflict",
    type=click.Choice([word.value for word in OnConflict]),
    default=OnConflict.RETURN.value,
    show_default=True,
    help="What to do when the unique key exists.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, enqueue nothing.")
@as_json
@pass_frame
def enqueue(
    frame: Frame,
    /,
    *,
    prompt: str | None,
    file: Path | None,
    form: str | None,
    on_conflict: str,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Enqueue a prompt, or a file of them.

    PROMPT is the text itself, or - to read it from standard input. A file has an object a line
    (.jsonl), a header and columns (.csv; tags separated by ;), or a prompt a line (.txt); its
    names are those of the options with underscores, and options given here hold for every line
    that does not say otherwise. Prints the ids, one a line.
    """
    settings = frame.settings()
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
    given = {name: value for name, value in given.items() if value not in (None, [])}
    now = datetime.now(UTC)
    if file is not None:
        if prompt is not None or "messages" in given:
            raise click.UsageError("give a prompt, messages or a file, not several of them")
        lines = _lines_of(file, form, given, now)
    elif prompt is None and "messages" not in given:
        raise click.UsageError("give a prompt, - for standard input, --messages or --file")
    else:
        text = _stdin_text() if prompt == "-" else prompt
        options_of_it = with_times({**given, "prompt": text}, now)
        job_values(options_of_it, Defaults())
        lines = [Line(0, options_of_it)]
    if dry_run:
        _told_of_dry_run(frame.output(), lines, as_json=as_json)
        return
    handles = anyio.run(_enqueue, settings, lines, on_conflict, str(file or ""))
    _told_ids(frame, handles, as_json=as_json)


def _lines_of(file: Path, form: str | None, given: dict[str, Any], now: datetime) -> list[Line]:
    chosen = form or form_of(file) or ("jsonl" if str(file) == "-" else None)
    if chosen is None:
        raise click.UsageError(f"{file}: say what it is with --format jsonl, csv or text")
    content = content_of(file)
    lines = read_jobs(content, name=str(file), form=chosen, given=given, now=now)
    if not lines:
        raise BadInput(f"{file}: it holds no job")
    return lines


def _stdin_text() -> str:
    try:
        return content_of("-").decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise BadInput("standard input is not UTF-8") from None


async def _enqueue(
    settings: Settings, lines: Sequence[Line], on_conflict: str, name: str
) -> list[JobHandle]:
    async with Orchestrator(settings=settings) as orc:
        try:
            return await orc.enqueue_many([line.options for line in lines], on_conflict=on_conflict)
        except DuplicateKey as error:
            if not name:
                raise
            same = [line for line in lines if line.options.get("unique_key") == error.unique_key]
            numbers = ", ".join(str(line.number) for line in same)
            raise BadInput(f"nothing was enqueued\n  {name}:{numbers}: {error}") from error


def _told_of_dry_run(out: Output, lines: Sequence[Line], *, as_json: bool) -> None:
    keyed = sum(bool(line.options.get("unique_key")) for line in lines)
    if as_json:
        out.json({"dry_run": True, "jobs": len(lines), "with_unique_key": keyed})
        return
    unless = f", {keyed} of them unless their unique key exists" if keyed else ""
    out.line(f"{_jobs(len(lines))} would be enqueued{unless}; nothing was")


def _told_ids(frame: Frame, handles: Sequence[JobHandle], *, as_json: bool) -> None:
    out = frame.output()
    existing = [handle.id for handle in handles if not handle.created]
    if as_json:
        out.json({"jobs": [{"id": handle.id, "created": handle.created} for handle in handles]})
    elif not out.terminal:
        for handle in handles:
            out.line(str(handle.id))
        if existing:
            frame.warn(f"{_jobs(len(existing))} of {len(handles)} existed: their unique keys did")
    else:
        ids = [handle.id for handle in handles if handle.created]
        if ids:
            many = f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else str(ids[0])
            out.line(f"enqueued {_jobs(len(ids))}: {many}")
        if existing:
            shown = ", ".join(str(job_id) for job_id in existing[:TOLD])
            out.line(f"{_jobs(len(existing))} with such a unique key existed: {shown}")
        out.line("run them with: orchestrator worker --once")


# --- worker -----------------------------------------------------------------------------------


@command
@click.option("--once", is_flag=True, help="End when no job is due and none is live.")
@click.option(
    "--max-jobs", type=click.IntRange(min=1), metavar="N", help="Take at most N jobs, then end."
)
@click.option("--queue", "queues", multiple=True, help="Serve only this queue; may be given again.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="At most N live jobs at a time."
)
@pass_frame
def worker(
    frame: Frame,
    *,
    once: bool,
    max_jobs: int | None,
    queues: tuple[str, ...],
    concurrency: int | None,
) -> int:
    """Run a worker.

    It claims jobs, starts their runs, follows them and saves what they give, until SIGTERM or
    Ctrl-C; a second signal ends it at once. Both leave the runs alone, and another worker goes
    on with them. With --once the exit code is 3 if a job did not complete, and 75 if the API
    could not be used.
    """
    # The other commands of this module need neither the worker nor its two HTTP libraries.
    from orchestrator.worker.daemon import Run, run_daemon

    settings = frame.settings(worker={"queues": queues or None, "concurrency": concurrency})
    log.configure(frame.level(settings.log.level), settings.log.format)
    return anyio.run(run_daemon, settings, Run(once=once, max_jobs=max_jobs))


# --- wait -------------------------------------------------------------------------------------


@command
@job_ids
@filters("queues", "batch", "tag", "search", "since", "until")
@click.option(
    "--timeout",
    type=duration,
    metavar="TIME",
    help="Give up after this long: 90s, 2h. Exit code 75.",
)
@pass_frame
def wait(frame: Frame, *, job_ids: tuple[int, ...], wanted: Filter, timeout: float | None) -> int:
    """Wait until jobs are at rest.

    At rest are completed, failed and cancelled jobs, and those in doubt that a person must
    decide about. Waits for the jobs named, or for those that match, or for all that are not at
    rest now. Exit code 3 if one of them did not complete.
    """
    return anyio.run(_wait, frame.settings(), frame.output(), job_ids, wanted, timeout)


async def _wait(
    settings: Settings,
    out: Output,
    job_ids: tuple[int, ...],
    wanted: Filter,
    timeout: float | None,  # noqa: ASYNC109 - the option's own word
) -> int:
    async with Store.open(parse_url(settings.database.url)) as store:
        for job_id in job_ids:
            await store.read(look.load, job_id)
        chosen = list(job_ids) or await store.read(look.ids, wanted)
        if not job_ids and wanted == Filter():
            chosen = await store.read(look.moving, chosen)
        left = await _until_at_rest(store, chosen, out, timeout)
        others = await store.read(look.not_completed, chosen)
    completed = len(chosen) - len(others)
    out.line(f"{completed} of {_jobs(len(chosen))} completed")
    for job in [job for job in others if job.id not in set(left)][:TOLD]:
        out.line(f"{job.id} {job.state.value} ({job.error_kind}): {start_of(job.error, 200)}")
    if left:
        out.line(f"{_jobs(len(left))} still not at rest after {timeout:g} s")
        return TRY_LATER
    return SOME_NOT_COMPLETED if others else 0


async def _until_at_rest(
    store: Store, chosen: list[int], out: Output, limit: float | None
) -> list[int]:
    """Return the ids of those that are not at rest when the time is up, in seconds."""
    left = chosen
    progress = Progress(
        TextColumn("at rest"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out.console,
        disable=not out.terminal,
        transient=True,
    )
    bar = progress.add_task("at rest", total=len(chosen))

    async def look_again() -> list[int]:
        nonlocal left
        left = await store.read(look.moving, left)
        progress.update(bar, completed=len(chosen) - len(left))
        return left

    retrying = AsyncRetrying(
        retry=retry_if_result(bool),
        wait=wait_exponential(LOOK_FIRST_S, LOOK_MOST_S, exp_base=1.5),
        stop=stop_never if limit is None else stop_after_delay(limit),
        sleep=anyio.sleep,
        retry_error_callback=lambda _state: None,
    )
    with progress:
        await retrying(look_again)
    return left


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
