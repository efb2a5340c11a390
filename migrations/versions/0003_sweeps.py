"""Indexes by which a worker looks each second for what expired, was called off, or is in doubt.

SQLite, which has no statistics of most files, prefers an index whose first column is asked for by
value: before `state` led them it read every waiting job by `jobs_state` instead.

Literal SQL, as in the revisions before.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NAMES = ("jobs_expiry", "jobs_called_off", "jobs_in_doubt")

_BEFORE = (
    "CREATE INDEX jobs_expiry ON jobs (expires_at)"
    " WHERE state = 'queued' AND expires_at IS NOT NULL",
    "CREATE INDEX jobs_called_off ON jobs (id)"
    " WHERE state = 'queued' AND cancel_requested_at IS NOT NULL",
    "CREATE INDEX jobs_in_doubt ON jobs (resubmit_at) WHERE state = 'in_doubt'",
)

_AFTER = (
    "CREATE INDEX jobs_expiry ON jobs (state, expires_at)"
    " WHERE state = 'queued' AND expires_at IS NOT NULL",
    "CREATE INDEX jobs_called_off ON jobs (state, id)"
    " WHERE state = 'queued' AND cancel_requested_at IS NOT NULL",
    "CREATE INDEX jobs_in_doubt ON jobs (state, resubmit_at) WHERE state = 'in_doubt'",
)


def upgrade() -> None:
    _replace(_AFTER)


def downgrade() -> None:
    _replace(_BEFORE)


def _replace(made: tuple[str, ...]) -> None:
    for name in _NAMES:
        op.execute(f"DROP INDEX {name}")
    for statement in made:
        op.execute(statement)
