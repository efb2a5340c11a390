"""What the demo shows while it runs: a live table on a terminal, else a line for each change."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.job import Job
from orchestrator.printable import printable
from orchestrator.states import State

STYLES = {
    State.QUEUED: "dim",
    State.SUBMITTING: "yellow",
    State.RUNNING: "cyan",
    State.COMPLETED: "green",
    State.FAILED: "red",
    State.IN_DOUBT: "bold red",
    State.CANCELLED: "magenta",
}


class Board:
    """Shows jobs as they change, and what the demo does in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[int, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Tell what happens next."""
        self._console.print(Text(f"* {text}", style="bold"))

    def show(self, jobs: Iterable[Job]) -> None:
        """Bring what is shown up to date."""
        if self._live is not None:
            self._live.update(_table(jobs), refresh=True)
            return
        for job in jobs:
            now = words(job)
            if self._shown.get(job.id) != now:
                self._shown[job.id] = now
                self._console.print(Text(f"  job {job.id:>2}  {now:<20}  {title(job, 60)}"))


def words(job: Job) -> str:
    """The state of a job, with its kind of trouble."""
    return f"{job.state} ({job.error_kind})" if job.error_kind else str(job.state)


def title(job: Job, width: int) -> str:
    """The start of a job's prompt, without the directives that it has for the dev server."""
    text = printable((job.prompt or "").partition(" [")[0])
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _table(jobs: Iterable[Job]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "followed", "prompt"):
        table.add_column(name, justify="right" if name in ("job", "followed") else "left")
    for job in jobs:
        followed = f"{job.followed_s:.0f} s" if job.followed_s else ""
        state = Text(words(job), style=STYLES[job.state])
        table.add_row(str(job.id), state, followed, Text(title(job, 42)))
    return table
