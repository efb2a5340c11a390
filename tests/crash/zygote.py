"""A process that has everything imported, and forks a worker for each line that it reads.

A line is JSON: `environ`, `log` (a file), `once`, `die` and `mischief`. A worker that passes a
point for the n-th time dies there (`die`: side, act, n, and "KILL" or "STOP"), or meets harm there
first (`mischief`: side, act, and SQL to run, "raise" or "away"). The pid of each is answered as a
line. A line with a `pid` alone asks for the exit code of a worker that has ended.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
from sqlalchemy import text

from orchestrator.config import load_settings
from orchestrator.errors import StoreUnavailable
from orchestrator.log import configure
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.sqlite import WRITE
from orchestrator.worker import collect, gate
from orchestrator.worker.daemon import Run, run_daemon
from orchestrator.worker.points import Point, Reach

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl(2)."""

_IMPORTED_LATE = (
    "anyio._backends._asyncio",
    "asyncinotify",
    "httpcore",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
)
"""What a worker imports when it first needs it: a third of the time of a short life."""

_codes: dict[int, int] = {}


def reaching(request: dict[str, Any], url: str) -> Reach:
    """What a worker does at the points of a request."""
    passed = 0
    harmed = False

    def reach(point: Point) -> None:
        nonlocal passed, harmed
        harm = request.get("mischief")
        if harm and not harmed and [point.side, point.act] == harm[:2]:
            harmed = True
            do_harm(harm[2], url)
        end = request.get("die")
        if end and [point.side, point.act] == end[:2]:
            passed += 1
            if passed == end[2]:
                os.kill(os.getpid(), getattr(signal, f"SIG{end[3]}"))

    return reach


def do_harm(what: str, url: str) -> None:
    """Raise what a fault of this program raises, or an absent database; or run SQL."""
    if what == "raise":
        raise RuntimeError("a fault of this program")
    if what == "away":
        raise StoreUnavailable("the database is away")
    engine = sync_engine(parse_url(url))
    with engine.execution_options(**{WRITE: True}).begin() as connection:
        connection.execute(text(what))


def live(request: dict[str, Any]) -> None:
    """Be a worker; never returns. It ends with the zygote, whatever that dies of."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(request["environ"])
    code = 70
    try:
        settings = load_settings(environ=os.environ)
        configure(settings.log.level, settings.log.format)
        act = partial(
            run_daemon,
            settings,
            Run(once=request["once"]),
            environ=os.environ,
            reach=reaching(request, settings.database.url),
        )
        code = anyio.run(act)
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap(_number: int, _frame: object) -> None:
    """Wait for the dead: none stays a zombie, and the time that they took counts as ours."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])


def warm() -> None:
    """Prepare what each worker would do again for itself."""
    for name in _IMPORTED_LATE:
        with suppress(ImportError):  # a driver that is not installed
            importlib.import_module(name)
    gate.LOOK_AGAIN_S = 0.2
    gate.PROBE_FIRST_S, gate.PROBE_MOST_S = 0.05, 0.4
    gate.PAYMENT_FIRST_S, gate.PAYMENT_MOST_S = 0.3, 0.6
    collect._SPREAD = (0.02, 0.02, 0.05, 0.05)
    gc.collect()
    gc.freeze()  # a collection in a worker does not touch, and so copy, the pages of all this


def main() -> None:
    signal.signal(signal.SIGCHLD, reap)
    warm()
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            answer = _codes.get(request["pid"])
        else:
            answer = os.fork()
            if answer == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                live(request)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
