"""Act: `cancel`, `retry`, `resolve`, `pause`, `resume`, `limit`; `gate` has a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import anyio
import click
from sqlalchemy import Connection

from orchestrator.api import Orchestrator
from orchestrator.cli.frame import Frame, command, pass_frame
from orchestrator.cli.gate import write_once
from orchestrator.cli.options import filters, job_ids
from orchestrator.cli.render import Column, Output, moment, start_of
from orchestrator.config import Settings
from orchestrator.errors import NotAllowed, OrchestratorError
from orchestrator.job import Job
from orchestrator.request import queue_name
from orchestrator.states import SETTLED, State
from orchestrator.store.verbs import people
from orchestrator.store.verbs.look import Filter

Verb: TypeAlias = Callable[[Connection, int], Job]
Results: TypeAlias = list[tuple[int, Job | NotAllowed]]

UNSETTLED = tuple(state.value for state in State if state not in SETTLED)
RETRIED = (State.FAILED.value, State.CANCELLED.value)
DOUBTED = (State.IN_DOUBT.value,)

YES = "Do not ask before acting on several jobs; nothing is asked where there is no terminal."

_CHOSEN: tuple[Callable[..., Any], ...] = (
    job_ids,
    filters(),
    click.option("--all", "everything", is_flag=True, help="Every job that it applies to."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    click.option("-y", "--yes", is_flag=True, help=YES),
)


def _on_jobs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that acts on the jobs named, or on those that match."""
    for option in reversed(_CHOSEN):
        function = option(function)
    return function


@command
@_on_jobs
@pass_frame
def cancel(frame: Frame, /, **chosen: Any) -> int:
    """Call jobs off.

    Queued jobs and jobs in doubt are cancelled at once; the run of a live one is stopped by its
    worker, and its end decides.
    """
    return _act(frame, people.cancel, UNSETTLED, **chosen)


@command
@_on_jobs
@pass_frame
def retry(frame: Frame, /, **chosen: Any) -> int:
    """Queue settled jobs again, as new attempts.

    By filter it takes failed and cancelled jobs, unless --state says otherwise.
    """
    return _act(frame, people.retry, RETRIED, **chosen)


def _act(
    frame: Frame,
    verb: Verb,
    states: tuple[str, ...],
    *,
    job_ids: tuple[int, ...],
    wanted: Filter,
    everything: bool,
    dry_run: bool,
    yes: bool,
    choice: str = "name jobs, or a filter, or --all",
) -> int:
    """Apply a verb to the jobs named, or to those in `states` that match; return the exit code."""
    if not job_ids and wanted == Filter() and not everything:
        raise click.UsageError(choice)
    if job_ids and (wanted != Filter() or everything):
        raise click.UsageError("name jobs or a filter, not both")
    by_filter = replace(wanted, states=wanted.states or states)
    target = Filter(ids=job_ids) if job_ids else by_filter
    settings, out = frame.settings(), frame.output()
    if dry_run or (out.terminal and not yes):
        rehearsed = anyio.run(_apply, settings, verb, job_ids, target, True)
        able = sum(isinstance(result, Job) for _, result in rehearsed)
        if dry_run:
            return _told(out, rehearsed, named=bool(job_ids), dry_run=True)
        if able > 1 and not click.confirm(f"{able} jobs: go on?"):
            out.line("nothing was done")
            return 1
    results = anyio.run(_apply, settings, verb, job_ids, target, False)
    return _told(out, results, named=bool(job_ids), dry_run=False)


async def _apply(
    settings: Settings, verb: Verb, job_ids: tuple[int, ...], target: Filter, dry_run: bool
) -> Results:
    async with Orchestrator(settings=settings) as orc:
        for job_id in job_ids:
            await orc.get(job_id)
        return await orc.each(verb, target, dry_run=dry_run)


def _told(out: Output, results: Results, *, named: bool, dry_run: bool) -> int:
    refused = 0
    for job_id, result in results:
        if isinstance(result, NotAllowed):
            refused += 1
            out.line(f"{job_id} left as it is: {result}")
        else:
            out.line(f"{job_id} {'would be ' if dry_run else ''}{_now(result)}")
    if not results:
        out.line("no job matches")
    if dry_run:
        out.line("a dry run: nothing was done")
    return 1 if named and refused else 0


def _now(job: Job) -> str:
    if job.cancel_requested_at is not None and not job.state.settled:
        return f"{job.state.value} until its worker has stopped the run"
    if job.state is State.QUEUED and job.attempt > 0:
        return f"{job.state.value}: attempt {job.attempt + 1} will start another run"
    return job.state.value


# --- resolve ----------------------------------------------------------------------------------


