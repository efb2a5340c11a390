"""Show the text of jobs as it grows."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from orchestrator.api import JobHandle, Orchestrator, Update
from orchestrator.cli.failures import SOME_NOT_COMPLETED
from orchestrator.cli.render import Output
from orchestrator.states import State


class _One:
    """Prints one job's text: what was added, or all of it where the answer began anew.

    Among several jobs, and where nobody watches, whole lines only, each with the job's id.
    """

    def __init__(self, out: Output, *, alone: bool) -> None:
        self._out = out
        self._growing = alone and out.terminal
        self._alone = alone
        self._state: State | None = None
        self._shown = ""
        self._in_line = False

    def show(self, update: Update) -> None:
        """Print what changed; before the end the state goes first, at the end the text does."""
        job = update.job
        changed, self._state = job.state is not self._state, job.state
        if changed and not job.state.settled:
            self._say_state(update)
        self._show_text(job.id, update.text, whole=job.state.settled)
        if changed and job.state.settled:
            self._say_state(update)
        self._out.flush()

    def _say_state(self, update: Update) -> None:
        self._end_line()
        job = update.job
        kind = f" ({job.error_kind}): {job.error}" if job.error_kind else ""
        self._out.line(f"job {job.id} {job.state.value}{kind}", style="bold")

    def _show_text(self, job_id: int, text: str, *, whole: bool) -> None:
        if not text.startswith(self._shown):
            self._end_line()
            self._shown = ""
        added = text[len(self._shown) :]
        if self._growing:
            self._out.grow(added)
            self._in_line = not text.endswith("\n") if added else self._in_line
        else:
            added = added if whole else added[: added.rfind("\n") + 1]
            for line in added.removesuffix("\n").split("\n") if added else ():
                self._out.line(line if self._alone else f"{job_id}: {line}")
        self._shown += added

    def _end_line(self) -> None:
        if self._in_line:
            self._out.grow("\n")
        self._in_line = False


async def watch_all(orc: Orchestrator, out: Output, job_ids: Sequence[int]) -> int:
    """Print the jobs' text until all are at rest, and return the exit code."""
    ends: list[State] = []

    async def follow(handle: JobHandle) -> None:
        one = _One(out, alone=len(job_ids) == 1)
        update: Update | None = None
        async for update in handle.watch():
            one.show(update)
        if update is not None:
            ends.append(update.job.state)

    for job_id in job_ids:
        await orc.get(job_id)
    async with anyio.create_task_group() as tasks:
        for job_id in dict.fromkeys(job_ids):
            tasks.start_soon(follow, orc.handle(job_id))
    return 0 if all(end is State.COMPLETED for end in ends) else SOME_NOT_COMPLETED
