"""On PostgreSQL, claims go along their own index, whatever there was before.

A planner that believes that no job is queued, since none was when it last looked, took the index
of states for claims, and read every queued job. So `jobs_claim` answers a condition that no other
index does.

Its own settings let dead rows lie until they are a fifth of the table: with a million settled
jobs, claims would walk past the index entries of 200,000 jobs that are not queued any more.

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


_CLAIM = "CREATE INDEX jobs_claim ON jobs (queue, priority DESC, available_at, id) WHERE {queued}"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP INDEX jobs_claim")
        op.execute(_CLAIM.format(queued="(state = 'queued') IS NOT FALSE"))
        for table, names in _SETTINGS.items():
            settings = ", ".join(f"{name} = {_SHARE}" for name in names)
            op.execute(f"ALTER TABLE {table} SET ({settings})")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP INDEX jobs_claim")
        op.execute(_CLAIM.format(queued="state = 'queued'"))
        for table, names in _SETTINGS.items():
            op.execute(f"ALTER TABLE {table} RESET ({', '.join(names)})")
