"""The time and the chance that the server lives by; a simulation passes in its own."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Clocks in seconds, and random bits; by default the machine's own.

    `now` counts from 1970, `monotonic` on a scale of its own; `bits` gives so many random bits.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    bits: Callable[[int], int] = secrets.randbits

    def uuid(self) -> str:
        """Make a random UUID."""
        return str(uuid.UUID(int=self.bits(128), version=4))

    def message_id(self) -> str:
        """Make a message's id."""
        return f"msg_{self.bits(64):016x}"

    def run_id(self) -> str:
        """Make a run's id: `wrun_` and a ULID of now."""
        number = (int(self.now() * 1000) << 80) | self.bits(80)
        digits = (_CROCKFORD[(number >> 5 * place) & 31] for place in range(25, -1, -1))
        return "wrun_" + "".join(digits)
