"""What every act of a worker needs, made once and handed in."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy import Connection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never

from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.decide import Policy
from orchestrator.errors import StoreUnavailable
from orchestrator.recoup.client import RecoupClient
from orchestrator.states import OnInDoubt
from orchestrator.store.store import Store
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.worker.points import Act, Reach, pass_by, passing
from orchestrator.worker.waits import Backoff, Random

T = TypeVar("T")

_NOWHERE = nullcontext()
"""The block of a worker that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The collaborators of a worker's acts. `who` is this worker, its API origin and key.

    `reach` is told of each point that an act passes.
    """

    store: Store
    client: RecoupClient
    settings: Settings
    clock: Clock
    who: Claimant
    log: structlog.typing.FilteringBoundLogger
    rand: Random = field(default=random.random)
    reach: Reach = field(default=pass_by)

    @property
    def policy(self) -> Policy:
        """The configuration's word on doubt and on good ends."""
        return Policy(
            OnInDoubt(self.settings.submit.on_in_doubt),
            accept_finish=frozenset(self.settings.collect.accept_finish),
        )

    @property
    def submit_wait(self) -> Backoff:
        """The wait of a submission that was put back, kept in `available_at`."""
        return Backoff(first=2.0, most=300.0, rand=self.rand)

    def passing(self, act: Act) -> AbstractContextManager[None]:
        """The block in which an act happens: its two points are passed."""
        return _NOWHERE if self.reach is pass_by else passing(self.reach, act)

    async def write(
        self, act: Act, verb: Callable[[Connection], T], *, job_id: int = 0, urgent: bool = False
    ) -> T:
        """Write once; see `Store.write`."""
        with self.passing(act):
            return await self.store.write(verb, order=job_id, urgent=urgent)

    async def write_alone(self, act: Act, verb: Callable[[Connection], T]) -> T:
        """Write what touches many rows, once; see `Store.write_alone`."""
        with self.passing(act):
            return await self.store.write_alone(verb)

    async def commit(
        self, act: Act, verb: Callable[[Connection], T], *, job_id: int, urgent: bool = False
    ) -> T:
        """Write, and try again for as long as this process lives while the database is away.

        Raises what the verb raises, LeaseLost above all. Each wait is at most 5 seconds, and a
        cancelled caller is let go between two tries unless it is shielded.
        """
        write = partial(self.write, act, verb, job_id=job_id, urgent=urgent)
        return await self._until_it_is_there(write, job_id)

    async def read(self, verb: Callable[[Connection], T], *, job_id: int) -> T:
        """Read, and try again for as long as the database is away; cancellable in between."""
        return await self._until_it_is_there(partial(self.store.read, verb), job_id)

    async def _until_it_is_there(self, call: Callable[[], Awaitable[T]], job_id: int) -> T:
        """Call, and where the database is away, again and again; the first failure counts."""
        try:
            return await call()
        except StoreUnavailable as error:
            failures = [error]

        async def again() -> T:
            if failures:
                raise failures.pop()
            return await call()

        return await self._while_the_database_is_away(job_id)(again)

    def _while_the_database_is_away(self, job_id: int) -> AsyncRetrying:
        def say(retry_state: RetryCallState) -> None:
            error = retry_state.outcome.exception() if retry_state.outcome else None
            self.log.warning(
                "store.awaited",
                job_id=job_id,
                tries=retry_state.attempt_number,
                error=str(error),
            )

        return AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=Backoff(first=0.2, most=5.0, rand=self.rand),
            stop=stop_never,
            sleep=self.clock.sleep,
            before_sleep=say,
            reraise=True,
        )
