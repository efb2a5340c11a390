"""The documents say what the code does: tables, keys, commands, queries and examples."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
from pydantic import BaseModel

from orchestrator.cli.app import root
from orchestrator.config import Settings
from orchestrator.demo.children import Children
from orchestrator.devserver.script import _DIRECTIVES
from orchestrator.errors import InvalidJob
from orchestrator.request import OPTIONS, job_values
from orchestrator.states import ErrorKind
from orchestrator.store import migrations, schema
from orchestrator.store.engine import parse_url
from orchestrator.testing import PRESETS, DevServer
from tests.docs.generated import PARTS, ROOT, between_marks, commands

README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([ROOT / "README.md", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


# --- what is made from the code -------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PARTS.keys() - {"cli"}))
def test_parts_made_from_the_code_are_up_to_date(name: str) -> None:
    document, make = PARTS[name]
    found = between_marks(name).search((ROOT / document).read_text("utf-8"))
    assert found is not None
    assert found[0] == make(), "run python -m tests.docs.generated"


def test_every_command_and_option_is_in_the_reference() -> None:
    # Not word for word: click's own wording and its line breaks change between its releases.
    section = re.compile(r"^## ([^\n]+)\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
    sections = dict(section.findall(page("cli.md")))
    contexts = {context.command_path: context for context in commands()}
    assert list(sections) == list(contexts), "run python -m tests.docs.generated"
    overview = " ".join(sections["orchestrator"].split())
    for path, context in contexts.items():
        if path.count(" ") == 1:
            first_line = f"{context.info_name} {context.command.get_short_help_str(200)}"
            assert first_line in overview
        for parameter in context.command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                for name in (*parameter.opts, *parameter.secondary_opts):
                    assert re.search(rf"(^|[\s,/]){name}\b", sections[path]), (path, name)


# --- keys, kinds, names ---------------------------------------------------------------------------


def known_keys() -> set[str]:
    return {
        f"{section}.{key}"
        for section, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for key in info.annotation.model_fields
    }


def test_every_setting_is_documented_with_the_default_of_the_example() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.*?) \|", page("configuration.md"), re.MULTILINE)
    documented = {key: default.strip("`") for key, default in rows}
    example = (ROOT / "config.example.toml").read_text("utf-8")
    given = {
        f"{section}.{key}": value
        for section, keys in tomllib.loads(example).items()
        for key, value in keys.items()
    }
    assert set(documented) == known_keys()
    for key, default in documented.items():
        if default == "unset":
            assert key not in given, key
        else:
            assert tomllib.loads(f"value = {default}")["value"] == given[key], key


def test_every_kind_of_trouble_has_an_answer() -> None:
    answered = re.findall(r"^\| `(\w+)` \|", page("troubleshooting.md"), re.MULTILINE)
    assert sorted(answered) == sorted(["error_kind", *ErrorKind])


def test_every_table_column_and_view_is_documented() -> None:
    text = page("schema.md")
    words = set(re.findall(r"`(\w+)`", text))
    columns = {column.name for table in schema.metadata.tables.values() for column in table.columns}
    assert columns | set(schema.metadata.tables) | set(schema.VIEWS) <= words | {"jobs"}


def test_dev_server_page_lists_every_preset_and_directive() -> None:
    text = page("dev-server.md")
    presets = next(line for line in text.splitlines() if line.startswith("Presets: "))
    assert set(re.findall(r"`([\w-]+)`", presets)) == set(PRESETS)
    rows = text.partition("## Directives")[2].partition("## Faults")[0]
    named = {word for cell in re.findall(r"`(\w+)(?:=[^`]*)?`", rows) for word in [cell]}
    assert set(_DIRECTIVES) <= named


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (path.parent / target).is_file(), target


# --- commands -------------------------------------------------------------------------------------


_COMMAND = re.compile(r"(?:^|sudo |=\S+ |\.venv/bin/)orchestrator (.+)$", re.MULTILINE)


def command_lines() -> set[tuple[str, str]]:
    """Every command line of the documents, without its comment and its redirection."""
    return {
        (path.name, re.split(r" +[#>] ?", line)[0])
        for path in PAGES
        for block in blocks(path.read_text("utf-8"), "sh")
        for line in _COMMAND.findall(block)
    }


@pytest.mark.parametrize(("name", "line"), sorted(command_lines()))
def test_command_lines_are_understood(name: str, line: str) -> None:  # noqa: ARG001 - shown by pytest
    command: click.Command | None = root
    context: click.Context | None = None
    words = ["orchestrator", *shlex.split(line)]
    while command is not None:
        context = click.Context(command, parent=context, info_name=words[0])
        _options, words, _order = command.make_parser(context).parse_args(words[1:])
        group = command if isinstance(command, click.Group) else None
        command = group.get_command(context, words[0]) if group and words else None
    assert context is not None
    assert not isinstance(context.command, click.Group), f"no such command: {words}"


# --- SQL ------------------------------------------------------------------------------------------

SEED = """
INSERT INTO workers (id, host, pid, version, api_origin, key_fingerprint)
  VALUES ('w1', 'here', 1, '0', 'https://api.example', 'f00');
