"""What tests of every folder share: a migrated database of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.store import migrations
from orchestrator.store.engine import parse_url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, migrated once and copied for each test."""
    path = tmp_path_factory.mktemp("migrated") / "jobs.db"
    migrations.upgrade(parse_url(f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite"])
def database_url(tmp_path: Path, migrated_file: Path) -> str:
    """The URL of a migrated, empty database; what takes it must hold on every dialect."""
    path = tmp_path / "jobs.db"
    shutil.copy(migrated_file, path)
    return f"sqlite:///{path}"
