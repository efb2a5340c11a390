"""Maintain: `migrate`."""

from __future__ import annotations

import click

from orchestrator.cli.failures import CONFIGURATION
from orchestrator.cli.frame import Frame, GlobalOptions, Group, pass_frame
from orchestrator.config import safe_url
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url
from orchestrator.store.migrations import Schema


@click.group(cls=Group)
def migrate() -> None:
    """Upgrade or check the database's schema."""


@migrate.command(cls=GlobalOptions)
@pass_frame
def upgrade(frame: Frame) -> None:
    """Bring the schema to this program's version; creates a SQLite file.

    Runs in one transaction behind a lock: a crash leaves the old schema, and two upgrades at
    once do it once.
    """
    settings = frame.settings()
    revision = migrations.upgrade(parse_url(settings.database.url))
    frame.output().line(f"{safe_url(settings.database.url)}: schema {revision}")


@migrate.command(cls=GlobalOptions)
@pass_frame
def check(frame: Frame) -> int:
    """Say how the schema stands; exit code 78 unless it is current."""
    settings = frame.settings()
    schema, found = migrations.check(parse_url(settings.database.url))
    needs = f"this program needs {migrations.head()}"
    frame.output().line(f"{schema.value}: the database has {found or 'no schema'}, {needs}")
    return 0 if schema is Schema.CURRENT else CONFIGURATION


@migrate.command(cls=GlobalOptions)
@click.option(
    "--dialect",
    type=click.Choice(["sqlite", "postgresql"]),
    help="The database's kind; by default that of the configured one.",
)
@pass_frame
def sql(frame: Frame, *, dialect: str | None) -> None:
    """Print the SQL that creates the schema from nothing."""
    kind = dialect or parse_url(frame.settings().database.url).get_backend_name()
    frame.output().raw(migrations.sql(kind))