INSERT INTO jobs (id, state, batch, prompt, attempt, model_used, result_text, run_id,
                  total_tokens, cost_usd, created_at, sent_at, accepted_at, finished_at) VALUES
  (1, 'completed', 'night', 'p1', 1, 'kimi', 'a haiku', 'r1', 100, 0.5,
   '2026-01-31 00:59:00.000000', '2026-01-31 01:00:00.000000', '2026-01-31 01:00:10.000000',
   '2026-01-31 01:05:10.000000'),
  (2, 'completed', 'night', 'p2', 2, 'opus', 'a limerick', 'r3', 300, 2.0,
   '2026-02-01 00:59:00.000000', '2026-02-01 01:00:00.000000', '2026-02-01 01:00:10.000000',
   '2026-02-01 01:01:10.000000');
INSERT INTO attempts (job_id, attempt, state, error_kind, run_id, model_used, total_tokens,
                      cost_usd, sent_at, accepted_at, finished_at) VALUES
  (2, 1, 'failed', 'run_failed', 'r2', 'kimi', 50, 0.25, '2026-01-31 01:00:00.000000',
   '2026-01-31 01:00:10.000000', '2026-01-31 01:00:40.000000');
INSERT INTO messages (job_id, attempt, position, role, text, message, source) VALUES
  (1, 1, 0, 'assistant', 'a haiku', '{"parts":[]}', 'server'),
  (2, 1, 0, 'assistant', 'half a limerick', '{}', 'stream'),
  (2, 2, 0, 'assistant', 'a limerick', '{}', 'server');
INSERT INTO jobs (id, state, batch, prompt, attempt, error_kind, error, run_id, created_at, sent_at,
                  finished_at) VALUES
  (3, 'failed', 'night', 'p3', 1, 'run_failed', 'the run failed', 'r4',
   '2026-01-31 00:00:00.000000', '2026-01-31 00:00:01.000000', '2026-01-31 00:00:11.000000'),
  (4, 'failed', 'night', 'p4', 1, 'run_failed', 'the run failed', 'r5',
   '2026-01-31 00:00:00.000000', '2026-01-31 00:00:01.000000', '2026-01-31 00:00:06.000000');
INSERT INTO jobs (id, state, batch, prompt, attempt, error_kind, error, http_status, sent_at) VALUES
  (5, 'in_doubt', 'day', 'p5', 1, 'in_doubt', 'the answer was lost', 502,
   '2026-02-02 00:00:00.000000');
INSERT INTO jobs (id, state, batch, prompt, scheduled_at) VALUES
  (6, 'queued', 'day', 'p6', '2999-01-01 08:00:00.000000'), (7, 'queued', 'day', 'p7', NULL);
INSERT INTO jobs (id, state, batch, prompt, worker_id) VALUES (8, 'submitting', 'day', 'p8', 'w1');
INSERT INTO jobs (id, state, batch, prompt, attempt, worker_id, run_id, sent_at) VALUES
  (9, 'running', 'day', 'p9', 1, 'w1', 'r9', '2026-02-02 00:00:00.000000');
