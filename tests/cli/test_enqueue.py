from __future__ import annotations

import csv
import io
import json

import pytest

from .shell import Shell


def test_a_prompt_becomes_a_job_and_the_id_is_printed(shell: Shell) -> None:
    assert shell("enqueue", "write a [bold]haiku[/]").out == "1\n"
    assert shell.sql("select prompt, state from jobs") == [("write a [bold]haiku[/]", "queued")]


def test_every_option_reaches_its_column(shell: Shell) -> None:
    uuid = "3c90c3cc-0d44-4b50-8888-8dd25736052a"
    shell(
        *("enqueue", "hello", "--model", "m/x", "--artist-id", uuid, "--account-id", uuid),
        *("--organization-id", uuid, "--queue", "night", "--priority", "-3", "--batch", "b"),
        *("--tag", "x", "--tag", "y", "--metadata", '{"a": [1]}', "--unique-key", "k"),
        *("--at", "2099-01-31T08:00:00+02:00", "--expires", "2099-02-01T00:00:00Z"),
        *("--max-attempts", "2", "--retry-on", "stalled", "--retry-on", "run_failed"),
        *("--on-in-doubt", "fail", "--run-timeout", "90m", "--stall-timeout", "30s"),
    )
    (job,) = [json.loads(line) for line in shell("jobs", "--json").out.splitlines()]
    wanted = {
        "prompt": "hello",
        "model": "m/x",
        "artist_id": uuid,
        "account_id": uuid,
        "organization_id": uuid,
        "queue": "night",
        "priority": -3,
        "batch": "b",
        "tags": ["x", "y"],
        "metadata": {"a": [1]},
        "unique_key": "k",
        "scheduled_at": "2099-01-31T06:00:00Z",
        "expires_at": "2099-02-01T00:00:00Z",
        "max_attempts": 2,
        "retry_on": ["stalled", "run_failed"],
        "on_in_doubt": "fail",
        "run_timeout": 5400.0,
        "stall_timeout": 30.0,
        "endpoint": "runs",
    }
    assert {name: job[name] for name in wanted} == wanted


def test_the_older_endpoint_and_its_options(shell: Shell) -> None:
    room = "3c90c3cc-0d44-4b50-8888-8dd25736052a"
    shell(
        *("enqueue", "x", "--endpoint", "generate", "--room-id", room, "--topic", "t"),
        *("--exclude-tools", "mail", "--exclude-tools", "web"),
    )
    assert shell.sql("select endpoint, room_id, topic, exclude_tools from jobs") == [
        ("generate", room, "t", '["mail","web"]')
    ]


def test_a_prompt_from_standard_input_and_messages_from_a_file(shell: Shell) -> None:
    shell("enqueue", "-", stdin="two\nlines ✓\n")
    (shell.folder / "m.json").write_text('[{"role": "user", "content": "hi"}]')
    shell("enqueue", "--messages", "m.json")
    assert shell.sql("select prompt from jobs order by id") == [("two\nlines ✓",), (None,)]
    ((messages,),) = shell.sql("select input_messages from jobs where id = 2")
    assert json.loads(str(messages)) == [
        {"role": "user", "parts": [{"type": "text", "text": "hi"}]}
    ]


def test_relative_times_count_from_now(shell: Shell) -> None:
    shell("enqueue", "x", "--at", "+2h", "--expires", "+3h")
    ((hours,),) = shell.sql("select (julianday(scheduled_at) - julianday('now')) * 24 from jobs")
    assert float(str(hours)) == pytest.approx(2, abs=0.05)


def test_a_unique_key_returns_the_job_that_has_it(shell: Shell) -> None:
    shell("enqueue", "x", "--unique-key", "k")
    again = shell("enqueue", "x", "--unique-key", "k", "--json")
    assert json.loads(again.out) == {"jobs": [{"id": 1, "created": False}]}
    other = shell("enqueue", "y", "--unique-key", "k", code=2)
    assert "job 1 has it already" in other.err
    shell("enqueue", "y", "--unique-key", "k", "--on-conflict", "replace")
    assert shell.sql("select id, prompt from jobs") == [(1, "y")]


