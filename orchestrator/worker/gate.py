"""The gate: what stops submissions when the API itself is at fault, and finds out when it is not.

Its row is shared by all workers of one origin and key; one of them probes at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from orchestrator.errors import StoreUnavailable
from orchestrator.outcome import Signal
from orchestrator.recoup.answers import Trouble, TroubleKind
from orchestrator.store.verbs import gate as verbs
from orchestrator.store.verbs.gate import Gate, Reason
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

AMBIGUOUS_IN_A_ROW = 3
UNREACHED_IN_A_ROW = 5
TRIAL_S = 30.0
"""After this long without an answer, another trial goes out beside one: the synchronous endpoint
answers after minutes."""

LOOK_AGAIN_S = 3.0
"""A first 401 may be a fault of the server's database; the second look comes after this."""

PROBE_FIRST_S, PROBE_MOST_S = 1.0, 60.0
PAYMENT_FIRST_S, PAYMENT_MOST_S = 60.0, 600.0

_REASONS = {
    TroubleKind.UNAUTHORIZED: Reason.UNAUTHORIZED,
    TroubleKind.FOREIGN: Reason.WRONG_HOST,
}

_ENOUGH = {Signal.AMBIGUOUS: AMBIGUOUS_IN_A_ROW, Signal.UNREACHED: UNREACHED_IN_A_ROW}
Canary = Callable[[], Awaitable[Signal | None]]
"""Submits one job past the closed gate; None if there was none to submit."""

Room = Callable[[], bool]
"""Tells whether a canary could be sent now."""


