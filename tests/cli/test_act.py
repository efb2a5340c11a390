from __future__ import annotations

import json

import pytest
from anyio.from_thread import BlockingPortal

from orchestrator.testing import DevServer

from .shell import Shell


@pytest.fixture
def doubted(shell: Shell, server: DevServer) -> Shell:
    """Two jobs in doubt: their runs were started and the answers were lost."""
    server.faults.add("lost-answer", times=2)
    for prompt in ("one", "two"):
        shell("enqueue", prompt, "--batch", "b")
    shell("worker", "--once", "--max-jobs", "2", code=3)
    assert shell.sql("select state from jobs") == [("in_doubt",), ("in_doubt",)]
    return shell


def test_a_job_in_doubt_is_shown_with_what_may_be_done(doubted: Shell) -> None:
    shell = doubted
    status = shell("status").out
    assert "decide: orchestrator resolve 1" in status
    assert "in_doubt          2" in status
    page = shell("resolve", "1").out
    for choice in ("--adopt CHAT_ID", "--resubmit", "--fail"):
        assert f"orchestrator resolve 1 {choice}" in page
    assert "only after its first model call" in page


def test_a_chat_is_adopted_by_its_id(doubted: Shell, server: DevServer) -> None:
    shell = doubted
    chats = [run.order.chat_id for run in server.runs]
    page = shell("resolve", "1").out
    assert all(chat in page for chat in chats)
    done = shell("resolve", "1", "--adopt", chats[0])
    assert done.out == "1 completed\n"
    assert shell.sql("select chat_id from jobs where id = 1") == [(chats[0],)]
    again = shell("resolve", "2", "--adopt", chats[0], code=1)
    assert "belongs to another job already" in again.err


def test_jobs_in_doubt_are_resubmitted_or_given_up(doubted: Shell) -> None:
    shell = doubted
    shell("resolve", "--all-in-doubt", "--fail", "--dry-run")
    assert shell.sql("select count(*) from jobs where state = 'in_doubt'") == [(2,)]
    assert shell("resolve", "1", "--fail").out == "1 failed\n"
    out = shell("resolve", "--all-in-doubt", "--batch", "b", "--resubmit").out
    assert out == "2 queued: attempt 2 will start another run\n"
    done = shell("resolve", "1", code=1)
    assert done.err == "error: job 1 is failed, not in doubt\n"


def test_without_the_api_the_choices_are_still_shown(
    doubted: Shell, server: DevServer, portal: BlockingPortal
) -> None:
    portal.call(server.refuse)
    done = doubted("resolve", "1", code=75)
    assert "they cannot be listed" in done.out
    assert "orchestrator resolve 1 --fail" in done.out


def test_pausing_a_queue_that_nothing_uses_is_remarked(shell: Shell) -> None:
    shell("enqueue", "x", "--queue", "mail")
    assert shell("pause", "mail").err == ""
    done = shell("pause", "mial")
    assert "queue mial is paused" in done.out
    assert done.err == "there is no job in a queue of the name mial yet\n"
    assert "no job in a queue of the name miel" in shell("resume", "miel").err


@pytest.mark.parametrize(
    "args", [["pause", " "], ["resume", ""], ["limit", "q" * 256, "1"], ["weigh", "", "2"]]
)
def test_a_queue_that_cannot_be_is_refused(shell: Shell, args: list[str]) -> None:
    shell("enqueue", "x")
    assert shell(*args, code=2).err.startswith("error: queue: ")
    assert shell.sql("select name from queues") == []


def test_a_weight_is_listed(shell: Shell) -> None:
    shell("enqueue", "x", "--queue", "mail")
    shell("weigh", "mail", "3")
    names, cells = (line.split("\t") for line in shell("queues").out.splitlines())
    assert dict(zip(names, cells, strict=True))["weight"] == "3"


@pytest.mark.parametrize(
    "args",
    [
        ["cancel"],
        ["retry"],
        ["cancel", "1", "--all"],
        ["cancel", "0"],
        ["resolve"],
        ["resolve", "1", "--fail", "--resubmit"],
        ["resolve", "--fail"],
        ["resolve", "--batch", "b", "--fail"],
        ["watch"],
        ["jobs", "--json", "--csv"],
        ["jobs", "--state", "done"],
    ],
)
def test_an_act_without_an_aim_is_refused(shell: Shell, args: list[str]) -> None:
    shell("enqueue", "x")
    done = shell(*args, code=2)
    assert "error: " in done.err
    assert shell.sql("select state from jobs") == [("queued",)]