def test_who_enqueues_a_file_again_learns_what_existed(shell: Shell) -> None:
    lines = ['{"prompt": "a", "unique_key": "a"}', '{"prompt": "b"}']
    (shell.folder / "f.jsonl").write_text("\n".join(lines))
    assert shell("enqueue", "--file", "f.jsonl").err == ""
    again = shell("enqueue", "--file", "f.jsonl")
    assert again.out == "1\n3\n"
    assert again.err == "1 job of 2 existed: their unique keys did\n"
    rehearsed = shell("enqueue", "--file", "f.jsonl", "--dry-run").out
    assert rehearsed == (
        "2 jobs would be enqueued, 1 of them unless their unique key exists; nothing was\n"
    )
    told = json.loads(shell("enqueue", "--file", "f.jsonl", "--dry-run", "--json").out)
    assert told == {"dry_run": True, "jobs": 2, "with_unique_key": 1}


def test_a_terminal_gets_a_sentence(shell: Shell) -> None:
    assert "enqueued 1 job: 1" in shell.on_terminal("enqueue", "x").out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give a prompt"),
        (["  "], "a blank prompt counts as none"),
        (["x", "--artist-id", "5"], "it must be a UUID"),
        (["x", "--at", "tomorrow"], "write a time such as"),
        (["x", "--at", "2099-01-31T08:00"], "it has no time zone"),
        (["x", "--metadata", "{"], "it is no JSON"),
        (["x", "--queue", " "], "it must have 1 to 255 characters"),
        (["x", "--max-attempts", "0"], "a whole number from 1"),
        (["x", "--file", "f.csv"], "not several of them"),
        (["--file", "f.bin"], "say what it is with --format"),
        (["--file", "absent.csv"], "No such file"),
    ],
)
def test_a_mistake_is_a_sentence_and_writes_nothing(
    shell: Shell, args: list[str], words: str
) -> None:
    done = shell("enqueue", *args, code=2)
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (shell.folder / "orchestrator.db").exists()


# --- files ------------------------------------------------------------------------------------


