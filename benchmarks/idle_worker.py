"""The command `orchestrator` with a count of what it asks: `python -m benchmarks.idle_worker ...`.

At its end it prints one JSON line: when each statement and each transaction began, in seconds of
the machine's monotonic clock, which another process reads too.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sqlalchemy import Engine, event

from orchestrator.cli import main

_statements: list[float] = []
_transactions: list[float] = []


def _statement(*_of_the_event: Any) -> None:
    _statements.append(time.monotonic())


def _transaction(_connection: Any) -> None:
    _transactions.append(time.monotonic())


if __name__ == "__main__":
    event.listen(Engine, "before_cursor_execute", _statement)
    event.listen(Engine, "begin", _transaction)
    try:
        code = main()
    finally:
        print(json.dumps({"statements": _statements, "transactions": _transactions}), flush=True)
    sys.exit(code)
