"""Alembic's environment: runs the revisions on the connection that the caller passes in.

The orchestrator always hands over a connection (`config.attributes["connection"]`), so that the
lock around an upgrade and the upgrade itself share one transaction. Without one, SQL is printed.
"""

from __future__ import annotations

from alembic import context

connection = context.config.attributes.get("connection")

if connection is None:
    context.configure(
        url=context.config.get_main_option("sqlalchemy.url"),
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
else:
    context.configure(connection=connection, transactional_ddl=True)

with context.begin_transaction():
    context.run_migrations()
