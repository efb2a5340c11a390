"""The clock that waits and leases go by; injected, so that a simulation can own it."""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Seconds that never jump, and a sleep of the same seconds."""

    def boottime(self) -> float:
        """Seconds since some fixed moment, the time that the machine was suspended included."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""
        ...


class SystemClock:
    """The machine's own clock."""

    def boottime(self) -> float:
        """See `Clock`. A plain monotonic clock stands still in suspension, and a lease does not."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        await anyio.sleep(seconds)
