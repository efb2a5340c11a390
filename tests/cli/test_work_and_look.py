from __future__ import annotations

import csv
import io
import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from anyio.from_thread import BlockingPortal

from orchestrator.testing import DevServer

from .conftest import serving
from .shell import MOST_S, Shell


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, portal: BlockingPortal) -> Iterator[Shell]:
    """Three jobs of one batch, of which a worker has completed two; the third failed."""
    shell = Shell(tmp_path_factory.mktemp("night"))
    lines = [
        {"prompt": "one", "tags": ["first"], "queue": "q1"},
        {"prompt": "two [steps=2 tool=search]", "queue": "q2"},
        {"prompt": "three [steps=2 fail=2 attempts=1]", "queue": "q2"},
    ]
    (shell.folder / "f.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with serving(shell, portal) as server:
        shell("enqueue", "--file", "f.jsonl", "--batch", "night")
        shell.process("worker", "--once", code=3)
        assert len(server.stats.posts_by_prompt) == 3
        yield shell


@pytest.fixture
def night(ended: Shell, shell: Shell) -> Shell:
    """That database, to do with as a test likes."""
    shutil.copy(ended.folder / "orchestrator.db", shell.folder)
    shell.env = dict(ended.env)
    return shell


def test_the_morning(night: Shell) -> None:
    shell = night
    waited = shell("wait", "--batch", "night", code=3)
    assert "2 of 3 jobs completed\n3 failed (run_failed)" in waited.out
    assert shell("wait", "1", "2").out == "2 of 2 jobs completed\n"
    status = shell("status").out
    assert "completed         2\nfailed            1   1 run_failed" in status
    assert "1  run_failed: the run failed" in status
    assert "job 3; the last at" in status
    assert "none is running: orchestrator worker" in status
    document = json.loads(shell("status", "--json", "--batch", "night").out)
    assert document["states"]["completed"] == 2
    assert document["error_kinds"] == {"run_failed": 1}
    assert document["failures"][0]["examples"] == [3]
    assert document["totals"]["cost_usd"] > 0
    nothing = json.loads(shell("status", "--json", "--batch", "other").out)
    assert sum(nothing["states"].values()) == 0


def test_jobs_by_filter_and_as_export(night: Shell) -> None:
    shell = night

    def ids(*args: str) -> list[int]:
        lines = shell("jobs", "--json", *args).out.splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert ids() == [1, 2, 3]
    assert ids("--newest") == [3, 2, 1]
    assert ids("--newest", "--limit", "2") == [3, 2]
    assert ids("--state", "failed") == [3]
    assert ids("--state", "failed", "--state", "completed", "--queue", "q2") == [2, 3]
    assert ids("--error-kind", "run_failed") == [3]
    assert ids("--tag", "first") == [1]
    assert ids("--search", "two") == [2]
    assert ids("--since", "1h") == [1, 2, 3]
    assert ids("--until", "1h") == []
    text = shell("jobs", "--csv", "--all").out
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["prompt"] for row in rows] == [
        "one",
        "two [steps=2 tool=search]",
        "three [steps=2 fail=2 attempts=1]",
    ]
    assert json.loads(rows[0]["tags"]) == ["first"]
    assert rows[0]["result_text"]
    cut = shell("jobs", "--csv", "--limit", "1")
    assert cut.err.startswith("1 of 3 jobs")
    table = shell("jobs").out.splitlines()
    assert [line.split("\t")[:2] for line in table[1:]] == [
        ["1", "completed"],
        ["2", "completed"],
        ["3", "failed"],
    ]


def test_a_text_that_is_not_there_is_no_empty_text(shell: Shell) -> None:
    shell("enqueue", "x")
    nothing = shell("show", "1", "--text", code=3)
    assert (nothing.out, nothing.err) == ("", "job 1 is queued: it has no text\n")


def test_one_job(night: Shell) -> None:
    shell = night
    page = shell("show", "2").out
    ((run_id, text),) = shell.sql("select run_id, result_text from jobs where id = 2")
    assert str(run_id) in page
    assert "submit.accepted" in page
    assert page.rstrip().endswith(str(text))
    assert shell("show", "2", "--text").out == f"{text}\n"
    document = json.loads(shell("show", "2", "--json", "--messages").out)
    assert document["state"] == "completed"
    assert document["text"] == text
    assert document["events"][0]["event"] == "job.enqueued"
    ((stored,),) = shell.sql("select message from messages where job_id = 2")
    assert document["messages"][0]["message"] == json.loads(str(stored))
    watched = shell("watch", "2")
    assert watched.out == f"{text}\njob 2 completed\n"
    assert shell("watch", "2", "3", code=3).out.count("completed") == 1


def test_acts_on_settled_jobs(night: Shell) -> None:
    shell = night
    assert "1 left as it is: job 1 is completed already" in shell("cancel", "1", code=1).out
    rehearsed = shell("retry", "--batch", "night", "--dry-run").out
    assert rehearsed.startswith("3 would be queued: attempt 2 ")
    assert rehearsed.endswith("a dry run: nothing was done\n")
    assert shell.sql("select state from jobs where id = 3") == [("failed",)]
    # A filter means what went wrong: a completed job is not run again unless it is asked for.
    assert shell("retry", "--batch", "night").out.startswith("3 queued: attempt 2 ")
    assert shell("cancel", "--batch", "night").out == "3 cancelled\n"
    assert shell.sql("select attempt, state from attempts") == [(1, "failed")]
    assert shell("retry", "1").out.startswith("1 queued: attempt 2 ")


@pytest.mark.usefixtures("server")
def test_watch_shows_a_text_as_it_grows(shell: Shell) -> None:
    shell("enqueue", "[tokens=40 delay=0.05]")
    shell.env["ORCHESTRATOR_FOLLOW__CHECKPOINT_EVERY"] = "300ms"
    with ThreadPoolExecutor(1) as aside:
        watching = aside.submit(shell.process_on_terminal, "watch", "1")
        shell("worker", "--once")
        watched = watching.result(MOST_S)
    text = shell("show", "1", "--text").out.strip()
    out = watched.out.replace("\r\n", "\n")
    assert "job 1 running" in out
    assert out.count(text) == 1
    assert "job 1 completed" in out[out.index(text) :]


def test_a_worker_serves_the_queues_named(shell: Shell, server: DevServer) -> None:
    shell("enqueue", "a", "--queue", "one")
    shell("enqueue", "b", "--queue", "two")
    shell("worker", "--once", "--queue", "two", "--concurrency", "1")
    assert shell.sql("select state from jobs order by id") == [("queued",), ("completed",)]
    shell("enqueue", "c", "--queue", "one")
    shell("worker", "--once", "--max-jobs", "1")
    assert len(shell.sql("select id from jobs where state = 'queued'")) == 1
    assert len(server.stats.posts_by_prompt) == 2


def test_wait_gives_up_in_time(shell: Shell) -> None:
    shell("enqueue", "x")
    done = shell("wait", "--timeout", "300ms", code=75)
    assert "1 job still not at rest after 0.3 s" in done.out
    assert "0 of 1 job completed" in shell.on_terminal("wait", "--timeout", "0.3", code=75).out


def test_interrupted_is_130_and_silent(shell: Shell) -> None:
    shell("enqueue", "x")
    process = shell.start("watch", "1")
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
