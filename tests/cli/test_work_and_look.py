from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
from functools import partial

import anyio
import pytest

from orchestrator.testing import DevServer

from .shell import COMMAND, Done, Shell


async def aside(shell: Shell, *args: str, code: int | None = 0) -> Done:
    """Run a command in a thread, so that the server goes on."""
    return await anyio.to_thread.run_sync(partial(shell, *args, code=code))


@pytest.fixture
async def night(shell: Shell, server: DevServer) -> Shell:
    """Three jobs of one batch, of which a worker has completed two; the third failed."""
    lines = [
        {"prompt": "one", "tags": ["first"], "queue": "q1"},
        {"prompt": "two [steps=2 tool=search]", "queue": "q2"},
        {"prompt": "three [steps=2 fail=2 attempts=1]", "queue": "q2"},
    ]
    (shell.folder / "f.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    await aside(shell, "enqueue", "--file", "f.jsonl", "--batch", "night")
    await aside(shell, "worker", "--once", code=3)
    assert len(server.stats.posts_by_prompt) == 3
    return shell


async def test_the_morning(night: Shell) -> None:
    shell = night
    waited = await aside(shell, "wait", "--batch", "night", code=3)
    assert "2 of 3 jobs completed\n3 failed (run_failed)" in waited.out
    assert (await aside(shell, "wait", "1", "2")).out == "2 of 2 jobs completed\n"
    status = (await aside(shell, "status")).out
    assert "completed         2\nfailed            1   1 run_failed" in status
    assert "1  run_failed: the run failed" in status
    assert "job 3; the last at" in status
    assert "none is running: orchestrator worker" in status
    document = json.loads((await aside(shell, "status", "--json", "--batch", "night")).out)
    assert document["states"]["completed"] == 2
    assert document["error_kinds"] == {"run_failed": 1}
    assert document["failures"][0]["examples"] == [3]
    assert document["totals"]["cost_usd"] > 0
    nothing = json.loads((await aside(shell, "status", "--json", "--batch", "other")).out)
    assert sum(nothing["states"].values()) == 0


async def test_jobs_by_filter_and_as_export(night: Shell) -> None:
    shell = night

    async def ids(*args: str) -> list[int]:
        lines = (await aside(shell, "jobs", "--json", *args)).out.splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert await ids() == [1, 2, 3]
    assert await ids("--newest") == [3, 2, 1]
    assert await ids("--newest", "--limit", "2") == [3, 2]
    assert await ids("--state", "failed") == [3]
    assert await ids("--state", "failed", "--state", "completed", "--queue", "q2") == [2, 3]
    assert await ids("--error-kind", "run_failed") == [3]
    assert await ids("--tag", "first") == [1]
    assert await ids("--search", "two") == [2]
    assert await ids("--since", "1h") == [1, 2, 3]
    assert await ids("--until", "1h") == []
    text = (await aside(shell, "jobs", "--csv", "--all")).out
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["prompt"] for row in rows] == [
        "one",
        "two [steps=2 tool=search]",
        "three [steps=2 fail=2 attempts=1]",
    ]
    assert json.loads(rows[0]["tags"]) == ["first"]
    assert rows[0]["result_text"]
    cut = await aside(shell, "jobs", "--csv", "--limit", "1")
    assert cut.err.startswith("1 of 3 jobs")
    table = (await aside(shell, "jobs")).out.splitlines()
    assert [line.split("\t")[:2] for line in table[1:]] == [
        ["1", "completed"],
        ["2", "completed"],
        ["3", "failed"],
    ]


async def test_one_job(night: Shell) -> None:
    shell = night
    page = (await aside(shell, "show", "2")).out
    ((run_id, text),) = shell.sql("select run_id, result_text from jobs where id = 2")
    assert str(run_id) in page
    assert "submit.accepted" in page
    assert page.rstrip().endswith(str(text))
    assert (await aside(shell, "show", "2", "--text")).out == f"{text}\n"
    document = json.loads((await aside(shell, "show", "2", "--json", "--messages")).out)
    assert document["state"] == "completed"
    assert document["text"] == text
    assert document["events"][0]["event"] == "job.enqueued"
    ((stored,),) = shell.sql("select message from messages where job_id = 2")
    assert document["messages"][0]["message"] == json.loads(str(stored))
    watched = await aside(shell, "watch", "2")
    assert watched.out == f"{text}\njob 2 completed\n"
    assert (await aside(shell, "watch", "2", "3", code=3)).out.count("completed") == 1


