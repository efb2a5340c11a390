from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from orchestrator.errors import ConfigError, NotFound, SchemaMismatch, StoreUnavailable
from orchestrator.store import migrations, sqlite
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.migrations import Schema

from .. import postgres
from .desk import Desk

FURTHER = """
from alembic import op

revision = "9000"
down_revision = "{head}"


def upgrade() -> None:
    op.execute("CREATE TABLE extra (id INTEGER)")


def downgrade() -> None:
    op.execute("DROP TABLE extra")
"""


@pytest.fixture
def database_url(own_database_url: str) -> str:
    """These tests change the schema."""
    return own_database_url


@pytest.fixture
def one_revision_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that knows one revision more than this one."""
    folder = tmp_path / "folder with 100% more" / "migrations"
    shutil.copytree(migrations.scripts_folder(), folder)
    (folder / "versions" / "9000_extra.py").write_text(FURTHER.replace("{head}", migrations.head()))
    monkeypatch.setattr(migrations, "scripts_folder", lambda: folder)


def require_current(desk: Desk) -> None:
    desk.read(migrations.require_current)


def test_a_migrated_database_is_current(desk: Desk, database_url: str) -> None:
    require_current(desk)
    assert migrations.check(parse_url(database_url)) == (Schema.CURRENT, migrations.head())


def test_the_files_are_named_by_their_revisions() -> None:
    chain = ScriptDirectory.from_config(migrations._config()).walk_revisions()
    assert [script.revision for script in chain] == migrations.revisions()[::-1]


@pytest.mark.usefixtures("one_revision_more")
def test_an_older_schema_names_the_command(desk: Desk, database_url: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"older .* run: orchestrator migrate upgrade"):
        require_current(desk)
    assert migrations.check(parse_url(database_url))[0] is Schema.OLDER


@pytest.mark.usefixtures("one_revision_more")
def test_an_upgrade_keeps_what_is_there(desk: Desk, database_url: str) -> None:
    job = desk.enqueue()
    assert migrations.upgrade(parse_url(database_url)) == "9000"
    require_current(desk)
    assert desk.get(job.id) == job
    assert desk.rows("SELECT * FROM extra") == []


def test_a_newer_schema_is_neither_used_nor_changed(desk: Desk, database_url: str) -> None:
    desk.sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match=r"\(9999\) is newer"):
        require_current(desk)
    with pytest.raises(SchemaMismatch, match="install the newer orchestrator"):
        migrations.upgrade(parse_url(database_url))
    assert migrations.check(parse_url(database_url)) == (Schema.NEWER, "9999")


def test_a_database_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path / 'other.db'}")
    engine = sync_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE theirs (id INTEGER)")
        with pytest.raises(SchemaMismatch, match="run: orchestrator init"):
            migrations.require_current(connection)
    engine.dispose()


def test_looking_creates_no_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with pytest.raises(NotFound, match="no database at"):
        migrations.check(parse_url(f"sqlite:///{path}"))
    assert not path.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere. does not exist"):
        migrations.upgrade(parse_url(f"sqlite:///{tmp_path}/nowhere/jobs.db"))


def test_a_file_that_cannot_be_opened_is_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    url = parse_url(f"sqlite:///{tmp_path}/jobs.db")
    for verb in (migrations.upgrade, migrations.check):
        call: Callable[..., object] = verb
        with pytest.raises(StoreUnavailable, match="unable to open"):
            call(url)


def test_callers_at_once_upgrade_once(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/jobs.db")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrations.upgrade, [url] * 4)) == [migrations.head()] * 4
    assert migrations.check(url)[0] is Schema.CURRENT


def test_callers_that_open_a_fresh_file_at_once_wait_for_each_other(tmp_path: Path) -> None:
    at_once = Barrier(4)

    def open_file(number: int) -> str:
        engine = sync_engine(parse_url(f"sqlite:///{tmp_path}/{number}.db"))
        at_once.wait(timeout=20)
        with engine.connect() as connection:
            mode: str = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        return mode

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for number in range(100) for _ in range(4)]
        assert set(pool.map(open_file, numbers)) == {"wal"}


def test_callers_at_once_upgrade_a_server_once(postgres_server: postgres.Server) -> None:
    with postgres.database(postgres_server) as url, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrations.upgrade, [url] * 4)) == [migrations.head()] * 4
        assert migrations.check(url)[0] is Schema.CURRENT


def shape(connection: Connection) -> dict[str, object]:
    """All that the schema is: columns, indexes and views."""
    found = inspect(connection)
    return {
        "columns": {
            name: [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)]
            for name in (*found.get_table_names(), *found.get_view_names())
        },
        "indexes": {
            name: sorted(str(index["name"]) for index in found.get_indexes(name))
            for name in found.get_table_names()
        },
    }


def test_the_printed_schema_is_the_one_that_an_upgrade_makes(
    postgres_server: postgres.Server, own_postgres_url: str
) -> None:
    with postgres.database(postgres_server) as url:
        printed = sync_engine(url)
        upgraded = sync_engine(parse_url(own_postgres_url))
        with printed.begin() as one, upgraded.begin() as other:
            one.exec_driver_sql(migrations.sql("postgresql").replace("%", "%%"))
            assert shape(one) == shape(other)
            migrations.require_current(one)
        printed.dispose()
        upgraded.dispose()


def test_a_downgrade_leaves_nothing_behind(database_url: str) -> None:
    url = parse_url(database_url)
    engine = sync_engine(url)
    config = migrations._config()
    with engine.execution_options(**{sqlite.WRITE: True}).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
        assert inspect(connection).get_view_names() == []
    engine.dispose()
    assert migrations.upgrade(url) == migrations.head()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_schema_can_be_printed(dialect: str) -> None:
    printed = migrations.sql(dialect)
    for word in ("CREATE TABLE jobs", "CREATE VIEW waiting", "CREATE UNIQUE INDEX"):
        assert word in printed
    assert ("STRICT" in printed) == (dialect == "sqlite")
    assert ("TIMESTAMPTZ" in printed) == (dialect == "postgresql")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://host/db", "'mysql' is not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql://u:secret@host:port/db", "not a database URL"),
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
