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


YOUNG_S = 3.0
"""Beyond this age a wait is half of what the run is older, so that at 5 s it is still a second."""

STEADY_S = 6.0
"""The wait that a run soon grows into, and keeps until a fiftieth of its age is more."""

OLD_SHARE = 1 / 50
"""The share of an old run's age that it is left alone for: what its end may be known late by."""


def pause(age: float) -> float:
    """The wait before a run of this age is asked about again, in seconds.

    A fiftieth of the age from the start on would tell every end within 2 % of the run, but asks
    about a run of five minutes more than twice as often as every 5 s does. So the wait rises
    quickly to `STEADY_S`, which is that fiftieth of five minutes, and a run that lasts between
    `YOUNG_S` and five minutes may be known later than that.
    """
    return min(max(0.0, (age - YOUNG_S) / 2), max(STEADY_S, age * OLD_SHARE))


class Growing(wait_base):
    """Waits that grow with the age of what is asked about, as `pause` says, between two bounds.

    `age` gives seconds; `bounds` the least and the most, in seconds. The jitter is small and only
    shortens: a wait starts when the answer came, which keeps many runs apart by itself.
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
        wait = min(max(pause(self._age()), least), most) * (0.95 + 0.05 * self._rand())
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

    try:
        return cast("T", await retrying(again))
    finally:
        # Its list of what to do next names itself, and with it all that the acts hold.
        retrying.iter_state.reset()


def retry_after_of(retry_state: RetryCallState) -> float | None:
    """The `Retry-After` of the last answer, in seconds, if it had one."""
    outcome = retry_state.outcome
    if outcome is None or outcome.failed:
        return None
    answer: Any = outcome.result()
    found = getattr(answer, "retry_after", None)
    return float(found) if isinstance(found, int | float) else None
