"""The client under test, and the mark it is given."""

from __future__ import annotations

from typing import Any

from orchestrator.recoup.client import RecoupClient

KEY = "recoup_sk_0123456789abcdef"


class Mark:
    """Counts its calls; answers, or raises, what a test wants."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer = True
        self.error: Exception | None = None

    async def __call__(self) -> bool:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.answer


def recoup(url: str, **changes: Any) -> RecoupClient:
    """Return a client of `url` with short timeouts, and with `changes` to its arguments."""
    arguments: dict[str, Any] = {
        "base_url": url,
        "key": lambda: KEY,
        "submit_timeout": 5.0,
        "generate_timeout": 5.0,
        "call_timeout": 5.0,
        "stream_idle_timeout": 5.0,
        "max_calls": 20,
        "max_streams": 20,
    }
    return RecoupClient(**(arguments | changes))