INSERT INTO jobs (id, state, batch, prompt, error_kind) VALUES
  (10, 'cancelled', 'day', 'p10', 'cancelled');
"""

ANSWERS: list[list[tuple[Any, ...]]] = [
    [
        ("cancelled", "cancelled", 1),
        ("completed", None, 2),
        ("failed", "run_failed", 2),
        ("in_doubt", "in_doubt", 1),
        ("queued", None, 2),
        ("running", None, 1),
        ("submitting", None, 1),
    ],
    [("run_failed", "the run failed", 2, 3)],
    [("opus", 1, 300, 2.0), ("kimi", 2, 150, 0.75), (None, 4, None, None)],
    [(1, "a haiku", "server", '{"parts":[]}'), (2, "a limerick", "server", "{}")],
    [("its time, 2999-01-01 08:00:00 UTC", 1, 6), ("a free slot", 1, 7)],
    [(5, "2026-02-02 00:00:00.000000", 502, "the answer was lost", None)],
    [
        (1, 1, "kimi", 60.0, 300.0),
        (2, 2, "opus", 60.0, 60.0),
        (2, 1, "kimi", -86340.0, 30.0),
        (3, 1, None, 1.0, 10.0),
        (4, 1, None, 1.0, 5.0),
    ],
    [("day", 6, 0, 2, 4), ("night", 4, 2, 2, 0)],
    [("2026-02-01", 1, 1, 0, 2.0), ("2026-01-31", 4, 1, 3, 0.75)],
    [(2, 2, "completed", 1, "run_failed", "r2", 0.25)],
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "jobs.db"
    migrations.upgrade_sqlite(parse_url(f"sqlite:///{path}"))
    connection = sqlite3.connect(path)
    yield connection
    connection.close()


def test_ten_queries_answer_the_questions_of_the_morning(database: sqlite3.Connection) -> None:
    database.executescript(SEED)
    queries = blocks(README, "sql")
    assert len(queries) == 10
    for query, answer in zip(queries, ANSWERS, strict=True):
        assert database.execute(query).fetchall() == answer, query


def test_sql_of_the_schema_page_is_accepted(database: sqlite3.Connection) -> None:
    database.executescript(SEED)
    for block in blocks(page("schema.md"), "sql"):
        database.executescript(block)
    fresh = database.execute("SELECT batch, priority FROM jobs WHERE id > 10 ORDER BY id")
    assert fresh.fetchall() == [(None, 0), ("tonight", 5)]


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [README, page("guide.md")], ids=["README", "guide"])
def test_example_lines_are_jobs(text: str) -> None:
    lines = [line for block in blocks(text, "json") for line in block.splitlines()]
    assert lines
    for line in lines:
        options = json.loads(line)
        try:
            job_values(options)
        except InvalidJob as wrong:
            pytest.fail(f"{line}: {wrong}")
        assert set(options) <= set(OPTIONS)


async def test_python_example_runs_against_the_dev_server(tmp_path: Path) -> None:
    (example,) = blocks(README, "python")
    async with DevServer() as server, Children(tmp_path, os.environ) as children:
        settings = {
            "RECOUP_API_KEY": server.key,
            "ORCHESTRATOR_API__BASE_URL": server.url,
            "ORCHESTRATOR_FOLLOW__POLL_MIN": "200ms",
        }
        await children.start("worker", "worker", **settings)
        with anyio.fail_after(60):
            ran = await anyio.run_process([sys.executable, "-c", example], cwd=tmp_path)
        posts = server.stats.posts_by_prompt
    lines = ran.stdout.decode().splitlines()
    assert len(lines) == 4
    assert "haiku" in lines[0]
    assert [line.split()[1] for line in lines[1:]] == ["completed"] * 3
    assert len(posts) == 4
    assert set(posts.values()) == {1}


async def test_python_example_of_the_dev_server_page_runs() -> None:
    (example,) = blocks(page("dev-server.md"), "python")
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - the example is ours
    assert await names["posts_of"]("Say hello.") == 0
