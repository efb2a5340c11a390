"""Commands that set up, check and explain: init, doctor, migrate, devserver, fold; and failures."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sqlite3
import urllib.request
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal

from orchestrator.config import Settings, load_settings
from orchestrator.testing import DevServer, Pace, Timing

from .conftest import serving
from .shell import Shell

STREAMS = Path(__file__).parents[1] / "streams"


# --- init and migrate ---------------------------------------------------------------------------


def test_init_writes_every_setting_with_its_default(shell: Shell) -> None:
    out = shell("init").out
    assert "orchestrator doctor" in out
    assert "RECOUP_API_KEY" in out
    file = shell.folder / "orchestrator.toml"
    assert load_settings(file, environ={}) == Settings()
    assert shell("migrate", "check").out.startswith("current: ")
    file.write_text(file.read_text() + "# mine\n")
    assert "kept orchestrator.toml" in shell("init").out
    assert file.read_text().endswith("# mine\n")


def test_init_with_names_of_its_own(shell: Shell) -> None:
    shell("init", "--config", "my.toml", "--database", "sqlite:///my.db")
    assert load_settings(shell.folder / "my.toml", environ={}).database.url == "sqlite:///my.db"
    assert (shell.folder / "my.db").exists()
    assert not (shell.folder / "orchestrator.toml").exists()


@pytest.mark.parametrize(
    "args",
    [
        *(["status"], ["jobs"], ["show", "1"], ["wait"], ["watch", "1"], ["queues"], ["workers"]),
        *(["cancel", "1"], ["retry", "--all"], ["resolve", "1"], ["pause", "q"], ["gate", "show"]),
        ["migrate", "check"],
    ],
)
def test_looking_creates_no_database(shell: Shell, args: list[str]) -> None:
    done = shell(*args, code=78)
    assert done.err.startswith("error: no database at 'orchestrator.db'; create it with: ")
    assert list(shell.folder.iterdir()) == []


def test_a_file_with_other_tables_of_our_names_is_refused_and_left_alone(shell: Shell) -> None:
    with contextlib.closing(sqlite3.connect(shell.folder / "orchestrator.db")) as database:
        database.execute("create table jobs (mine text)")
    for args in (["init"], ["migrate", "upgrade"], ["enqueue", "x"]):
        said = shell(*args, code=78).err
        assert "tables of other making with the names of ours: jobs; name another" in said
    assert shell.sql("select name from sqlite_schema") == [("jobs",)]


def test_the_schema_is_upgraded_checked_and_printed(shell: Shell) -> None:
    shell("migrate", "upgrade")
    assert shell("migrate", "check").out.startswith("current: ")
    statements = shell("migrate", "sql").out
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(statements)
    assert "TIMESTAMPTZ" in shell("migrate", "sql", "--dialect", "postgresql").out
    shell.sql("update alembic_version set version_num = '9999'")
    assert shell("migrate", "check", code=78).out.startswith("newer: ")
    assert "is newer than this program" in shell("status", code=78).err


# --- doctor -------------------------------------------------------------------------------------


def test_doctor_finds_everything_in_order(shell: Shell, server: DevServer) -> None:
    shell("init")
    done = shell("doctor")
    lines = done.out.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("ok")} == {
        *("configuration:", "key:", "API:", "clock:", "database:", "gate:", "workers:"),
    }
    assert server.key not in done.out
    assert all(finding["exit_code"] == 0 for finding in json.loads(shell("doctor", "--json").out))


def test_doctor_names_what_is_wrong(
    shell: Shell, server: DevServer, portal: BlockingPortal
) -> None:
    assert "problem  database: no database" in shell("doctor", code=78).out
    shell("init")
    server.faults.add("unauthorized")
    assert "problem  API: " in shell("doctor", code=78).out
    portal.call(server.refuse)
    done = shell("doctor", code=75)
    assert "problem  API: " in done.out
    assert "clock: not compared: no answer (" in done.out
    shell.env["RECOUP_API_KEY"] = "recoup_sk_se cret"
    done = shell("doctor", code=78)
    assert "problem  key: " in done.out
    assert "cret" not in done.out
    shell.env["ORCHESTRATOR_WORKER__CONCURRENCY"] = "many"
    assert "problem  configuration: " in shell("doctor", code=78).out


@pytest.mark.parametrize(
    ("fault", "verdict", "words"),
    [(None, "safe", "streams are safe"), ("cancel-on-leave", "unsafe", "runs are polled")],
)
def test_doctor_finds_out_what_leaving_a_stream_does(
    shell: Shell, portal: BlockingPortal, fault: str | None, verdict: str, words: str
) -> None:
    with serving(shell, portal, Timing(pace=Pace(chunk=0.05))) as server:
        if fault is not None:
            server.faults.add(fault)
        shell("init")
        done = shell("doctor", "--probe-streams")
    assert words in done.out
    assert shell.sql("select leaving from gates") == [(verdict,)]


def test_a_trial_that_shows_nothing_changes_nothing(shell: Shell, server: DevServer) -> None:
    server.faults.add("no-stream")
    shell("init")
    assert "the trial showed nothing" in shell("doctor", "--probe-streams", code=75).out
    assert shell.sql("select leaving from gates") == []


# --- devserver and fold -------------------------------------------------------------------------


def test_the_dev_server_says_where_it_is_and_ends_at_ctrl_c(shell: Shell) -> None:
    process = shell.start(
        *("devserver", "--port", "0", "--key", "recoup_sk_mine", "--database", "r.db"),
        *("--fault", "server-error,route=chats,status=503"),
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline().decode()
        found = re.fullmatch(r"listening at (http://127\.0\.0\.1:\d+), key recoup_sk_mine\n", first)
        assert found
        with urllib.request.urlopen(f"{found[1]}/_dev/faults", timeout=30) as answer:  # noqa: S310 - our own
            faults = json.load(answer)["faults"]
        assert [(fault["route"], fault["status"]) for fault in faults] == [("chats", 503)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert (shell.folder / "r.db").exists()


def test_a_fault_that_does_not_exist(shell: Shell) -> None:
    assert "one of broken-body" in shell("devserver", "--fault", "no", code=2).err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "--port 0" in shell("devserver", "--port", port, code=2).err
    assert "when: 'x'" in shell("devserver", "--port", "0", "--fault", "cut,when=x", code=2).err


@pytest.mark.parametrize("name", ["several-starts", "fatal-text-delta-after-end", "nothing"])
def test_fold_gives_the_message_of_a_list_of_chunks(shell: Shell, name: str) -> None:
    case = json.loads((STREAMS / f"{name}.json").read_text())
    (shell.folder / "c.json").write_text(json.dumps(case["chunks"]))
    fatal = name.startswith("fatal")
    done = shell("fold", "c.json", code=3 if fatal else 0)
    assert json.loads(done.out) == case["message"]
    assert ("contradicts" in done.err) == fatal
    assert shell("fold", str(STREAMS / f"{name}.json"), code=None).out == done.out


def test_fold_reads_raw_events_and_names_the_bad_ones(shell: Shell) -> None:
    chunks = [
        {"type": "start", "messageId": "m"},
        {"type": "text-start", "id": "0"},
        {"type": "text-delta", "id": "0", "delta": "a \u2028✓"},
        {"type": "error", "errorText": "overloaded"},
    ]
    events = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    events.insert(2, "{broken")
    body = "".join(f"data: {event}\n\n" for event in events) + "data: [DONE]\n\n"
    done = shell("fold", "-", "--text", stdin=body)
    assert done.out == "a \u2028✓\n"
    assert "event 2 is no JSON" in done.err
    assert "reported: overloaded" in done.err


def test_fold_refuses_what_is_no_stream(shell: Shell) -> None:
    assert "neither a list" in shell("fold", "-", stdin='{"a": 1}', code=2).err
    assert "No such file" in shell("fold", "absent", code=2).err


# --- failures -----------------------------------------------------------------------------------


def test_a_wrong_configuration_is_78(shell: Shell) -> None:
    (shell.folder / "orchestrator.toml").write_text("[worker]\nconcurency = 5\n")
    done = shell("status", code=78)
    assert "did you mean worker.concurrency?" in done.err
    shell("worker", code=78)
    shell("status", "--database", "mysql://x", code=78)


def test_a_worker_without_a_key_is_78(shell: Shell) -> None:
    assert "RECOUP_API_KEY" in shell("worker", "--once", code=78).err


def test_a_database_that_is_none_is_78_and_shows_no_statement(shell: Shell) -> None:
    (shell.folder / "orchestrator.db").write_text("this is no database, it is a text" * 100)
    done = shell("enqueue", "a secret prompt", code=78)
    assert done.err == "error: the database refuses: file is not a database\n"


def test_a_crash_shows_no_prompt_unless_it_is_asked_for(shell: Shell) -> None:
    shell("enqueue", "a secret prompt")
    shell.sql("update jobs set tags = '{}', metadata = '[]'")
    shell.sql("drop table job_events")
    quiet = shell("show", "1", code=75)
    assert quiet.err == "error: the database cannot be used now: no such table: job_events\n"
    loud = shell("show", "1", "--verbose", code=75)
    assert "Traceback" in loud.err


def test_a_reader_that_leaves_is_no_error(shell: Shell) -> None:
    (shell.folder / "f.txt").write_text("prompt\n" * 3000)
    shell("enqueue", "--file", "f.txt")
    process = shell.start("jobs", "--all")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    process.wait(30)
    process.stderr.close()
    assert err == b""
