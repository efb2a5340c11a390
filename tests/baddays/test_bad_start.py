"""A worker whose file or configuration is in no state to begin says why, and with what code."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from alembic import command

from orchestrator.store import migrations, sqlite
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.testing import DevServer

from ..cli.shell import Shell
from .night import Night

ONCE = ("worker", "--once")


@pytest.fixture
def shell(tmp_path: Path, migrated_file: Path) -> Shell:
    """Commands on a migrated file, with a key and an API that nothing listens at."""
    shutil.copy(migrated_file, tmp_path / "orchestrator.db")
    shell = Shell(tmp_path)
    shell.env |= {
        "RECOUP_API_KEY": "recoup_sk_mine",
        "ORCHESTRATOR_API__BASE_URL": "http://127.0.0.1:9",
    }
    return shell


def said(shell: Shell, code: int) -> str:
    done = shell(*ONCE, code=code)
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    return done.err


# --- the file -----------------------------------------------------------------------------------


def test_a_file_that_cannot_be_opened_is_75(shell: Shell) -> None:
    (shell.folder / "orchestrator.db").unlink()
    (shell.folder / "orchestrator.db").mkdir()
    assert "unable to open database file" in said(shell, 75)


def test_a_folder_that_is_gone_is_78_and_named(shell: Shell) -> None:
    """As where a disk is not mounted: to create the file elsewhere would run nothing, or twice."""
    shell.env["ORCHESTRATOR_DATABASE__URL"] = "sqlite:///gone/jobs.db"
    assert "the folder 'gone' does not exist; create it or name another file" in said(shell, 78)
    assert not (shell.folder / "gone").exists()


def test_a_file_that_another_program_keeps_locked_is_75(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    with contextlib.closing(sqlite3.connect(shell.folder / "orchestrator.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "database is locked" in said(shell, 75)
        other.rollback()
    shell(*ONCE)


def test_a_schema_of_a_newer_program_is_78_and_stays(shell: Shell) -> None:
    shell.sql("UPDATE alembic_version SET version_num = '9999'")
    assert f"(9999) is newer than this program knows ({migrations.head()})" in said(shell, 78)
    assert shell.sql("SELECT version_num FROM alembic_version") == [("9999",)]


def test_a_schema_of_an_older_program_is_brought_up_by_the_worker(shell: Shell) -> None:
    """It is the worker's own file; a server's schema is brought up by a person."""
    (shell.folder / "orchestrator.db").unlink()
    engine = sync_engine(parse_url(f"sqlite:///{shell.folder / 'orchestrator.db'}"))
    with engine.execution_options(**{sqlite.WRITE: True}).begin() as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    assert "run: orchestrator migrate upgrade" in shell("status", code=78).err
    shell(*ONCE)
    assert shell.sql("SELECT version_num FROM alembic_version") == [(migrations.head(),)]


def obeying_permissions() -> list[str]:
    """What to put before a command that must not pass over a file's mode, as root's do."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root passes over a file's mode, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@contextlib.contextmanager
def only_readable(*paths: Path) -> Iterator[None]:
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


async def test_a_file_that_may_only_be_read_is_75_and_works_once_it_may_be_written(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with DevServer() as dev:
        night = Night(tmp_path, dev, sqlite_url)
        night.enqueue('[text="Written."]')
        file = Path(sqlite_url.removeprefix("sqlite:///"))
        worker = [*obeying_permissions(), sys.executable, "-m", "orchestrator", *ONCE]
        with only_readable(file, tmp_path), anyio.fail_after(40):
            done = await anyio.run_process(worker, env=night.environ, cwd=tmp_path, check=False)
        assert done.returncode == 75, done.stderr
        assert b"attempt to write a readonly database" in done.stderr
        assert (await night.command(*ONCE)).returncode == 0
        await night.all_completed(1)


# --- the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[worker]\nconcurrency = 'many'\n", ("worker.concurrency", '"many"', "a valid integer")),
        (b"[worker]\nconcurency = 5\n", ("concurency", "did you mean worker.concurrency?")),
        (
            b"[follow]\nmode = 'sometimes'\n",
            ("follow.mode", '"sometimes"', "'auto', 'stream' or 'poll'"),
        ),
        (b"[worker\nconcurrency = 5\n", ("orchestrator.toml", "line 1")),
        (b"[worker]\n\x00\xff\xfe", ("orchestrator.toml",)),
        (b"", ()),
    ],
    ids=["value", "name", "choice", "syntax", "bytes", "empty"],
)
def test_a_broken_configuration_is_78_and_names_field_value_and_remedy(
    shell: Shell, content: bytes, words: tuple[str, ...]
) -> None:
    (shell.folder / "orchestrator.toml").write_bytes(content)
    if not words:
        shell(*ONCE)
        return
    told = said(shell, 78)
    assert [word for word in words if word not in told] == [], told
