"""The threads that wait for the database, so that the event loop never does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, ParamSpec, TypeVar

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
        ended: _Ended[T] = _Ended()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(
                partial(ended.by, call, *args, **kwargs), limiter=self._limiter
            )
        return ended.result()


class _Ended(Generic[T]):
    """How a call in a thread ended.

    An error that came by way of the thread's future would know the frame that knows the future:
    only the collector of cycles could free them, and all that the frames above them hold.
    """

    def __init__(self) -> None:
        self._result: T | None = None
        self._error: Exception | None = None

    def by(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run the call, in the thread."""
        try:
            self._result = call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - who waits for the call raises it
            self._error = error

    def result(self) -> T:
        """Return what the call returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is None:
            return self._result  # type: ignore[return-value] # None only where the call gave None
        try:
            raise error
        finally:
            del error
