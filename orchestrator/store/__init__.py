"""The database: schema, engines, migrations and verbs. Knows nothing of HTTP."""
