"""What only PostgreSQL needs: the driver's settings, the bounds of a transaction, its errors."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from orchestrator.errors import ConfigError
from orchestrator.store.sqlite import WRITE

CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 60.0
LOCK_TIMEOUT_S = 30.0

ISOLATION = "READ COMMITTED"
"""What every transaction of ours asks for, whatever the role's default: who waited for a row's
lock goes by what the other left."""

ENCODING = "UTF8"
"""The one encoding of a database that holds whatever a model says."""

_CONNECTION = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "client_encoding": ENCODING,
    "application_name": "orchestrator",
    # A server that vanished without a word is noticed within half a minute.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_BOUNDS = {
    "statement_timeout": f"'{STATEMENT_TIMEOUT_S * 1000:.0f}'",
    "lock_timeout": f"'{LOCK_TIMEOUT_S * 1000:.0f}'",
    "idle_in_transaction_session_timeout": f"'{STATEMENT_TIMEOUT_S * 1000:.0f}'",
    "jit": "'off'",
    "DateStyle": "'ISO'",
    "extra_float_digits": "'1'",
}
_WRITING = {
    "synchronous_commit": "CASE current_setting('synchronous_commit') "
    "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END",
    # By the index in any case: what is prepared while a table is small is kept when it has grown.
    "enable_seqscan": "'off'",
}


def _setting(values: dict[str, str], *, transaction: bool) -> str:
    """The statement that sets these, for the transaction or for the session."""
    local = "true" if transaction else "false"
    calls = (f"set_config('{name}', {value}, {local})" for name, value in values.items())
    return f"SELECT {', '.join(calls)}"


_FOR_READING = _setting(_BOUNDS, transaction=True)
_FOR_WRITING = _setting({**_BOUNDS, **_WRITING}, transaction=True)
_FOR_GOOD = _setting({**_BOUNDS, **_WRITING}, transaction=False)


def connect_args(url: URL, *, prepared: bool = False) -> dict[str, Any]:
    """The driver's arguments; what the URL itself says of them stands.

    Without `prepared` no statement is prepared on the server: behind a transaction pooler, the
    next transaction may have another connection, which does not know it.
    """
    own = {name: value for name, value in _CONNECTION.items() if name not in url.query}
    return own if prepared else {**own, "prepare_threshold": None}


def require_driver() -> None:
    """Raise ConfigError where psycopg is not installed."""
    try:
        import psycopg  # noqa: F401 - only who uses PostgreSQL has it
    except ImportError as error:
        raise ConfigError(
            f"database.url: PostgreSQL needs a driver that cannot be loaded ({error}); "
            "install the extra: pip install 'recoup-orchestrator[postgres]'"
        ) from None


def prepare(engine: Engine, *, own_session: bool = False) -> None:
    """Bound each transaction of `engine`, and make each that writes durable.

    `engine` is a sync engine, or the sync side of an async one. Everything is set for the
    transaction only, so that a connection shared through a pooler keeps nothing of it; where the
    connection is our own (`own_session`), once for all its transactions.
    """
    if own_session:

        @event.listens_for(engine, "connect")
        def on_connect(dbapi_connection: Any, _record: Any) -> None:
            dbapi_connection.execute(_FOR_GOOD)
            dbapi_connection.commit()

    else:

        @event.listens_for(engine, "begin")
        def on_begin(connection: Connection) -> None:
            writes = connection.get_execution_options().get(WRITE, False)
            connection.exec_driver_sql(_FOR_WRITING if writes else _FOR_READING)

    @event.listens_for(engine, "handle_error")
    def on_error(context: ExceptionContext) -> None:
        # The lines after the first quote the row that was refused: a prompt, or a whole message.
        for error in (context.original_exception, context.sqlalchemy_exception):
            if error is not None and error.args:
                error.args = (str(error.args[0]).partition("\n")[0],)


_PASSING_CLASSES = frozenset({"08", "40", "53", "55", "57", "58"})
_PASSING_STATES = frozenset(
    {
        "25006",  # a server that only reads: a failover is under way
        "25P03",  # idle in a transaction for too long: this process was suspended
    }
)


def is_passing(sqlstate: str) -> bool:
    """True for an error that another try may not meet, by its SQLSTATE.

    The classes are those of the manual's appendix "PostgreSQL Error Codes": connection, rollback,
    resources, object state, operator intervention, system.
    """
    return sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING_STATES
