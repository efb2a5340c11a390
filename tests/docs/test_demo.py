"""The demo: it keeps its promises, finds out when they are broken, and leaves nothing running."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from io import StringIO
from pathlib import Path
from typing import IO

import anyio
import pytest
from rich.console import Console

from orchestrator import ConfigError, Orchestrator
from orchestrator.demo import report, run
from orchestrator.demo.children import Children, DemoBroken, clean, until
from orchestrator.demo.scenes import BATCH, SCENES
from orchestrator.states import State

COMMAND = [sys.executable, "-m", "orchestrator", "demo"]
WITHIN_S = 45
MARK = "DEMO_OF_TEST"

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")


def alive(mark: str) -> list[str]:
    """The processes that inherited a mark from the demo."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has just ended, or is not ours to see
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """One demo without a terminal; gives what it kept, what it printed and its mark."""
    home, mark = tmp_path_factory.mktemp("demo"), uuid.uuid4().hex
    ended = subprocess.run(
        [*COMMAND, "--keep", str(home)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        env={**os.environ, MARK: mark},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return home, ended.stdout, mark


@pytest.fixture
async def kept(played: tuple[Path, str, str]) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(f"sqlite:///{played[0] / 'jobs.db'}") as orc:
        yield orc


def test_it_tells_the_story_in_plain_lines(played: tuple[Path, str, str]) -> None:
    output = played[1]
    assert "\x1b" not in output
    killed = re.search(r"SIGKILL; (\d+) runs were live", output)
    assert killed is not None
    assert int(killed[1]) >= 6
    for scene in SCENES:
        assert f"{scene.ends}" in output
        assert scene.prompt.partition(" [")[0] in output
    assert output.count("  yes  every") == 1
    assert "NO " not in output
    assert "result_text: Musicbox, then Galeria Ze." in output


@linux
def test_it_leaves_nothing_running(played: tuple[Path, str, str]) -> None:
    assert alive(played[2]) == []


async def test_the_kept_database_holds_what_was_shown(kept: Orchestrator) -> None:
    jobs = await kept.jobs(batch=BATCH)
    assert [(job.state, job.error_kind) for job in jobs] == [
        (scene.ends, scene.kind) for scene in SCENES
    ]
    assert all(job.attempt == 1 for job in jobs)
    workers = await kept.sql(
        "SELECT DISTINCT worker_id FROM job_events WHERE event = 'run.adopted'"
    )
    assert len(workers) == 1


def test_the_sql_that_it_shows_finds_something(played: tuple[Path, str, str]) -> None:
    connection = sqlite3.connect(played[0] / "jobs.db")
    try:
        for query in report.QUERIES:
            assert connection.execute(query).fetchall(), query
    finally:
        connection.close()


async def seen_by_server(kept: Orchestrator) -> report.Seen:
    """What a dev server would have seen if all is as the database says."""
    jobs = await kept.jobs(batch=BATCH)
    messages = {job.run_id or "": (await kept.messages(job.id)) for job in jobs}
    return report.Seen(
        {job.prompt or "": 1 for job in jobs},
        {run_id: found[-1].message for run_id, found in messages.items() if found},
    )


async def live_at_kill(kept: Orchestrator) -> list[int]:
    rows = await kept.sql("SELECT job_id FROM job_events WHERE event = 'run.adopted'")
    return [row["job_id"] for row in rows]


async def test_a_second_post_breaks_a_promise(kept: Orchestrator) -> None:
    seen, live = await seen_by_server(kept), await live_at_kill(kept)
    good = await report.gather(kept, seen, exit_code=0, live_at_kill=live)
    assert good.all_held
    twice = report.Seen({**seen.posts, SCENES[0].prompt: 2}, seen.messages)
    found = await report.gather(kept, twice, exit_code=0, live_at_kill=live)
    assert [promise for promise, held in found.promises.items() if not held] == [
        "the server saw one POST for each job"
    ]
    console = Console(file=StringIO())
    report.show(console, found, Path("jobs.db"), kept=True)
    assert isinstance(console.file, StringIO)
    assert "NO   the server saw one POST for each job" in console.file.getvalue()


async def test_another_message_breaks_a_promise(kept: Orchestrator) -> None:
    seen, live = await seen_by_server(kept), await live_at_kill(kept)
    done = next(job for job in await kept.jobs(batch=BATCH) if job.state is State.COMPLETED)
    other = report.Seen(seen.posts, {**seen.messages, done.run_id or "": {"parts": []}})
    found = await report.gather(kept, other, exit_code=0, live_at_kill=live)
    assert not found.promises["each stored message equals the server's"]


async def test_a_run_that_was_not_adopted_breaks_a_promise(kept: Orchestrator) -> None:
    seen, live = await seen_by_server(kept), await live_at_kill(kept)
    found = await report.gather(kept, seen, exit_code=0, live_at_kill=[*live, 99])
    assert not found.promises["the runs that were live at the kill were adopted"]


def test_a_directory_with_a_database_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="holds a jobs"):
        anyio.run(partial(run, console=Console(file=StringIO()), keep=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.db"]


# --- ended early ----------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def read_until(stream: IO[str], words: str) -> None:
    for line in stream:
        if words in line:
            return
    pytest.fail(f"the demo never said {words!r}")


@linux
@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        (signal.SIGTERM, 143, "a worker starts"),
        (signal.SIGTERM, 143, "another worker adopts"),
        (signal.SIGINT, 130, "another worker adopts"),
        (signal.SIGHUP, 129, "another worker adopts"),
    ],
)
def test_a_signal_clears_everything_away(
    number: signal.Signals, code: int, moment: str, temporary: Path
) -> None:
    mark = uuid.uuid4().hex
    environ = {**os.environ, MARK: mark, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        COMMAND,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
    ) as demo:
        assert demo.stdout is not None
        read_until(demo.stdout, moment)
        assert len(alive(mark)) >= 2
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(timeout=20) == code
    assert alive(mark) == []
    assert list(temporary.iterdir()) == []


async def test_a_process_that_dies_is_named_with_what_it_said(tmp_path: Path) -> None:
    async with Children(tmp_path, os.environ) as children:
        child = await children.start("worker", "worker", ORCHESTRATOR_WORKER__CONCURRENCY="none")
        with pytest.raises(DemoBroken, match=r"(?s)the worker ended with 78: .*concurrency"):
            await child.find(re.compile("never"), what="nothing")


async def test_a_wait_is_bounded_and_named() -> None:
    async def look() -> str | None:
        return None

    began = time.monotonic()
    with pytest.raises(DemoBroken, match=r"a miracle did not come about within 0\.3 s"):
        await until(look, what="a miracle", within_s=0.3)
    assert time.monotonic() - began < 5


def test_the_children_see_nothing_of_the_users_own_settings() -> None:
    theirs = {
        "PATH": "/bin",
        "ORCHESTRATOR_CONFIG": "mine.toml",
        "RECOUP_API_KEY": "recoup_sk_mine",
        "NOTIFY_SOCKET": "/run/mine",
    }
    assert set(clean(theirs)) - {"PYTHONUNBUFFERED", "NO_COLOR"} == {"PATH"}
