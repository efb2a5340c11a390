"""The command line: in this process, which is fast, or as the installed command.

In this process it runs on real streams of its own (files in memory, or a pseudo-terminal), in a
folder and with an environment of its own; afterwards everything is as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import select
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO
from unittest import mock

import structlog

from orchestrator.cli import main

COMMAND = str(Path(sys.executable).with_name("orchestrator"))
MOST_S = 60.0
ROWS = 50

_OF_THE_TERMINAL = frozenset({"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"})
"""What the terminal of the test run may have set; a command under test must not see it."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. `out` and `err` keep their bytes' characters as they are."""

    code: int
    out: str
    err: str = ""


class Shell:
    """Runs commands in one folder, with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ORCHESTRATOR_", "RECOUP_")) and name not in _OF_THE_TERMINAL
        } | {"TERM": "xterm-256color", "PYTHONUTF8": "1"}

    # --- in this process ------------------------------------------------------------------------

    def __call__(self, *args: str, stdin: str | bytes = b"", code: int | None = 0) -> Done:
        """Run a command on no terminal; `code` is the exit code that must come, None for any."""
        given = io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin)
        out, err = io.BytesIO(), io.BytesIO()
        # The error handlers are those that Python gives its own streams in UTF-8 mode.
        streams = (
            io.TextIOWrapper(given, "utf-8", "surrogateescape"),
            io.TextIOWrapper(out, "utf-8", "surrogateescape"),
            io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True),
        )
        with self._as_process(*streams, columns=80):
            ended = main(args)
        streams[1].flush()
        done = Done(ended, out.getvalue().decode(), err.getvalue().decode())
        assert code is None or ended == code, done
        return done

    def on_terminal(
        self, *args: str, keys: str = "", code: int | None = 0, columns: int = 80
    ) -> Done:
        """Run it on a pseudo-terminal; `out` is everything that the terminal would get."""
        with _terminal(columns) as (master, slave), ThreadPoolExecutor(1) as aside:
            os.write(master, keys.encode())
            got = aside.submit(_read_all, master)
            with (
                _opened(slave, "r") as stdin,
                _opened(slave, "w") as stdout,
                _opened(slave, "w", "backslashreplace") as stderr,
            ):
                os.close(slave)
                with self._as_process(stdin, stdout, stderr, columns=columns):
                    ended = main(args)
            out = got.result(MOST_S).decode()
        assert code is None or ended == code, (ended, out)
        return Done(ended, out)

    @contextlib.contextmanager
    def _as_process(
        self, stdin: TextIO, stdout: TextIO, stderr: TextIO, *, columns: int
    ) -> Iterator[None]:
        # Without a width in the environment, the terminal of the test run would be measured.
        env = self.env | {"COLUMNS": str(columns), "LINES": str(ROWS)}
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, env, clear=True),
            mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr),
            _log_as_it_was(),
        ):
            yield

    # --- as a process of its own ----------------------------------------------------------------

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start the installed command on pipes."""
        return subprocess.Popen(
            [COMMAND, *args],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def process(self, *args: str, code: int | None = 0) -> Done:
        """Run the installed command on pipes, as `__call__` runs it here."""
        with self.start(*args) as process:
            try:
                out, err = process.communicate(timeout=MOST_S)
            finally:
                process.kill()
        assert code is None or process.returncode == code, (process.returncode, out, err)
        return Done(process.returncode, out.decode(), err.decode())

    def process_on_terminal(
        self, *args: str, keys: str = "", code: int | None = 0, columns: int = 80
    ) -> Done:
        """Run the installed command on a pseudo-terminal, as `on_terminal` runs it here."""
        with _terminal(columns) as (master, slave):
            process = subprocess.Popen(
                [COMMAND, *args],
                cwd=self.folder,
                env=self.env,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
            os.close(slave)
            os.write(master, keys.encode())
            try:
                out = _read_all(master).decode()
                ended = process.wait(MOST_S)
            finally:
                process.kill()
        assert code is None or ended == code, (ended, out)
        return Done(ended, out)

    # --- the database ---------------------------------------------------------------------------

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Run a statement on the folder's own database."""
        with contextlib.closing(sqlite3.connect(self.folder / "orchestrator.db")) as database:
            rows = database.execute(statement, values).fetchall()
            database.commit()
        return rows


@contextlib.contextmanager
def _log_as_it_was() -> Iterator[None]:
    """Take back what a command sets up for the log of its process."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {logger: logger.level for logger in _loggers()}
    configured, config = structlog.is_configured(), structlog.get_config()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger in _loggers():
            logger.setLevel(levels.get(logger, logging.NOTSET))
        structlog.reset_defaults()
        if configured:
            structlog.configure(**config)


def _loggers() -> list[logging.Logger]:
    named = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(one for one in named if isinstance(one, logging.Logger))]


@contextlib.contextmanager
def _terminal(columns: int) -> Iterator[tuple[int, int]]:
    """Open a pseudo-terminal; the caller closes the second of the descriptors."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        yield master, slave
    finally:
        os.close(master)


def _opened(terminal: int, mode: Literal["r", "w"], errors: str = "surrogateescape") -> TextIO:
    """Open a stream of its own on a terminal, line by line as Python opens its own."""
    return open(os.dup(terminal), mode, 1, encoding="utf-8", errors=errors)  # noqa: PTH123 - a descriptor, no path


def _read_all(master: int) -> bytes:
    got = bytearray()
    deadline = time.monotonic() + MOST_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], deadline - time.monotonic())
        if not ready:
            break
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux says EIO when the last writer has gone
            return bytes(got)
        if not piece:
            return bytes(got)
        got += piece
    raise AssertionError(f"the command did not end: {bytes(got)!r}")
