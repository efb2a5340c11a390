"""The threads that wait for the database, so that the event loop never does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
P = ParamSpec("P")


class Threads:
    """Runs blocking calls in at most `most` threads at once.

    A whole transaction is one call: it costs one change of threads, not one a statement, and no
    cancellation can come between its statements.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: CapacityLimiter | None = None

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call in a thread and return its result.

        Shielded: a cancelled caller is let go after the call, never inside it. Whom asyncio itself
        cancels (`asyncio.wait_for`) is let go at once; the call still runs to its end.
        """
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._most)  # belongs to the loop that runs
        with anyio.CancelScope(shield=True):
            result = await to_thread.run_sync(partial(call, *args, **kwargs), limiter=self._limiter)
        return result  # noqa: RET504 - a scope may end a block early, says its type
