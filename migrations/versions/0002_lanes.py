"""An index for each queue's own order, and PostgreSQL's checks of times.

Literal SQL, as in the revision before.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIMES = (
    "scheduled_at",
    "available_at",
    "resubmit_at",
    "expires_at",
    "created_at",
    "sent_at",
    "accepted_at",
    "finished_at",
    "cancel_requested_at",
    "stream_opened_at",
    "stream_left_at",
    "updated_at",
)

# 'infinity' and years beyond 9999 are times to PostgreSQL and to hardly any program that reads
# them: one such row would break every query that meets it.
_CHECKS = (
    "ALTER TABLE jobs ADD CONSTRAINT jobs_timeouts_finite CHECK ("
    "(run_timeout IS NULL OR run_timeout < 'Infinity')"
    " AND (stall_timeout IS NULL OR stall_timeout < 'Infinity'))",
    *(
        f"ALTER TABLE jobs ADD CONSTRAINT jobs_{name}_is_readable CHECK ({name} IS NULL OR "
        f"({name} >= '0001-01-02 00:00:00+00' AND {name} < '9999-12-31 00:00:00+00'))"
        for name in _TIMES
    ),
)


def upgrade() -> None:
    op.execute("DROP INDEX jobs_claim")
    op.execute(
        "CREATE INDEX jobs_claim ON jobs (queue, priority DESC, available_at, id)"
        " WHERE state = 'queued'"
    )
    op.execute("CREATE INDEX jobs_places ON jobs (queue) WHERE state IN ('submitting', 'running')")
    if op.get_context().dialect.name == "postgresql":
        for statement in _CHECKS:
            op.execute(statement)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for name in _TIMES:
            op.execute(f"ALTER TABLE jobs DROP CONSTRAINT jobs_{name}_is_readable")
        op.execute("ALTER TABLE jobs DROP CONSTRAINT jobs_timeouts_finite")
    op.execute("DROP INDEX jobs_places")
    op.execute("DROP INDEX jobs_claim")
    op.execute(
        "CREATE INDEX jobs_claim ON jobs (priority DESC, available_at, id) WHERE state = 'queued'"
    )
