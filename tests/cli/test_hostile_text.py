"""Text that is not ours, through every command that shows it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from .shell import Shell

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\x85 [red]r[/red] [link=http://x.example]l[/link] :smile: "
    "\u202egnp.exe\u2066\u200b\r\x08\x7f\ud800 end"
)
STORABLE = HOSTILE.replace("\ud800", "\ufffd")
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
STYLES = re.compile("\r?\x1b\\[[0-9;]*m|\r\n|\x1b\\[\\?25[hl]|\x1b\\[[0-9]*[AK]|\r(?=\x1b)")
"""What rich itself sends: colours, the ends of lines, the cursor of a progress bar."""

MESSAGE = {"id": HOSTILE, "role": "assistant", "parts": [{"type": "text", "text": HOSTILE}]}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which everything that others can write is hostile."""
    shell = Shell(tmp_path_factory.mktemp("hostile"))
    shell("migrate", "upgrade")
    common = "queue, batch, tags, metadata, prompt, model, worker_id"
    values = (
        *(STORABLE, STORABLE, json.dumps([HOSTILE]), json.dumps({HOSTILE: HOSTILE})),
        *(STORABLE, STORABLE, "w"),
    )
    now = "2026-01-31 08:00:00.000000"
    rows: list[tuple[str, tuple[object, ...]]] = [
        ("state, result_text, attempt, sent_at", ("completed", STORABLE, 1, now)),
        ("state, error_kind, error, attempt, sent_at", ("failed", "rejected", STORABLE, 1, now)),
        ("state, error_kind, error, attempt, sent_at", ("in_doubt", "in_doubt", STORABLE, 1, now)),
        ("state, run_id, api_origin, key_fingerprint", ("running", STORABLE, STORABLE, STORABLE)),
        ("state, error, available_at", ("queued", STORABLE, "2099-01-31 08:00:00.000000")),
    ]
    for names, own in rows:
        marks = ", ".join("?" * (len(values) + len(own)))
        shell.sql(f"insert into jobs ({common}, {names}) values ({marks})", *values, *own)  # noqa: S608 - names of ours
    shell.sql(
        "insert into messages values (1, 1, 0, ?, ?, ?, ?, 'server')",
        *(STORABLE, STORABLE, STORABLE, json.dumps(MESSAGE)),
    )
    for job_id in range(1, 6):
        shell.sql(
            "insert into job_events (job_id, event, to_state, detail) values (?, ?, 'queued', ?)",
            *(job_id, STORABLE, json.dumps({HOSTILE: HOSTILE})),
        )
    shell.sql(
        "insert into workers (id, host, pid, version, api_origin, key_fingerprint)"
        " values ('w', ?, 1, '1', ?, ?)",
        *(STORABLE, STORABLE, STORABLE),
    )
    shell.sql(
        "insert into gates (api_origin, key_fingerprint, closed_at, reason, detail)"
        " values (?, ?, ?, 'outage', ?)",
        *(STORABLE, STORABLE, now, STORABLE),
    )
    shell.sql(
        "insert into queues (name, paused_at, paused_reason) values (?, ?, ?)",
        *(STORABLE, now, STORABLE),
    )
    return shell.folder / "orchestrator.db"


@pytest.fixture
def hostile(template: Path, shell: Shell) -> Shell:
    shutil.copy(template, shell.folder)
    return shell


LOOKS = [
    ["status"],
    ["status", "--json"],
    ["jobs"],
    ["jobs", "--json"],
    ["show", "1"],
    ["show", "1", "--messages"],
    ["show", "1", "--json", "--messages"],
    ["show", "2"],
    ["show", "3"],
    ["show", "4"],
    ["show", "5"],
    ["queues"],
    ["queues", "--json"],
    ["workers", "--all"],
    ["workers", "--json"],
    ["gate", "show"],
    ["gate", "show", "--json"],
    ["watch", "1"],
    ["watch", "1", "2", "3"],
    ["wait", "1", "2", "3"],
    ["resolve", "3"],
    ["cancel", "1", "2"],
    ["cancel", "--dry-run", "--all"],
    ["retry", "--dry-run", "--queue", STORABLE],
]


@pytest.mark.parametrize("args", LOOKS, ids=lambda args: " ".join(args[:3]).replace(STORABLE, "…"))
def test_a_terminal_obeys_nothing_of_it(hostile: Shell, args: list[str]) -> None:
    done = hostile.on_terminal(*args, code=None)
    ours = STYLES.sub("", done.out)
    assert "unexpected" not in ours
    assert OBEYED.findall(ours) == []


@pytest.mark.parametrize("args", LOOKS, ids=lambda args: " ".join(args[:3]).replace(STORABLE, "…"))
def test_a_pipe_gets_nothing_that_a_terminal_would_obey(hostile: Shell, args: list[str]) -> None:
    done = hostile(*args, code=None)
    assert "unexpected" not in done.err
    assert OBEYED.findall(done.out + done.err) == []


@pytest.mark.parametrize("args", [["jobs"], ["show", "1"], ["status"], ["watch", "1"]])
def test_markup_is_shown_as_it_is_written(hostile: Shell, args: list[str]) -> None:
    for done in (hostile(*args), hostile.on_terminal(*args, columns=400)):
        assert "[red]r[/red]" in STYLES.sub("", done.out)


def test_csv_and_text_keep_every_byte_on_a_pipe(hostile: Shell) -> None:
    assert hostile("show", "1", "--text").out == f"{STORABLE}\n"
    out = hostile("jobs", "--csv", "--all").out
    assert f'"{STORABLE}"' in out or f",{STORABLE}," in out


def test_csv_and_text_are_made_visible_on_a_terminal(hostile: Shell) -> None:
    for args in (["jobs", "--csv"], ["show", "1", "--text"]):
        ours = STYLES.sub("", hostile.on_terminal(*args).out)
        assert OBEYED.findall(ours) == []
        assert r"\x1b]0;owned\x07" in ours


def test_a_file_of_hostile_lines_is_told_of_safely(shell: Shell) -> None:
    (shell.folder / "f.jsonl").write_text(json.dumps({"prompt": "x", HOSTILE: HOSTILE}))
    done = shell("enqueue", "--file", "f.jsonl", code=2)
    assert OBEYED.findall(done.err) == []


def test_a_recorded_stream_is_folded_safely(shell: Shell) -> None:
    chunks = [
        {"type": "start", "messageId": HOSTILE},
        {"type": "text-start", "id": "0"},
        {"type": "text-delta", "id": "0", "delta": HOSTILE},
        {"type": "error", "errorText": HOSTILE},
    ]
    (shell.folder / "s.json").write_text(json.dumps(chunks))
    for args in (["fold", "s.json"], ["fold", "--text", "s.json"]):
        ours = STYLES.sub("", shell.on_terminal(*args).out)
        assert OBEYED.findall(ours) == []
    done = shell("fold", "s.json")
    assert OBEYED.findall(done.out + done.err) == []
