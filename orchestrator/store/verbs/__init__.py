"""The verbs: what may be done to the database, each a plain function of a `Connection`.

A verb runs inside the caller's transaction and never commits. The async store runs verbs through
`run_sync` in a shared transaction; the sync twin runs the same functions on its own connection, and
a caller's own transaction can hold them too. So each statement stands once.
"""
