from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
import structlog

from orchestrator.worker.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A bound datagram socket, and its address as systemd would write it."""
    named = str(tmp_path / "notify") if request.param == "path" else f"@notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(named.replace("@", "\0", 1) if named[0] == "@" else named)
        receiver.settimeout(5)
        yield named, receiver


def test_each_message_is_one_datagram(systemd: tuple[str, socket.socket]) -> None:
    named, receiver = systemd
    notifier = Notifier({"NOTIFY_SOCKET": named})
    notifier.ready()
    notifier.status("3 live, 5 queued – fine")
    notifier.watchdog()
    notifier.stopping()
    sent = [receiver.recv(4096).decode() for _ in range(4)]
    assert sent == ["READY=1", "STATUS=3 live, 5 queued – fine", "WATCHDOG=1", "STOPPING=1"]


def test_a_status_cannot_smuggle_in_other_messages(systemd: tuple[str, socket.socket]) -> None:
    named, receiver = systemd
    Notifier({"NOTIFY_SOCKET": named}).status("x\nMAINPID=1\ud800")
    assert receiver.recv(4096) == rb"STATUS=x\nMAINPID=1\ud800"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_usable_socket_nothing_is_sent(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    Notifier(environ).ready()


@pytest.mark.parametrize("address", ["/nowhere/at/all", "/" + "x" * 300])
def test_a_failure_is_logged_at_debug_and_not_raised(address: str) -> None:
    with structlog.testing.capture_logs() as logged:
        Notifier({"NOTIFY_SOCKET": address}).ready()
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("systemd.notify_failed", "debug")
    ]


def test_a_full_queue_does_not_block(systemd: tuple[str, socket.socket]) -> None:
    named, receiver = systemd
    notifier = Notifier({"NOTIFY_SOCKET": named})
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
    )
    try:
        for _ in range(5_000):
            notifier.watchdog()
    finally:
        structlog.reset_defaults()
    assert receiver.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_limit(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier(environ, pid=77).watchdog_interval == seconds


def test_the_watchdog_of_this_process_is_ours() -> None:
    environ = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(environ).watchdog_interval == 1.0