class Gatekeeper:
    """Listens to answers, closes the gate, and tends it while it is closed."""

    def __init__(self, *, tools: Tools) -> None:
        self._tools = tools
        self._in_a_row = Counter[Signal]()
        self.shut = True
        """Whether the gate was shut when it was last seen; until then an accepted run opens it."""
        self.cautious_since: float | None = None
        """When an answer was lost or a connection failed, in boot time, until a run is accepted.

        Meanwhile one trial at a time goes out, beside what was on its way before: an outage that
        begins must not put more jobs in doubt than those."""
        self._trouble_at = 0.0
        """When trouble was last heard of: what was sent before proves nothing."""
        self._generation: int | None = None
        """Which closing or opening of the gate was last seen: another is not ours to undo."""
        self._probe_wait = Backoff(first=PROBE_FIRST_S, most=PROBE_MOST_S, rand=tools.rand)
        self._payment_wait = Backoff(first=PAYMENT_FIRST_S, most=PAYMENT_MOST_S, rand=tools.rand)

    async def read(self) -> Gate:
        """Return the gate as it stands. Raises StoreUnavailable."""
        return await self._tools.store.read(verbs.read, self._tools.who)

    def allows(self, wanted: int, begun: Iterable[float]) -> int:
        """How many of `wanted` submissions may begin, beside those that began at `begun`."""
        since = self.cautious_since
        if since is None:
            return wanted
        young = self._tools.clock.boottime() - TRIAL_S
        trials = sum(at >= since and at > young for at in begun)
        return max(0, min(wanted, 1 - trials))

    def saw_it_shut(self) -> None:
        """Take note that the gate is shut, by whomever."""
        if not self.shut:
            self._trouble_at = self._tools.clock.boottime()
        self.shut = True

    async def heard(self, signal: Signal, detail: str | None, *, began: float) -> None:
        """Take what an answer says about the API as a whole; `detail` is its sentence.

        `began` is when its request was about to be sent, in boot time. A run that was accepted
        then says nothing of trouble that came up since.
        """
        words = detail or "the API gave no reason"
        match signal:
            case Signal.ACCEPTED:
                if began < self._trouble_at:
                    return
                self._in_a_row.clear()
                self.cautious_since = None
                if self.shut:
                    await self._open("a run was accepted")
            case Signal.UNAUTHORIZED:
                await self._suspect()
            case Signal.PAYMENT_REQUIRED:
                await self._close(Reason.PAYMENT_REQUIRED, words, self._payment_wait.seconds(1))
            case Signal.WRONG_HOST:
                await self._close(Reason.WRONG_HOST, words, self._probe_wait.seconds(3))
            case Signal.AMBIGUOUS | Signal.UNREACHED:
                await self._count(signal, words)
            case Signal.REFUSED | Signal.NEUTRAL:
                return

    async def heard_401_in_passing(self) -> None:
        """Take a 401 of a call that follows a run; following goes on whatever the gate does."""
        try:
            await self._suspect()
        except StoreUnavailable as error:
            # The next 401 says the same.
            self._tools.log.warning("gate.unwritten", error=str(error))

    async def tend(self, canary: Canary, room: Room, *, at_start: bool = False) -> None:
        """Probe a closed gate if a probe is due, nobody else is at it, and `room` allows it.

        `at_start` probes at once: a worker is often restarted because something was mended.
        """
        gate = await self.read()
        self._generation = gate.generation
        if gate.open:
            if self.shut:
                self._in_a_row.clear()
            self.shut = False
            return
        self.saw_it_shut()
        if gate.reason is Reason.OPERATOR or not room():
            return
        for_s = self._tools.settings.submit.timeout + 60.0
        if not await self._write(partial(verbs.begin_probe, for_s=for_s, now=at_start)):
            return
        if gate.reason is Reason.PAYMENT_REQUIRED:
            await self._try_canary(gate, canary, self._payment_wait, opens_without=False)
            return
        with self._tools.passing(Act.PROBE):
            trouble = await self._tools.client.check_key()
        if trouble is None and gate.reason in (None, Reason.UNAUTHORIZED):
            await self._open("the key is accepted")
        elif trouble is None:
            await self._try_canary(gate, canary, self._probe_wait, opens_without=True)
        else:
            await self._still_shut(gate, trouble)

    async def _still_shut(self, gate: Gate, trouble: Trouble) -> None:
        wait_s = self._probe_wait.seconds(gate.probes + 1, trouble.retry_after)
        if gate.reason is None:
            # The second look settles what the first 401 was.
            reason = _REASONS.get(trouble.kind, Reason.OUTAGE)
            await self._close(reason, _words(gate, trouble), wait_s)
            return
        await self._end_probe(gate, wait_s, _words(gate, trouble))

    async def _try_canary(
        self, gate: Gate, canary: Canary, wait: Backoff, *, opens_without: bool
    ) -> None:
        signal = await canary()
        if signal is Signal.ACCEPTED:
            if self.shut:  # trouble of before was heard of meanwhile; the canary flew after it
                await self._open("a run was accepted")
            return
        if opens_without and signal in (None, Signal.REFUSED):
            # There was no job to try, or the API refused it in its own words.
            await self._open("the API answers")
            return
        wait_s = wait.seconds(gate.probes + 1)
        if signal is Signal.AMBIGUOUS:
            # Each lost canary is a job in doubt: they must stay few, however long it lasts.
            wait_s = max(wait_s, self._payment_wait.seconds(gate.probes + 1))
        await self._end_probe(gate, wait_s, None)

    async def _end_probe(self, gate: Gate, wait_s: float, detail: str | None) -> None:
        self._tools.log.warning(
            "gate.still_closed",
            reason=gate.reason.value if gate.reason else "suspected",
            detail=detail or gate.detail,
            next_probe_s=round(wait_s, 1),
        )
        await self._write(partial(verbs.end_probe, next_s=wait_s, detail=detail))

    async def _suspect(self) -> None:
        self.saw_it_shut()
        await self._write(partial(verbs.suspect, look_again_s=LOOK_AGAIN_S))

    async def _close(self, reason: Reason, detail: str, probe_s: float) -> None:
        self._trouble_at = self._tools.clock.boottime()
        self.shut = True
        if await self._write(partial(verbs.close, reason=reason, detail=detail, probe_s=probe_s)):
            self._tools.log.error("gate.closed", reason=reason.value, detail=detail)

    async def _count(self, signal: Signal, words: str) -> None:
        """Be cautious from the first of a kind on, and close the gate when its row is full."""
        self._in_a_row[signal] += 1
        self._trouble_at = self._tools.clock.boottime()
        if self.cautious_since is None:
            self.cautious_since = self._trouble_at
        if self._in_a_row[signal] >= _ENOUGH[signal]:
            await self._close(Reason.OUTAGE, words, self._probe_wait.seconds(3))

    async def _open(self, why: str) -> None:
        """Open the gate; the caution goes on until a run is accepted."""
        self._in_a_row.clear()
        self.shut = False
        if await self._write(partial(verbs.open_gate, seen=self._generation)):
            self._tools.log.info("gate.opened", why=why)

    async def _write(self, verb: Callable[..., bool | None]) -> bool:
        result = await self._tools.write(Act.GATE, partial(verb, who=self._tools.who))
        return bool(result)


def _words(gate: Gate, trouble: Trouble) -> str:
    """What a probe met, with the origin: a page of some proxy does not say where it came from."""
    status = f"HTTP {trouble.status}: " if trouble.status is not None else ""
    return f"{gate.api_origin}: {status}{trouble.error}"
