"""The installed command, on a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("orchestrator"))
MOST_S = 60.0


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
            if not name.startswith(("ORCHESTRATOR_", "RECOUP_"))
        } | {"TERM": "xterm-256color", "PYTHONUTF8": "1"}

    def __call__(self, *args: str, stdin: str | bytes = b"", code: int | None = 0) -> Done:
        """Run `orchestrator` on pipes; `code` is the exit code that must come, None for any."""
        done = subprocess.run(
            [COMMAND, *args],
            cwd=self.folder,
            env=self.env,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=MOST_S,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert code is None or done.returncode == code, (done.returncode, out, err)
        return Done(done.returncode, out, err)

    def on_terminal(
        self, *args: str, keys: str = "", code: int | None = 0, columns: int = 80
    ) -> Done:
        """Run it on a pseudo-terminal; `out` is everything that the terminal would get."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
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
            got = _read_all(master)
            ended = process.wait(MOST_S)
        finally:
            process.kill()
            os.close(master)
        out = got.decode()
        assert code is None or ended == code, (ended, out)
        return Done(ended, out)

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Run a statement on the folder's own database."""
        with contextlib.closing(sqlite3.connect(self.folder / "orchestrator.db")) as database:
            rows = database.execute(statement, values).fetchall()
            database.commit()
        return rows


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
