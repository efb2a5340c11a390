"""Collect: read the finished message until it is there, or known not to be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from tenacity import AsyncRetrying, RetryCallState, retry_if_result
from tenacity.stop import stop_base

from orchestrator.harvest import Folded, Harvest, harvest, is_earlier, ours
from orchestrator.job import Job
from orchestrator.recoup.answers import RunStatus, SessionChat, Trouble, TroubleKind
from orchestrator.verdict import End
from orchestrator.worker.gate import Gatekeeper
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff, after_first

ASKS = 5
ASKS_OVER_S = 20.0
"""An empty chat may only be a fault of the server's database: it is asked this often, over this
time, before its emptiness is believed."""

PATIENCE_S = 1800.0
"""How long the server may say that a completed run's chat is not there before that is believed."""

API_PATIENCE_S = 24 * 3600.0
"""How long collecting waits for an API that is out of reach, or refuses the key: a day."""

_ABOUT_THE_CHAT = frozenset(
    {
        TroubleKind.NOT_FOUND,
        TroubleKind.FORBIDDEN,
        TroubleKind.REFUSED,
        TroubleKind.UNREADABLE,
    }
)
"""Troubles of this one chat; the others are the API's, and no job fails for those."""

_SPREAD = (1.0, 3.0, 6.0, 10.0)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One look at the chat. `good` ends the asking."""

    chat: SessionChat | None
    trouble: Trouble | None
    good: bool
    retry_after: float | None = None


async def _nothing() -> None:
    """Do nothing while the answer is awaited."""


class Collector:
    """Reads the messages of runs that are over."""

    def __init__(self, *, tools: Tools, gate: Gatekeeper) -> None:
        self._tools = tools
        self._gate = gate

    async def collect(
        self,
        job: Job,
        end: End,
        folded: Folded,
        *,
        meanwhile: Callable[[], Awaitable[None]] = _nothing,
    ) -> Harvest:
        """Read the run's chat until it holds what it should, and keep the best account.

        Bounded: an empty chat is asked 5 times over 20 s; a completed run's chat that the server
        does not give, for half an hour; an API that is out of reach, for a day. A fold that
        saw the whole turn stands in after 5 tries. Never raises for what the server does.
        `meanwhile` is called once if the first look does not do.
        """
        if job.session_id is None or job.chat_id is None:
            # A chat is found by the run that it points at; now that the run is over it never is.
            trouble = Trouble(TroubleKind.NOT_FOUND, "the run's chat is not known")
            return harvest(None, trouble, folded)
        enough = _Enough(
            end=end, folded=folded, now=self._tools.clock.boottime, api_patience_s=API_PATIENCE_S
        )
        asking = partial(self._ask, job.session_id, job.chat_id, folded)
        first = await asking()
        if first.good:
            return harvest(first.chat, first.trouble, folded)
        self._tools.log.info("collect.waits", job_id=job.id, reason=_why(first))
        await meanwhile()
        ask = await after_first(first, self._retrying(enough), asking)
        return harvest(ask.chat, ask.trouble, folded)

    def _retrying(self, enough: stop_base) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_result(lambda ask: not ask.good),
            wait=self._wait,
            stop=enough,
            sleep=self._tools.clock.sleep,
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )

    async def _ask(self, session_id: str, chat_id: str, folded: Folded) -> _Ask:
        with self._tools.passing(Act.COLLECT):
            answer = await self._tools.client.session_chat(session_id, chat_id)
        if isinstance(answer, Trouble):
            if answer.kind is TroubleKind.UNAUTHORIZED:
                await self._gate.heard_401_in_passing()
            return _Ask(None, answer, good=False, retry_after=answer.retry_after)
        stored = ours(answer.messages, folded.message_id)
        good = stored is not None and not is_earlier(stored, folded)
        return _Ask(answer, None, good)

    def _wait(self, retry_state: RetryCallState) -> float:
        ask: _Ask | None = retry_state.outcome.result() if retry_state.outcome else None
        number = retry_state.attempt_number
        if ask is not None and ask.trouble is None:
            return _SPREAD[min(number, len(_SPREAD)) - 1]
        backoff = Backoff(first=1.0, most=30.0, rand=self._tools.rand)
        return backoff.seconds(number, ask.retry_after if ask else None)


def _why(first: _Ask) -> str:
    if first.trouble is not None:
        return first.trouble.error
    return "the chat does not hold the whole message (yet)"


class _Enough(stop_base):
    """When to believe what the chat shows, or that it shows nothing."""

    def __init__(
        self, *, end: End, folded: Folded, now: Callable[[], float], api_patience_s: float
    ) -> None:
        self._now = now
        self._since = now()
        self._looks = 0
        self._chat_patience_s = PATIENCE_S if end.status is RunStatus.COMPLETED else 0.0
        self._api_patience_s = api_patience_s
        self._whole = folded.whole

    def __call__(self, retry_state: RetryCallState) -> bool:
        ask: _Ask | None = retry_state.outcome.result() if retry_state.outcome else None
        if ask is None or ask.trouble is None:
            self._looks += 1
            return self._looks >= ASKS
        if retry_state.attempt_number < ASKS:
            return False
        about_chat = ask.trouble.kind in _ABOUT_THE_CHAT
        patience = self._chat_patience_s if about_chat else self._api_patience_s
        return self._whole or self._now() - self._since >= patience