def test_several_jobs_are_asked_about_on_a_terminal(shell: Shell) -> None:
    (shell.folder / "f.txt").write_text("a\nb\n")
    shell("enqueue", "--file", "f.txt")
    done = shell.on_terminal("cancel", "--all", keys="n\n", code=1)
    assert "2 jobs: go on?" in done.out
    assert shell.sql("select distinct state from jobs") == [("queued",)]
    shell.on_terminal("cancel", "--all", keys="y\n")
    assert shell.sql("select distinct state from jobs") == [("cancelled",)]
    assert "go on?" not in shell.on_terminal("retry", "--all", "--yes").out
    assert "go on?" not in shell.on_terminal("cancel", "1").out
    assert shell.sql("select state from jobs order by id") == [("cancelled",), ("queued",)]


def test_a_job_that_does_not_exist(shell: Shell) -> None:
    shell("enqueue", "x")
    for args in (["show", "7"], ["cancel", "1", "7"], ["wait", "7"], ["watch", "7"]):
        assert shell(*args, code=2).err == "error: there is no job 7\n"
    assert shell.sql("select state from jobs") == [("queued",)]


def test_the_gate_of_the_configured_key(shell: Shell) -> None:
    shell("migrate", "upgrade")
    assert "there is no gate" in shell("gate", "open").out
    shell.env["RECOUP_API_KEY"] = "recoup_sk_one"
    assert "closed: https://api.recoupable.com" in shell("gate", "close", "--reason", "no").out
    shell.env["RECOUP_API_KEY"] = "recoup_sk_two"
    shell("gate", "open")
    rows = json.loads(shell("gate", "show", "--json").out)
    assert sorted((row["reason"], row["detail"]) for row in rows if row["reason"]) == [
        ("operator", "no")
    ]
    assert len(rows) == 2
    shell.env["RECOUP_API_KEY"] = "recoup_sk_one"
    assert "gate closed: operator" in shell("status").out
    # Without a key, it is about every key of the API.
    del shell.env["RECOUP_API_KEY"]
    assert len(shell("gate", "open").out.splitlines()) == 2
    assert [row["reason"] for row in json.loads(shell("gate", "show", "--json").out)] == [None] * 2


def test_a_closed_gate_of_a_replaced_key_is_not_told_of(shell: Shell) -> None:
    shell("migrate", "upgrade")
    for key in ("recoup_sk_old", "recoup_sk_new"):
        shell.env["RECOUP_API_KEY"] = key
        shell("gate", "close" if key.endswith("old") else "open")
    assert "gate closed" not in shell("status").out
    shell.env["RECOUP_API_KEY"] = "recoup_sk_old"
    assert "gate closed: operator" in shell("status").out


def test_an_operator_closes_what_an_outage_had_closed(shell: Shell) -> None:
    shell("migrate", "upgrade")
    shell.sql(
        "insert into gates (api_origin, key_fingerprint, closed_at, reason, next_probe_at) values"
        " ('https://api.recoupable.com', 'k', '2026-01-31 08:00:00.000000', 'outage',"
        " '2026-01-31 08:00:10.000000')"
    )
    shell("gate", "close")
    assert shell.sql("select reason, next_probe_at from gates") == [("operator", None)]


def test_a_closed_gate_holds_submissions_back(shell: Shell, server: DevServer) -> None:
    shell("enqueue", "x", "--expires", "+2s")
    shell("gate", "close")
    shell("worker", "--once", code=3)
    assert shell.sql("select error_kind from jobs") == [("expired",)]
    assert len(server.stats.posts_by_prompt) == 0


def test_the_runs_of_a_replaced_key_move_to_the_key_that_replaced_it(shell: Shell) -> None:
    shell.env["RECOUP_API_KEY"] = "recoup_sk_new"
    shell("enqueue", "a")
    shell.sql(
        "update jobs set state = 'running', run_id = 'wrun_1', key_fingerprint = 'oldoldoldold',"
        " api_origin = 'https://api.recoupable.com'"
    )
    assert "orchestrator gate rekey oldoldoldold" in shell("status").out
    assert "1 running: key " in shell("gate", "rekey", "oldoldoldold").out
    assert "rekey" not in shell("status").out
    assert shell.sql("select event from job_events order by id desc limit 1") == [("job.rekeyed",)]
    assert "no live or doubtful job" in shell("gate", "rekey", "oldoldoldold").out
