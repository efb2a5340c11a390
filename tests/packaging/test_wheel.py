"""The built wheel, with the source out of reach: what it holds, and that it works alone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(target), str(ROOT)),
        ],
        check=True,
        capture_output=True,
        timeout=110,
    )
    [built] = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if "ORCHESTRATOR" not in name}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env={**environ, "PYTHONPATH": str(installed)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_wheel_holds_the_package_and_the_migrations_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "orchestrator/py.typed" in names
    assert "orchestrator/_migrations/env.py" in names
    assert "orchestrator/_migrations/versions/0001_jobs.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"orchestrator"}


def test_the_wheel_migrates_and_enqueues_without_the_source(
    installed: Path, tmp_path: Path
) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import orchestrator; print(orchestrator.__file__)"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert where.stdout.startswith(str(installed))
    database = f"sqlite:///{tmp_path}/jobs.db"
    upgraded = run(installed, tmp_path, "--database", database, "migrate", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    checked = run(installed, tmp_path, "--database", database, "migrate", "check")
    assert checked.returncode == 0, checked.stderr
    enqueued = run(installed, tmp_path, "--database", database, "enqueue", "from the wheel")
    assert enqueued.returncode == 0, enqueued.stderr
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        assert connection.execute("SELECT prompt FROM jobs").fetchall() == [("from the wheel",)]
    connection.close()
