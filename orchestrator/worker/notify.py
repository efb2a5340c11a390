"""The systemd notification protocol: datagrams that say how the daemon does."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import structlog

from orchestrator.printable import printable

_log = structlog.get_logger(__name__)


class Notifier:
    """Tells systemd that the daemon is ready, alive, or about to stop.

    Without `NOTIFY_SOCKET` in the environment every method does nothing. None of them blocks or
    raises: a supervisor that cannot be reached is no reason to stop the work, so a datagram that
    could not be sent is logged at debug level and forgotten.

    Args:
        environ: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are read, once.
        pid: the process that a watchdog must be meant for; by default this one.
    """

    def __init__(self, environ: Mapping[str, str], *, pid: int | None = None) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval = _watchdog_interval(environ, os.getpid() if pid is None else pid)
        """Seconds between two calls of `watchdog` (half of the limit), or None without one."""

    def ready(self) -> None:
        """Say that start-up is over and the daemon works."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`; control characters in it are made visible."""
        self._send(f"STATUS={printable(text)}")

    def stopping(self) -> None:
        """Say that shutting down has begun."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Say that the daemon is alive; call it from the loop whose death must be noticed."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)  # a full queue must not hold up the event loop
                sender.sendto(message.encode("utf-8", "backslashreplace"), self._address)
        except OSError as error:
            _log.debug("systemd.notify_failed", error=str(error), notification=message)


def _address(named: str) -> str | None:
    """Bring the variable into the form that `sendto` takes; `@` means the abstract namespace."""
    if named.startswith("@"):
        return "\0" + named[1:]
    if named.startswith("/"):
        return named
    if named:
        _log.debug("systemd.socket_unsupported", address=named)
    return None


def _watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Half of `WATCHDOG_USEC` in seconds, when it is positive and meant for this process."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    micros = environ.get("WATCHDOG_USEC", "")
    if not (micros.isascii() and micros.isdigit()) or int(micros) == 0:
        return None
    return int(micros) / 2_000_000
