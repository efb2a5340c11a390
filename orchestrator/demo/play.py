"""The demo's story: start, enqueue, kill the worker, start another, look at what became of it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio
import httpx
from rich.console import Console

from orchestrator.api import Orchestrator
from orchestrator.demo import report
from orchestrator.demo.board import Board
from orchestrator.demo.children import Child, Children, DemoBroken, until
from orchestrator.demo.scenes import BATCH, LIVE_AT_THE_KILL, SCENES
from orchestrator.errors import ConfigError
from orchestrator.faces import at_rest
from orchestrator.job import Job
from orchestrator.states import State

KEY: Final = "recoup_sk_demo"
DATABASE: Final = "jobs.db"

ALL_LIVE_WITHIN_S: Final = 20.0
AT_REST_WITHIN_S: Final = 30.0
ASKED_WITHIN_S: Final = 10.0

_URL: Final = re.compile(r"http://127\.0\.0\.1:\d+")

_WORKER: Final = {
    "ORCHESTRATOR_WORKER__POLL_INTERVAL": "200ms",
    "ORCHESTRATOR_FOLLOW__POLL_MIN": "200ms",
    "ORCHESTRATOR_FOLLOW__POLL_MAX": "1s",
    "ORCHESTRATOR_FOLLOW__CHECKPOINT_EVERY": "500ms",
}
"""The demo's runs take seconds where real ones take minutes: its worker looks more often."""


async def run(*, console: Console, keep: Path | None = None) -> int:
    """Play the demo and return the exit code: 0 if every promise held, else 1.

    Everything happens in a temporary directory, or in `keep`, which then stays. Nothing is left
    running, whatever happens; ended by SIGTERM or SIGHUP it returns 128 + their number. Raises
    ConfigError if `keep` holds a database already, and DemoBroken if something does not come
    about in time.
    """
    with _home(keep) as home, _ended_by(signal.SIGTERM, signal.SIGHUP) as ending:
        with ending.scope:
            held = await _play(console, home, kept=keep is not None)
            return 0 if held else 1
        return 128 + ending.number


async def _play(console: Console, home: Path, *, kept: bool) -> bool:
    database = f"sqlite:///{home / DATABASE}"
    async with (
        Children(home, os.environ) as children,
        Orchestrator(database) as orc,
    ):
        with Board(console) as board:
            server = await children.start("devserver", "devserver", "--port", "0", "--key", KEY)
            url = await server.find(_URL, what="the dev server")
            board.say(f"a dev server that speaks the Recoup API: {url} (pid {server.pid})")

            await orc.enqueue_many([scene.options() for scene in SCENES])
            board.say(f"{len(SCENES)} prompts enqueued in {home / DATABASE}")

            variables = _worker_variables(url, database)
            first = await children.start("worker-1", "worker", **variables)
            board.say(f"a worker starts them (pid {first.pid})")
            await _all_live(orc, board, [server, first])

            await first.kill()
            live = [job.id for job in await orc.jobs(batch=BATCH, states=(State.RUNNING,))]
            board.say(f"the worker was killed with SIGKILL; {len(live)} runs were live")
            second = await children.start("worker-2", "worker", **variables)
            board.say(f"another worker adopts them (pid {second.pid})")
            await _all_at_rest(orc, board, [server, second])
            code = await second.stop()
            board.say(f"the second worker was asked to stop, and ended with {code}")
        seen = await _evidence(url)
        found = await report.gather(orc, seen, exit_code=code, live_at_kill=live)
    report.show(console, found, home / DATABASE, kept=kept)
    return found.all_held


def _worker_variables(url: str, database: str) -> dict[str, str]:
    return {
        "RECOUP_API_KEY": KEY,
        "ORCHESTRATOR_API__BASE_URL": url,
        "ORCHESTRATOR_DATABASE__URL": database,
        **_WORKER,
    }


async def _all_live(orc: Orchestrator, board: Board, running: Sequence[Child]) -> None:
    """Wait until nothing waits any more and enough runs are live.

    Killed at that moment, no request can be on its way, so that no job can come into doubt.
    """

    async def look() -> bool | None:
        states = Counter(job.state for job in await _shown(orc, board, running))
        waiting = states[State.QUEUED] + states[State.SUBMITTING]
        return (waiting == 0 and states[State.RUNNING] >= LIVE_AT_THE_KILL) or None

    what = f"a moment with {LIVE_AT_THE_KILL} live runs and nothing waiting"
    await until(look, what=what, within_s=ALL_LIVE_WITHIN_S)


async def _all_at_rest(orc: Orchestrator, board: Board, running: Sequence[Child]) -> None:
    async def look() -> bool | None:
        return all(at_rest(job) for job in await _shown(orc, board, running)) or None

    await until(look, what="the end of all jobs", within_s=AT_REST_WITHIN_S)


async def _shown(orc: Orchestrator, board: Board, running: Sequence[Child]) -> list[Job]:
    for child in running:
        child.check_alive()
    jobs = await orc.jobs(batch=BATCH)
    board.show(jobs)
    return jobs


async def _evidence(url: str) -> report.Seen:
    """Ask the dev server what it saw: its counters, and the message of each run."""
    async with httpx.AsyncClient(base_url=url, timeout=ASKED_WITHIN_S, trust_env=False) as client:
        stats = await _json(client, "/_dev/stats")
        runs = (await _json(client, "/_dev/runs"))["runs"]
        messages = {
            run["runId"]: (await _json(client, f"/_dev/runs/{run['runId']}"))["message"]
            for run in runs
        }
    return report.Seen(stats["posts_by_prompt"], messages)


async def _json(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    try:
        answer = await client.get(path)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise DemoBroken(f"the dev server does not answer {path}: {error!r}") from error
    found: dict[str, Any] = answer.json()
    return found


@contextmanager
def _home(keep: Path | None) -> Iterator[Path]:
    """Give the demo's directory: `keep`, made if need be, or a temporary one."""
    if keep is None:
        with TemporaryDirectory(prefix="orchestrator-demo-") as path:
            yield Path(path)
        return
    home = keep.expanduser().absolute()
    if (home / DATABASE).exists():
        raise ConfigError(f"keep: {str(home)!r} holds a {DATABASE} already; name another directory")
    home.mkdir(parents=True, exist_ok=True)
    yield home


class _Ending:
    """A cancel scope that a signal ends; `number` is the signal's."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.number = 0

    def end(self, number: int) -> None:
        self.number = number
        self.scope.cancel()


@contextmanager
def _ended_by(*signals: signal.Signals) -> Iterator[_Ending]:
    """Let signals cancel a scope, so that the processes are cleared away as after ^C."""
    ending, loop = _Ending(), asyncio.get_running_loop()
    for number in signals:
        loop.add_signal_handler(number, ending.end, number)
    try:
        yield ending
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