def test_json_lines(shell: Shell) -> None:
    lines = [{"prompt": "a", "tags": ["t"]}, {"messages": [{"content": "b"}], "queue": "own"}]
    text = "\n\n".join(json.dumps(line) for line in lines)
    (shell.folder / "f.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    out = shell("enqueue", "--file", "f.jsonl", "--batch", "b", "--queue", "given").out
    assert out == "1\n2\n"
    rows = shell.sql("select prompt, queue, batch, tags from jobs order by id")
    assert rows == [("a", "given", "b", '["t"]'), (None, "own", "b", None)]


def test_csv_with_lists_json_and_line_breaks(shell: Shell) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(
        [
            ["prompt", "tags", "metadata", "priority", "run_timeout"],
            ['one, "two"\r\nthree', "a; b", '{"k": 1}', "7", "2h"],
            ["plain", "", "", "", ""],
            ["as exported", '["a", "b"]', "", "", ""],
        ]
    )
    (shell.folder / "f.csv").write_bytes(text.getvalue().encode())
    shell("enqueue", "--file", "f.csv")
    assert shell.sql("select prompt, tags, metadata, priority, run_timeout from jobs") == [
        ('one, "two"\r\nthree', '["a","b"]', '{"k":1}', 7, 7200.0),
        ("plain", None, None, 0, None),
        ("as exported", '["a","b"]', None, 0, None),
    ]


def test_a_cell_of_csv_may_be_long_and_other_readers_keep_their_limit(shell: Shell) -> None:
    limit = csv.field_size_limit()
    prompt = "p" * (limit + 1)
    (shell.folder / "f.csv").write_text(f"prompt,batch\n{prompt},b\n")
    shell("enqueue", "--file", "f.csv")
    assert shell.sql("select prompt from jobs") == [(prompt,)]
    assert csv.field_size_limit() == limit


def test_json_lines_are_no_prompts(shell: Shell) -> None:
    (shell.folder / "f.txt").write_text('one\n{"prompt": "two"}\n')
    assert "f.txt:2: it looks like JSON" in shell("enqueue", "--file", "f.txt", code=2).err
    assert not (shell.folder / "orchestrator.db").exists() or shell.sql("select 1 from jobs") == []


def test_a_prompt_a_line_and_a_pipe(shell: Shell) -> None:
    (shell.folder / "f.txt").write_text("one\n\ntwo\n")
    shell("enqueue", "--file", "f.txt")
    shell("enqueue", "--file", "-", stdin='{"prompt": "three"}\n')
    assert shell.sql("select prompt from jobs order by id") == [("one",), ("two",), ("three",)]


def test_bad_lines_are_all_named_and_nothing_is_inserted(shell: Shell) -> None:
    (shell.folder / "f.jsonl").write_text(
        '{"prompt": "good"}\n{"prompt": ""}\n\nnonsense\n[1]\n{"prompt": "x", "modle": "m"}\n'
    )
    done = shell("enqueue", "--file", "f.jsonl", code=2)
    problems = done.err.splitlines()[1:]
    assert [line.split(":")[1] for line in problems] == ["2", "4", "5", "6"]
    assert "did you mean model?" in problems[3]
    assert not (shell.folder / "orchestrator.db").exists()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("prompt,promt\nx,y\n", 1, "did you mean prompt?"),
        ("prompt,prompt\nx,y\n", 1, "twice"),
        ('prompt,queue\n"a\nb",q\nx\n', 4, "1 cells, and the header names 2 columns"),
        ('prompt\n"a"b\n', 2, "it is no CSV"),
        ('prompt\nfine\n"open\n', 3, "it is no CSV"),
        ("prompt,metadata\nx,{\n", 2, "metadata: it is no JSON"),
        ("prompt,priority\nx,high\n", 2, "it must be a whole number"),
    ],
)
def test_bad_csv_is_named_with_its_line(shell: Shell, text: str, line: int, words: str) -> None:
    (shell.folder / "f.csv").write_text(text)
    done = shell("enqueue", "--file", "f.csv", code=2)
    assert f"f.csv:{line}: " in done.err
    assert words in done.err


def test_a_file_that_is_not_utf_8_is_named_with_its_line(shell: Shell) -> None:
    (shell.folder / "f.txt").write_bytes(b"one\ntw\xff\n")
    assert "f.txt:2: it is not UTF-8" in shell("enqueue", "--file", "f.txt", code=2).err


@pytest.mark.parametrize(
    "line", ['{"prompt": "a", "prompt": "b"}', '{"prompt": "a", "metadata": {"k": 1, "k": 2}}']
)
def test_a_name_that_an_object_has_twice_is_refused(shell: Shell, line: str) -> None:
    """JSON would keep the last of the two, and the first would be lost without a word."""
    (shell.folder / "f.jsonl").write_text(f'{{"prompt": "good"}}\n{line}\n')
    done = shell("enqueue", "--file", "f.jsonl", code=2)
    assert "f.jsonl:2: the name '" in done.err
    assert "stands there twice in one object" in done.err


def test_a_key_that_exists_is_named_with_its_line(shell: Shell) -> None:
    shell("enqueue", "x", "--unique-key", "k")
    (shell.folder / "f.csv").write_text("prompt,unique_key\nfine,a\nother,k\n")
    done = shell("enqueue", "--file", "f.csv", code=2)
    assert "f.csv:3: " in done.err
    assert shell.sql("select count(*) from jobs") == [(1,)]


def test_thousands_of_lines_go_in_at_once(shell: Shell) -> None:
    lines = "".join(f'{{"prompt": "p{number}"}}\n' for number in range(5000))
    (shell.folder / "f.jsonl").write_text(lines)
    assert shell("enqueue", "--file", "f.jsonl", "--dry-run").out.startswith("5000 jobs would")
    assert not (shell.folder / "orchestrator.db").exists()
    assert len(shell("enqueue", "--file", "f.jsonl").out.splitlines()) == 5000
    times = shell.sql("select count(distinct created_at), count(*) from jobs")
    assert times == [(1, 5000)]
