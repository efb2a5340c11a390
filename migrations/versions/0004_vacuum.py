"""PostgreSQL clears away what the jobs of a day leave behind, however many there ever were.

Its own settings wait for a fifth of a table: with a million settled jobs, claims would walk past
the index entries of 200,000 jobs that are not queued any more.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SETTINGS = {
    "jobs": ("autovacuum_vacuum_scale_factor", "autovacuum_analyze_scale_factor"),
    "stream_checkpoints": ("autovacuum_vacuum_scale_factor",),
}
_SHARE = 0.02


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for table, names in _SETTINGS.items():
            settings = ", ".join(f"{name} = {_SHARE}" for name in names)
            op.execute(f"ALTER TABLE {table} SET ({settings})")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for table, names in _SETTINGS.items():
            op.execute(f"ALTER TABLE {table} RESET ({', '.join(names)})")
