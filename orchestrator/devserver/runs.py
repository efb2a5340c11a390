"""Durable runs: each plays its plan against the clock, whether anybody looks or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from orchestrator.devserver.faults import Faults, Kind
from orchestrator.devserver.plan import FOREVER, Pace, Plan, plan_early_failure, plan_run
from orchestrator.devserver.script import Script, read_script
from orchestrator.devserver.surroundings import Surroundings
from orchestrator.devserver.wire import Chunk, Json

FINAL: Final = frozenset({"completed", "failed", "cancelled"})
TITLE: Final = "Scheduled generation"
"""The title of every chat that a run made."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a run was started with; with the same order it always makes the same chunks."""

    run_id: str
    chat_id: str
    session_id: str
    message_id: str
    account_id: str
    artist_id: str | None
    model: str
    prompt: str
    acceptable: bool
    """False when the input is one that no model accepts."""
    created_at: float
    """Seconds since 1970."""


@dataclass(slots=True, eq=False)
class Run:
    """A run, its chat and its session: each start makes one of each."""

    order: Order
    script: Script
    plan: Plan
    position: int = 0
    """Beats played."""
    written: int = 0
    """Chunks in the stream."""
    status: str = "running"
    message: Json | None = None
    """The chat's assistant message as stored."""
    in_slot: bool = True
    """The chat points at this run."""
    updated_at: float = 0.0
    """When the message was stored last, in seconds since 1970."""
    due: float = 0.0
    """When the next beat is played, on the loop's clock."""
    ended_at: float | None = None
    """When the status became final, on the loop's clock."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the status is final: it never changes again."""
        return self.status in FINAL

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The durable stream so far."""
        return self.plan.chunks[: self.written]

    def notify(self) -> None:
        """Wake everything that waits for a change of this run."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Shelf(Protocol):
    """Where runs are kept across a restart."""

    def add(self, run: Run) -> None:
        """Keep a new run; it is safe when this returns."""

    def move(self, run: Run) -> None:
        """Keep how far a run has come; no reader has seen more when this returns."""


class Runs:
    """All runs of the server. It uses timers, not tasks: playing a beat never waits."""

    def __init__(
        self, *, shelf: Shelf, faults: Faults, pace: Pace, surroundings: Surroundings
    ) -> None:
        self._shelf = shelf
        self._surroundings = surroundings
        self._faults = faults
        self._pace = pace
        self._by_id: dict[str, Run] = {}
        self._by_chat: dict[str, Run] = {}
        self._by_session: dict[str, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self._by_id.values()))

    def get(self, run_id: str) -> Run | None:
        """Find a run by its id."""
        return self._by_id.get(run_id)

    def of_chat(self, chat_id: str) -> Run | None:
        """Find the run that made a chat."""
        return self._by_chat.get(chat_id)

    def of_session(self, session_id: str) -> Run | None:
        """Find the run that made a session."""
        return self._by_session.get(session_id)

    def start(
        self, *, account_id: str, artist_id: str | None, model: str, prompt: str, acceptable: bool
    ) -> Run:
        """Start a run, with a chat and a session of its own."""
        new = self._surroundings
        order = Order(
            run_id=new.run_id(),
            chat_id=new.uuid(),
            session_id=new.uuid(),
            message_id=new.message_id(),
            account_id=account_id,
            artist_id=artist_id,
            model=model,
            prompt=prompt,
            acceptable=acceptable,
            created_at=new.now(),
        )
        run = self._laid_out(order)
        run.in_slot = not run.script.no_stream
        self._shelf.add(run)
        self._go_on(run)
        return run

    def restore(
        self, order: Order, *, position: int, status: str, in_slot: bool, updated_at: float
    ) -> None:
        """Take up a run that an earlier process kept, at the beat where it stood."""
        run = self._laid_out(order)
        for _ in range(min(position, len(run.plan.beats))):
            self._play(run)
        run.status, run.in_slot, run.updated_at = status, in_slot, updated_at
        if not run.over:
            self._go_on(run)

    def cancel(self, run: Run) -> None:
        """Cancel a run; it ends after its script's `stop_time`, unless it completes before."""
        if run.over:
            return
        if run.script.stop_time:
            loop = asyncio.get_running_loop()
            run.timers.append(loop.call_later(run.script.stop_time, self.settle, run, "cancelled"))
        else:
            self.settle(run, "cancelled")

    def release(self, run: Run) -> None:
        """Play the run's next beat now, whatever its pause: so one that waits for ever goes on."""
        if not run.over:
            run.due = asyncio.get_running_loop().time()
            self._advance(run)

    def settle(self, run: Run, status: str) -> None:
        """End a run from outside, as a crash or a stop does: its own clean-up never runs."""
        if run.over:
            return
        run.status = status
        self._wind_up(run)
        self._shelf.move(run)
        run.notify()

    def leave_slot(self, run: Run) -> None:
        """Make the chat point at no run."""
        if run.in_slot:
            run.in_slot = False
            self._shelf.move(run)

    def close(self) -> None:
        """Stop the clock of all runs; what they have done stays."""
        for run in self:
            _disarm(run)

    # --- playing --------------------------------------------------------------------------

    def _laid_out(self, order: Order) -> Run:
        script = read_script(order.prompt)
        plan = (
            plan_run(script, message_id=order.message_id, model=order.model, pace=self._pace)
            if order.acceptable
            else plan_early_failure(self._pace)
        )
        run = Run(order, script, plan, updated_at=order.created_at)
        self._by_id[order.run_id] = run
        self._by_chat[order.chat_id] = run
        self._by_session[order.session_id] = run
        return run

    def _go_on(self, run: Run) -> None:
        run.due = asyncio.get_running_loop().time() + _pause(run)
        self._advance(run)

    def _advance(self, run: Run) -> None:
        """Play all beats that are due, then set the timer for the next."""
        loop = asyncio.get_running_loop()
        before = run.position
        while not run.over and run.due <= loop.time():
            if self._is_stuck(run):
                run.due = FOREVER
                break
            self._play(run)
            run.due += _pause(run)
        if run.over:
            self._wind_up(run)
        elif run.due < FOREVER:
            run.timers[:] = [timer for timer in run.timers if timer.when() > loop.time()]
            run.timers.append(loop.call_at(run.due, self._advance, run))
        if run.position != before:
            self._shelf.move(run)
            run.notify()

    def _play(self, run: Run) -> None:
        beat = run.plan.beats[run.position]
        run.position += 1
        if beat.chunk is not None:
            run.written += 1
        if beat.message is not None:
            run.message = beat.message
            run.updated_at = self._surroundings.now()
        if beat.status is not None:
            run.status = beat.status
        if beat.leaves_slot:
            run.in_slot = False

    def _is_stuck(self, run: Run) -> bool:
        ends = run.plan.beats[run.position].status in FINAL
        return ends and self._faults.take(Kind.STUCK, prompt=run.order.prompt) is not None

    def _wind_up(self, run: Run) -> None:
        run.ended_at = asyncio.get_running_loop().time()
        _disarm(run)


def _pause(run: Run) -> float:
    beats = run.plan.beats
    return beats[run.position].after if run.position < len(beats) else FOREVER


def _disarm(run: Run) -> None:
    for timer in run.timers:
        timer.cancel()
    run.timers.clear()
