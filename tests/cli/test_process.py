"""The installed command as a process: it ends and prints as it does inside the test run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .shell import Shell


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one job, whose text a terminal would obey."""
    shell = Shell(tmp_path_factory.mktemp("one"))
    shell("enqueue", "\x1b[2Jwrite a [bold]haiku[/] ✓")
    return shell.folder / "orchestrator.db"


@pytest.fixture
def one(template: Path, shell: Shell) -> Shell:
    shutil.copy(template, shell.folder)
    return shell


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["show", "7"], 2),
        (["cancel"], 2),
        (["wait", "--timeout", "100ms"], 75),
        (["status", "--database", "mysql://x"], 78),
    ],
)
def test_a_process_ends_and_prints_as_main_does(one: Shell, args: list[str], code: int) -> None:
    assert one.process(*args, code=code) == one(*args, code=code)


def test_a_process_on_a_terminal_prints_as_main_does(one: Shell) -> None:
    there = one.process_on_terminal("show", "1", columns=60)
    assert r"\x1b[2Jwrite a [bold]haiku[/] ✓" in there.out
    assert there == one.on_terminal("show", "1", columns=60)


LOADED = """
import sys
from orchestrator.cli import main
code = main(sys.argv[1:])
loaded = {"httpx", "aiohttp", "sqlalchemy.orm"} & {*sys.modules}
sys.exit(f"{code} {loaded}" if code or loaded else 0)
"""


@pytest.mark.parametrize("args", [["--help"], ["status"], ["enqueue", "x"]])
def test_what_only_looks_loads_no_http_library_and_no_orm(one: Shell, args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *args],
        cwd=one.folder,
        env=one.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
