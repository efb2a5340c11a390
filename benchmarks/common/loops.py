"""Which event loop a benchmark runs on."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")

LOOPS = ("auto", "asyncio", "uvloop")


def add_loop(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    """Add the option `--loop`."""
    parser.add_argument(
        "--loop", choices=LOOPS, default=default, help="auto: uvloop where it is installed"
    )


def resolved(loop: str) -> str:
    """The loop that `loop` stands for here."""
    if loop != "auto":
        return loop
    return "asyncio" if find_spec("uvloop") is None else "uvloop"


def run(main: Coroutine[Any, Any, T], loop: str) -> T:
    """Run `main` on the loop named `loop`."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if resolved(loop) == "uvloop":
        factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
