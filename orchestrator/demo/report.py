"""The demo's end: what was promised, what came of it, and where to look further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.api import Orchestrator
from orchestrator.demo.board import STYLES, title, words
from orchestrator.demo.scenes import BATCH, SCENES
from orchestrator.faces import at_rest
from orchestrator.job import Job, Message
from orchestrator.printable import printable
from orchestrator.states import State

QUERIES: Final = (
    "SELECT state, error_kind, count(*) AS jobs, sum(cost_usd) AS usd\n"
    "    FROM jobs GROUP BY state, error_kind",
    "SELECT id, error_kind, error FROM failures",
    "SELECT id, at, event, from_state, to_state FROM job_events\n"
    "    WHERE job_id = (SELECT min(job_id) FROM job_events WHERE event = 'run.adopted')\n"
    "    ORDER BY id",
)
"""What to ask the database first; the first one is asked by the demo itself."""

_PART_SHOWN: Final = 76
"""Characters of one part of the message that are shown."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the dev server saw: submissions by prompt, and the stored message by run id."""

    posts: Mapping[str, int]
    messages: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What the demo ended with; `promises` are sentences, each true or false."""

    jobs: Sequence[Job]
    posts: Mapping[int, int]
    adopted: frozenset[int]
    sample: tuple[Job, Message] | None
    answer: Sequence[Mapping[str, Any]]
    promises: Mapping[str, bool]

    @property
    def all_held(self) -> bool:
        """True if every promise held."""
        return all(self.promises.values())


async def gather(
    orc: Orchestrator, seen: Seen, *, exit_code: int, live_at_kill: Sequence[int]
) -> Found:
    """Compare the database with what the dev server saw and with what the scenes foretell."""
    jobs = await orc.jobs(batch=BATCH)
    kept = {job.id: await orc.messages(job.id) for job in jobs}
    rows = await orc.sql("SELECT DISTINCT job_id FROM job_events WHERE event = 'run.adopted'")
    adopted = frozenset(row["job_id"] for row in rows)
    posts = {job.id: seen.posts.get(job.prompt or "", 0) for job in jobs}
    done = [job for job in jobs if job.state is State.COMPLETED]
    expected = [(scene.ends, scene.kind) for scene in SCENES]
    return Found(
        jobs=jobs,
        posts=posts,
        adopted=adopted,
        sample=_sample(done, kept),
        answer=await orc.sql(QUERIES[0]),
        promises={
            "every job is at rest": len(jobs) == len(SCENES) and all(map(at_rest, jobs)),
            "each ended as its script foretells": [(job.state, job.error_kind) for job in jobs]
            == expected,
            "the server saw one POST for each job": set(posts.values()) == {1},
            "the runs that were live at the kill were adopted": adopted == set(live_at_kill),
            "each stored message equals the server's": bool(done)
            and all(_same(job, kept[job.id], seen) for job in done),
            "the second worker stopped with exit code 0": exit_code == 0,
        },
    )


def _same(job: Job, kept: Sequence[Message], seen: Seen) -> bool:
    return [message.message for message in kept] == [seen.messages.get(job.run_id or "")]


def _sample(
    done: Sequence[Job], kept: Mapping[int, Sequence[Message]]
) -> tuple[Job, Message] | None:
    """Choose the message to show: of a run with tools, if one completed."""
    shown = [job for job in done if kept[job.id]]
    if not shown:
        return None
    job = next((job for job in shown if "tools" in (job.tags or [])), shown[0])
    return job, kept[job.id][-1]


def show(console: Console, found: Found, database: Path, *, kept: bool) -> None:
    """Print the table, one message, the promises and the SQL."""
    console.print()
    console.print(_table(found))
    if found.sample is not None:
        _show_message(console, *found.sample)
    console.print()
    for sentence, held in found.promises.items():
        mark, style = ("yes", "green") if held else ("NO ", "bold red")
        console.print(Text.assemble("  ", (mark, style), f"  {sentence}"))
    _show_sql(console, found, database, kept=kept)


def _table(found: Found) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "POSTs", "adopted", "USD", "prompt"):
        right = name in ("job", "POSTs", "USD")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for job in found.jobs:
        table.add_row(
            str(job.id),
            Text(words(job), style=STYLES[job.state]),
            str(found.posts[job.id]),
            "yes" if job.id in found.adopted else "",
            "" if job.cost_usd is None else f"{job.cost_usd:.4f}",
            Text(title(job, 30)),
        )
    return table


def _show_message(console: Console, job: Job, message: Message) -> None:
    console.print(Text(f"\nThe message of job {job.id}, part by part:", style="bold"))
    for part in message.message.get("parts", []):
        console.print(Text(f"  {_part(part)}"))
    console.print(Text(f"  result_text: {printable(job.result_text or '')}", style="green"))


def _part(part: Mapping[str, Any]) -> str:
    kind = str(part.get("type"))
    told = [str(part[name]) for name in ("state", "text", "input", "output") if name in part]
    line = printable("  ".join([kind, *told]))
    return line if len(line) <= _PART_SHOWN else f"{line[: _PART_SHOWN - 1]}…"


def _show_sql(console: Console, found: Found, database: Path, *, kept: bool) -> None:
    console.print(Text("\nIn SQL:", style="bold"))
    console.print(Text(f"  {QUERIES[0]}"))
    for row in found.answer:
        values = (
            f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()
        )
        console.print(Text(f"    {'  '.join(values)}", style="cyan"))
    if not kept:
        console.print(Text("\nTo look further: orchestrator demo --keep DIR, then for example"))
    else:
        console.print(Text(f"\nTo look further: sqlite3 {database}, then for example"))
    for query in QUERIES[1:]:
        console.print(Text(f"  {query};"))