@command
@job_ids
@click.option("--resubmit", is_flag=True, help="Send it again; it may then have run twice.")
@click.option("--fail", is_flag=True, help="Give it up.")
@click.option("--adopt", "chat_id", metavar="CHAT_ID", help="Give it the run of this chat.")
@click.option("--all-in-doubt", is_flag=True, help="Every job in doubt that the filters let by.")
@filters("queues", "batch", "tag", "search", "since", "until")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("-y", "--yes", is_flag=True, help=YES)
@pass_frame
def resolve(
    frame: Frame,
    *,
    job_ids: tuple[int, ...],
    resubmit: bool,
    fail: bool,
    chat_id: str | None,
    all_in_doubt: bool,
    wanted: Filter,
    dry_run: bool,
    yes: bool,
) -> int:
    """Decide what becomes of jobs in doubt.

    The answer to the job's request was lost, so a run may exist. With an ID alone it lists the
    chats that may hold the run, and the choices.
    """
    if sum((resubmit, fail, chat_id is not None)) > 1:
        raise click.UsageError("choose one of --resubmit, --fail and --adopt")
    if resubmit or fail:
        verb: Verb = people.resubmit if resubmit else people.give_up
        if wanted != Filter() and not all_in_doubt:
            raise click.UsageError("filters go with --all-in-doubt")
        return _act(
            frame,
            verb,
            DOUBTED,
            job_ids=job_ids,
            wanted=wanted,
            everything=all_in_doubt,
            dry_run=dry_run,
            yes=yes,
            choice="name jobs in doubt, or give --all-in-doubt, with filters or without",
        )
    if len(job_ids) != 1 or all_in_doubt:
        raise click.UsageError("name one job, or give --resubmit or --fail")
    settings, out = frame.settings(), frame.output()
    if chat_id is None:
        return anyio.run(_candidates, settings, out, job_ids[0])
    if dry_run:
        raise click.UsageError("--adopt has no dry run: the chat must be read")
    job = anyio.run(_adopt, settings, job_ids[0], chat_id)
    out.line(f"{job.id} {job.state.value}")
    return 0


async def _adopt(settings: Settings, job_id: int, chat_id: str) -> Job:
    async with Orchestrator(settings=settings) as orc:
        return await orc.resolve(job_id, "adopt", chat_id=chat_id)


async def _candidates(settings: Settings, out: Output, job_id: int) -> int:
    code = 0
    async with Orchestrator(settings=settings) as orc:
        job = await orc.get(job_id)
        if job.state is not State.IN_DOUBT:
            raise NotAllowed(f"job {job_id} is {job.state.value}, not in doubt")
        out.line(f"job {job_id} is in doubt: {job.error}")
        if job.sent_at is not None:
            out.line(f"its request went out at {moment(job.sent_at)} UTC")
        out.line(f"it asks: {start_of(job.prompt, 200)}")
        out.heading("chats that may hold its run")
        try:
            found = await orc.candidates(job_id)
        except OrchestratorError as error:
            out.line(f"they cannot be listed: {error}")
            code = error.exit_code
        else:
            columns = [
                *(Column(name) for name in ("chat", "updated", "run")),
                Column("says", whole=False),
            ]
            rows = [
                (c.chat_id, c.updated_at, c.active_run_id or "over", start_of(c.text, 200))
                for c in found
            ]
            if rows:
                out.table(columns, rows)
            else:
                out.line("none")
            out.line(
                "a chat shows up only after its first model call: an empty list means something "
                "minutes after the request, not seconds"
            )
    out.heading("the choices")
    out.line(f"orchestrator resolve {job_id} --adopt CHAT_ID   take that chat's run")
    out.line(f"orchestrator resolve {job_id} --resubmit        send it again; it may run twice")
    out.line(f"orchestrator resolve {job_id} --fail            give it up")
    return code


# --- queues -----------------------------------------------------------------------------------


@command
@click.argument("queue", type=queue_name)
@click.option("--reason", help="Why; status shows it.")
@pass_frame
def pause(frame: Frame, *, queue: str, reason: str | None) -> None:
    """Stop claims from a queue.

    Live runs go on; what is queued waits until `resume`.
    """
    settings = frame.settings()
    anyio.run(write_once, settings, partial(people.pause, queue=queue, reason=reason))
    frame.output().line(f"queue {queue} is paused; go on with: orchestrator resume {queue}")
    _warn_of_an_empty(frame, settings, queue)


def _warn_of_an_empty(frame: Frame, settings: Settings, queue: str) -> None:
    """Say that a queue has no job: its name may be mistyped."""
    if not anyio.run(_jobs_of, settings, queue):
        frame.warn(f"there is no job in a queue of the name {queue} yet")


async def _jobs_of(settings: Settings, queue: str) -> int:
    async with Orchestrator(settings=settings) as orc:
        return len(await orc.jobs(Filter(queues=(queue,)), limit=1))


@command
@click.argument("queue", type=queue_name)
@pass_frame
def resume(frame: Frame, *, queue: str) -> None:
    """Let a queue's jobs be claimed again."""
    settings = frame.settings()
    anyio.run(write_once, settings, partial(people.resume, queue=queue))
    frame.output().line(f"queue {queue} goes on")
    _warn_of_an_empty(frame, settings, queue)


def _most(value: str) -> int | None:
    if value == "none":
        return None
    if not (value.isascii() and value.isdigit()):
        raise click.BadParameter(f"{value!r}: write a whole number, or none")
    return int(value)


@command
@click.argument("queue", type=queue_name)
@click.argument("number", type=_most, metavar="N|none")
@pass_frame
def limit(frame: Frame, *, queue: str, number: int | None) -> None:
    """Bound how many jobs of a queue are live at once.

    The bound is that of all workers together; none takes it away.
    """
    verb = partial(people.limit_queue, queue=queue, concurrency=number)
    anyio.run(write_once, frame.settings(), verb)
    bound = "has no limit" if number is None else f"is limited to {number} live jobs"
    frame.output().line(f"queue {queue} {bound}")


@command
@click.argument("queue", type=queue_name)
@click.argument("number", type=click.IntRange(min=1), metavar="N")
@pass_frame
def weigh(frame: Frame, *, queue: str, number: int) -> None:
    """Set a queue's share of free slots.

    Queues that have due jobs share them in proportion to their weights; the weight of a queue
    that says nothing is 1.
    """
    verb = partial(people.weigh_queue, queue=queue, weight=number)
    anyio.run(write_once, frame.settings(), verb)
    frame.output().line(f"queue {queue} has weight {number}")
