"""How long to wait before asking again: tenacity's wait objects, jittered and bounded."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_base

T = TypeVar("T")

LONGEST_RETRY_AFTER_S = 3600.0
"""A server's wish to be left alone is honoured up to an hour: every wait is bounded."""

Random = Callable[[], float]
"""A number from 0 to 1, like `random.random`."""


class Backoff(wait_base):
    """Exponential waits with jitter: the n-th lies between half and all of `first * 2**(n-1)`.

    `first` and `most` are seconds. A `Retry-After` that came with the answer is a lower bound.
    """

    def __init__(self, *, first: float, most: float, rand: Random = random.random) -> None:
        self._first = first
        self._most = most
        self._rand = rand

    def seconds(self, attempt: int, retry_after: float | None = None) -> float:
        """The wait after the `attempt`-th try (from 1 on), in seconds."""
        exponent = min(max(attempt, 1) - 1, 60)
        full = min(self._most, self._first * 2.0**exponent)
        wait = full * (0.5 + 0.5 * self._rand())
        return wait if retry_after is None else max(wait, min(retry_after, LONGEST_RETRY_AFTER_S))

    def __call__(self, retry_state: RetryCallState) -> float:
        """See `tenacity.wait.wait_base`."""
        return self.seconds(retry_state.attempt_number, retry_after_of(retry_state))


class Growing(wait_base):
    """Waits that grow with the age of what is asked about: a tenth of it, between two bounds.

    That is an exponential back-off in time: a run of minutes is asked about every few seconds,
    one of hours every `most`. `age` gives seconds; `bounds` the least and the most, in seconds.
    """

    def __init__(
        self,
        *,
        age: Callable[[], float],
        bounds: Callable[[], tuple[float, float]],
        rand: Random = random.random,
    ) -> None:
        self._age = age
        self._bounds = bounds
        self._rand = rand

    def __call__(self, retry_state: RetryCallState) -> float:
        """See `tenacity.wait.wait_base`."""
        least, most = self._bounds()
        wait = min(max(self._age() / 10, least), most) * (0.75 + 0.5 * self._rand())
        asked = retry_after_of(retry_state)
        return wait if asked is None else max(wait, min(asked, LONGEST_RETRY_AFTER_S))


async def retried(
    retrying: Callable[[], AsyncRetrying],
    act: Callable[[], Awaitable[T]],
    *,
    over: Callable[[T], bool],
) -> T:
    """Act, and go on as tenacity says while the result is not `over`.

    Most acts are over at once, and to set a retry up costs more than they do.
    """
    first = await act()
    return first if over(first) else await after_first(first, retrying(), act)


async def after_first(first: T, retrying: AsyncRetrying, act: Callable[[], Awaitable[T]]) -> T:
    """Go on with acts as tenacity says; what the first one gave counts as its first attempt."""
    results = [first]

    async def again() -> T:
        return results.pop() if results else await act()

    return cast("T", await retrying(again))


def retry_after_of(retry_state: RetryCallState) -> float | None:
    """The `Retry-After` of the last answer, in seconds, if it had one."""
    outcome = retry_state.outcome
    if outcome is None or outcome.failed:
        return None
    answer: Any = outcome.result()
    found = getattr(answer, "retry_after", None)
    return float(found) if isinstance(found, int | float) else None
