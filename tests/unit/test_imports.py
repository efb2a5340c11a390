"""The direction of the imports: from faces to worker to remote and database, and never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator

PACKAGE = Path(orchestrator.__file__).parent

VALUES = {"states", "errors", "version", "outcome", "printable", "config", "clock", "log"}
"""Import nothing of ours but each other."""

ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(VALUES, VALUES),
    "job": {"states"},
    "message": set(),
    "request": {"config", "errors", "job", "states"},
    "recoup": {"errors", "printable", "version"},
    "store": {"errors", "job", "outcome", "states"},
    "verdict": {"message", "outcome", "recoup", "states"},
    "decide": {"job", "outcome", "recoup", "states", "verdict"},
    "harvest": {"message", "verdict", "job", "recoup"},
    "devserver": {"config", "version"},
    "testing": {"devserver"},
}
"""What a part of the package may import besides itself; parts that are not named may import any
part below them: no worker and no command line."""

ABOVE = {"cli", "demo", "__main__"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "_migrations" not in path.parts)


def part_of(module: str) -> str:
    """The part of the package that a module's dotted name belongs to; empty for its root."""
    return module.split(".")[1] if "." in module else ""


def imported_by(path: Path) -> set[str]:
    """The parts of our package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module]
            if node.module == "orchestrator":
                names = [f"orchestrator.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {part_of(name) for name in names if name.partition(".")[0] == "orchestrator"}
    return found


def owner(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_back(path: Path) -> None:
    part = owner(path)
    if part in {"__init__", *ABOVE}:
        return
    others = imported_by(path) - {part}
    assert not others & ABOVE
    if part in ALLOWED:
        assert others <= ALLOWED[part]
    elif part != "worker":
        assert "worker" not in others


def test_the_remote_and_the_database_do_not_know_each_other() -> None:
    for part, stranger in (("recoup", "store"), ("store", "recoup"), ("store", "decide")):
        for path in (PACKAGE / part).rglob("*.py"):
            assert stranger not in imported_by(path), path


def test_the_dev_server_shares_no_reading_with_the_client() -> None:
    for path in (PACKAGE / "devserver").rglob("*.py"):
        assert not imported_by(path) & {"recoup", "store", "worker", "decide", "verdict"}, path


def test_every_module_below_is_listed_on_purpose() -> None:
    parts = {owner(path) for path in modules()}
    assert set(ALLOWED) <= parts, "a part that is gone is still listed"


@pytest.mark.parametrize(
    "source",
    [
        "from orchestrator.worker.submit import Submitter",
        "from orchestrator import worker",
        "import orchestrator.worker.submit as x",
        "def f():\n    import orchestrator.worker",
    ],
)
def test_the_walk_sees_each_kind_of_import(tmp_path: Path, source: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imported_by(path) == {"worker"}


def test_importing_everything_prints_nothing_and_starts_nothing() -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in modules()
        if path.name != "__main__.py"
    ]
    script = (
        "import importlib, logging, threading\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not logging.getLogger().handlers\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
