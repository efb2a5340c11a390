"""Find the revisions, compare them with a database, and run them.

Alembic is imported where it runs revisions only: to compare takes a folder and a query, and each
command and worker does that at its start.
"""

from __future__ import annotations

import io
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection, inspect, text

from orchestrator.errors import ConfigError, NoDatabase, SchemaMismatch
from orchestrator.store import postgres, sqlite
from orchestrator.store.engine import reaching, sync_engine
from orchestrator.store.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

_POSTGRES_LOCK = 0x6F726368  # "orch": one upgrade at a time on one database


class Schema(StrEnum):
    """How a database's schema compares with what this program knows."""

    ABSENT = "absent"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"


def scripts_folder() -> Path:
    """The folder of the revisions.

    A checkout's own folder comes first: an editable install also leaves a copy beside the
    package, which would be stale after the next edit.
    """
    package = Path(str(files("orchestrator")))
    for folder in (package.parent / "migrations", package / "_migrations"):
        if (folder / "env.py").is_file() and (folder / "versions").is_dir():
            return folder
    raise ConfigError(
        f"the migrations are missing beside {str(package)!r}; install the package again"
    )


def _config(output: io.StringIO | None = None) -> Config:
    from alembic.config import Config  # see the module's docstring

    config = Config(output_buffer=output) if output is not None else Config()
    config.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def revisions() -> list[str]:
    """The revisions that this program knows, oldest first: the numbers before their names."""
    versions = scripts_folder() / "versions"
    return sorted(path.name.partition("_")[0] for path in versions.glob("[0-9]*_*.py"))


def head() -> str:
    """The revision that this program needs."""
    known = revisions()
    if not known:
        raise ConfigError("the migrations hold no revision; install the package again")
    return known[-1]


def revision_of(connection: Connection) -> str | None:
    """The revision that stands in the database, or None where there is none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars()
    return ", ".join(found) or None


def compare(connection: Connection) -> Schema:
    """Say how the database's schema stands to this program."""
    found = revision_of(connection)
    if found is None:
        return Schema.ABSENT
    if found == head():
        return Schema.CURRENT
    return Schema.OLDER if found in revisions() else Schema.NEWER


def require_current(connection: Connection) -> None:
    """Raise SchemaMismatch, with the command to run, unless the schema is the one we know."""
    match compare(connection):
        case Schema.CURRENT:
            return
        case Schema.NEWER:
            raise SchemaMismatch(
                f"the database's schema ({revision_of(connection)}) is newer than this program "
                f"knows ({head()}); install the newer orchestrator"
            )
        case Schema.OLDER:
            raise SchemaMismatch(
                f"the database's schema ({revision_of(connection)}) is older than this program "
                f"needs ({head()}); run: orchestrator migrate upgrade"
            )
        case Schema.ABSENT:
            raise SchemaMismatch(
                "the database holds no tables of the orchestrator; run: orchestrator init"
            )


def require_file(url: URL) -> None:
    """Raise NoDatabase where a SQLite URL names no file: looking must not create one."""
    path = sqlite.path_of(url) if url.get_backend_name() == "sqlite" else None
    if path is not None and not path.exists():
        raise NoDatabase(
            f"no database at {str(path)!r}; create it with: orchestrator init, "
            "or name another with --database or [database] url"
        )


def upgrade(url: URL) -> str:
    """Bring the database to the head revision and return that revision.

    Creates a SQLite file where there is none. Runs in one transaction behind a lock, so two
    callers at once do it once; a crash leaves the old schema. Raises ConfigError, SchemaMismatch
    for a newer schema and where a name that we need is taken, and StoreUnavailable.
    """
    path = sqlite.path_of(url) if url.get_backend_name() == "sqlite" else None
    if path is not None:
        sqlite.check_place(path)
    engine = sync_engine(url, bounded=False)
    try:
        writing = engine.execution_options(**{sqlite.WRITE: True})
        with reaching(), writing.begin() as connection:
            if engine.dialect.name == "postgresql":
                _require_encoding(connection)
                connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _POSTGRES_LOCK})
            match compare(connection):
                case Schema.CURRENT:
                    pass
                case Schema.NEWER:
                    require_current(connection)
                case Schema.ABSENT:
                    _require_room(connection)
                    _run_revisions(connection)
                case Schema.OLDER:
                    _run_revisions(connection)
            return head()
    finally:
        engine.dispose()


def _run_revisions(connection: Connection) -> None:
    from alembic import command  # see the module's docstring

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _require_room(connection: Connection) -> None:
    """Raise SchemaMismatch where somebody else's tables have the names of ours."""
    taken = sorted({*inspect(connection).get_table_names()} & metadata.tables.keys())
    if taken:
        raise SchemaMismatch(
            f"the database has tables of other making with the names of ours: {', '.join(taken)}; "
            "name another with --database or [database] url"
        )


def _require_encoding(connection: Connection) -> None:
    found = connection.execute(text("SELECT current_setting('server_encoding')")).scalar_one()
    if found != postgres.ENCODING:
        raise ConfigError(
            f"database.url: the database's encoding is {found}, which cannot hold all that a model "
            f"may say; create it with ENCODING '{postgres.ENCODING}' TEMPLATE template0"
        )


def upgrade_sqlite(url: URL) -> None:
    """Create or upgrade a SQLite file, as the commands that write do; a server is left alone."""
    if url.get_backend_name() == "sqlite":
        upgrade(url)


def check(url: URL) -> tuple[Schema, str | None]:
    """Return how the schema stands and the revision found. Never creates a file."""
    require_file(url)
    engine = sync_engine(url)
    try:
        with reaching(), engine.connect() as connection:
            return compare(connection), revision_of(connection)
    finally:
        engine.dispose()


def sql(dialect: str) -> str:
    """Return the SQL that creates the schema from nothing, for `sqlite` or `postgresql`."""
    from alembic import command  # see the module's docstring

    output = io.StringIO()
    config = _config(output)
    config.set_main_option("sqlalchemy.url", f"{dialect}://")
    command.upgrade(config, "head", sql=True)
    return output.getvalue()


__all__ = [
    "Schema",
    "check",
    "compare",
    "head",
    "require_current",
    "require_file",
    "revision_of",
    "revisions",
    "scripts_folder",
    "sql",
    "upgrade",
]
