"""The threads that wait for the database, so that the event loop never does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from orchestrator.store.ended import Ended

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
        ended: Ended[T] = Ended()
        act = partial(_run_into, ended, partial(call, *args, **kwargs))
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(act, limiter=self._limiter)
        return ended.result_or_raise()


def _run_into(ended: Ended[T], call: Callable[[], T]) -> None:
    """Run a call, in a thread. Its error must not come by the thread's future: see `Ended`."""
    try:
        ended.result = call()
    except Exception as error:  # noqa: BLE001 - who waits for the call raises it
        ended.error = error