async def test_acts_on_settled_jobs(night: Shell) -> None:
    shell = night
    assert (
        "1 left as it is: job 1 is completed already"
        in (await aside(shell, "cancel", "1", code=1)).out
    )
    assert "would" not in (await aside(shell, "retry", "--batch", "night", "--dry-run")).out
    assert shell.sql("select state from jobs where id = 3") == [("failed",)]
    # A filter means what went wrong: a completed job is not run again unless it is asked for.
    assert (await aside(shell, "retry", "--batch", "night")).out == "3 queued\n"
    assert (await aside(shell, "cancel", "--batch", "night")).out == "3 cancelled\n"
    assert shell.sql("select attempt, state from attempts") == [(1, "failed")]
    assert (await aside(shell, "retry", "1")).out == "1 queued\n"


@pytest.mark.usefixtures("server")
async def test_watch_shows_a_text_as_it_grows(shell: Shell) -> None:
    await aside(shell, "enqueue", "[tokens=40 delay=0.05]")
    shell.env["ORCHESTRATOR_FOLLOW__CHECKPOINT_EVERY"] = "300ms"
    watched: list[Done] = []

    async def watch() -> None:
        watched.append(await anyio.to_thread.run_sync(partial(shell.on_terminal, "watch", "1")))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await aside(shell, "worker", "--once")
    text = (await aside(shell, "show", "1", "--text")).out.strip()
    out = watched[0].out.replace("\r\n", "\n")
    assert "job 1 running" in out
    assert out.count(text) == 1
    assert "job 1 completed" in out[out.index(text) :]


async def test_a_worker_serves_the_queues_named(shell: Shell, server: DevServer) -> None:
    await aside(shell, "enqueue", "a", "--queue", "one")
    await aside(shell, "enqueue", "b", "--queue", "two")
    await aside(shell, "worker", "--once", "--queue", "two", "--concurrency", "1")
    assert shell.sql("select state from jobs order by id") == [("queued",), ("completed",)]
    await aside(shell, "enqueue", "c", "--queue", "one")
    await aside(shell, "worker", "--once", "--max-jobs", "1")
    assert len(shell.sql("select id from jobs where state = 'queued'")) == 1
    assert len(server.stats.posts_by_prompt) == 2


def test_wait_gives_up_in_time(shell: Shell) -> None:
    shell("enqueue", "x")
    done = shell("wait", "--timeout", "300ms", code=75)
    assert "1 job still not at rest after 0.3 s" in done.out
    assert "0 of 1 job completed" in shell.on_terminal("wait", "--timeout", "0.3", code=75).out


def test_interrupted_is_130_and_silent(shell: Shell) -> None:
    shell("enqueue", "x")
    process = subprocess.Popen(
        [COMMAND, "watch", "1"],
        cwd=shell.folder,
        env=shell.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"job 1 queued\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_waiting_jobs_say_what_they_wait_for(shell: Shell) -> None:
    shell("enqueue", "a", "--queue", "held")
    shell("enqueue", "b", "--at", "2099-01-31T08:00:00Z")
    shell("enqueue", "c", "--at", "2099-02-28T08:00:00Z")
    shell("pause", "held", "--reason", "the artist asked")
    status = shell("status").out
    assert "its queue held, paused: the artist asked" in status
    assert "2  its time, 2099-01-31 08:00:00 UTC   (and others like it)" in status
    assert "orchestrator resume held" in status
    assert "waits for its queue held, paused" in shell("show", "1").out
    shell("resume", "held")
    shell("limit", "held", "2")
    (row,) = [row for row in json.loads(shell("queues", "--json").out) if row["name"] == "held"]
    assert (row["paused_at"], row["concurrency"], row["jobs"]) == (None, 2, {"queued": 1})
    shell("limit", "held", "none")
    assert shell.sql("select concurrency from queues") == [(None,)]
    shell("limit", "held", "-1", code=2)


def test_ids_are_never_cut_on_a_narrow_terminal(shell: Shell) -> None:
    shell("migrate", "upgrade")
    shell.sql("insert into jobs (id, prompt) values (?, ?)", 1234567890123456789, "p " * 50)
    assert "1234567890123456789" in shell.on_terminal("jobs", columns=30).out
    assert "1234567890123456789" in shell("jobs").out
