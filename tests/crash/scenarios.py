"""How a worker comes to pass each point, and how the job's row stands there.

The points are those of `orchestrator.worker.points`. Each act has a scenario that passes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.states import State
from orchestrator.worker.points import Act, Point, Side

RESCUE = (
    "UPDATE jobs SET lease = lease + 1, worker_id = NULL, state = 'in_doubt',"
    " error_kind = 'in_doubt', error = 'its worker died' WHERE state = 'submitting'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How a worker comes to pass certain acts. `then` is what happens once a run is live."""

    mode: str = "stream"
    prompt: str = '[text="The answer." delay=0.02 tail=1]'
    """In its tail a run still goes on: whoever is slow passes all points of its stream."""
    faults: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    mischief: tuple[str, str, str] | None = None
    then: str = ""
    end: State = State.COMPLETED
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def refusals(self) -> int:
        """How many POSTs are answered without a run."""
        refusing = ("unauthorized", "payment-required")
        return sum(changes["times"] for preset, changes in self.faults if preset in refusing)


EAGER = {"WORKER__POLL_INTERVAL": "0.2"}
"""For what no event wakes: a back-off that is over, a closed gate, a wish to cancel."""

SCENARIOS: Mapping[str, Scenario] = {
    "stream": Scenario(),
    "stream that lasts": Scenario(prompt='[text="The answer." delay=0.02 tail=4]'),
    "stream on trial": Scenario(mode="auto"),
    "stream that ends long before its run": Scenario(
        prompt='[text="The answer." tail=5]',
        faults=(("cut", {"times": 1, "chunks": 9}),),  # right behind its `finish`
    ),
    "poll": Scenario(mode="poll"),
    "cut": Scenario(
        mode="auto",
        prompt='[text="The answer." split=1 silence=3 tail=2]',
        faults=(("drop", {"times": 1, "after": 0.3}),),
    ),
    "gate": Scenario(faults=(("unauthorized", {"route": "start", "times": 2}),), settings=EAGER),
    "canary": Scenario(
        faults=(("payment-required", {"times": 1}),),
        mischief=("before", "canary", "UPDATE jobs SET available_at = created_at"),
        settings=EAGER,
    ),
    "cancel": Scenario(
        mode="poll",
        prompt="[hang stop_time=0.1]",
        then="cancel",
        end=State.CANCELLED,
        settings=EAGER,
    ),
    "held": Scenario(prompt="[steps=2 hang=2 stop_time=0.1]", end=State.CANCELLED, settings=EAGER),
    "held on trial": Scenario(
        mode="auto",
        prompt="[steps=2 hang=2 stop_time=0.1]",
        end=State.CANCELLED,
        settings=EAGER,
    ),
    "held without a chat": Scenario(
        prompt="[steps=2 hang=2 stop_time=0.1]",
        faults=(("broken-body", {"times": 1}),),
        end=State.CANCELLED,
        settings=EAGER,
    ),
    "sweep": Scenario(then="expire", end=State.FAILED),
    "drain": Scenario(mode="poll", prompt='[text="The answer." first=2]', then="drain"),
    "late": Scenario(mischief=("after", "POST body", RESCUE)),
    "fault": Scenario(mischief=("before", "POST", "raise"), end=State.FAILED),
    "unmarked": Scenario(mischief=("before", "mark", "away"), settings=EAGER),
    "broken": Scenario(
        # The chat is listed once it has a message, and points at the run until that is over.
        prompt='[text="The answer." tail=6]',
        faults=(("broken-body", {"times": 1}),),
    ),
}

SCENARIO_OF: Mapping[Act, str] = {
    Act.REGISTER: "stream",
    Act.BEAT: "stream",
    Act.SWEEP: "sweep",
    Act.CLAIM: "stream",
    Act.CANARY: "canary",
    Act.MARK: "stream",
    Act.PUT_BACK: "unmarked",
    Act.ANSWER: "stream",
    Act.LATE_ANSWER: "late",
    Act.GATE: "gate",
    Act.LEARN_CHAT: "broken",
    Act.OPEN_STREAM: "stream on trial",
    Act.CHECKPOINT: "stream that lasts",
    Act.CLOSE_STREAM: "stream that ends long before its run",
    Act.LEARN_LEAVING: "cut",
    Act.PROGRESS: "poll",
    Act.NOTE_STOP: "cancel",
    Act.SETTLE: "poll",
    Act.RELEASE: "drain",
    Act.RESCUE: "stream",
    Act.MEND: "fault",
    Act.BURY: "drain",
    Act.POST: "stream",
    Act.BODY: "stream",
    Act.STATUS: "poll",
    Act.STREAM: "stream that lasts",
    Act.CHUNKS: "stream that lasts",
    Act.CHAT: "cancel",
    Act.FIND_CHAT: "broken",
    Act.COLLECT: "poll",
    Act.STOP: "cancel",
    Act.PROBE: "gate",
    Act.DRAIN: "drain",
}

PASSES = {Point(side, Act.SWEEP): 3 for side in Side}
"""Which time a point is passed that a worker dies at, if not the first: a sweep is three writes,
and the last settles what expired."""

# --- how the row stands ---------------------------------------------------------------------

QUEUED, CLAIMED, SENT, LIVE, DOUBT = "queued", "claimed", "sent", "running", "in_doubt"
"""A job's state, with `submitting` told apart: `claimed` before the mark, `sent` behind it."""

AT_REST = frozenset({"completed", "failed", "cancelled", DOUBT})

STANDS: Mapping[Act, tuple[str, str]] = {
    Act.REGISTER: (QUEUED, QUEUED),
    Act.BEAT: (QUEUED, QUEUED),
    Act.RESCUE: (QUEUED, QUEUED),
    Act.SWEEP: (QUEUED, "failed"),
    Act.CLAIM: (QUEUED, CLAIMED),
    Act.CANARY: (QUEUED, CLAIMED),
    Act.POST: (CLAIMED, SENT),
    Act.MARK: (CLAIMED, SENT),
    Act.PUT_BACK: (CLAIMED, QUEUED),
    Act.BODY: (SENT, SENT),
    Act.ANSWER: (SENT, LIVE),
    Act.LATE_ANSWER: (DOUBT, LIVE),
    Act.GATE: (QUEUED, QUEUED),
    Act.PROBE: (QUEUED, QUEUED),
    Act.MEND: (CLAIMED, "failed"),
    Act.SETTLE: (LIVE, ""),
}
"""The row before and after each act, before anybody recovers; all other acts are of a live run."""


def standing(point: Point, scenario: Scenario) -> str:
    """How the row stands when a worker dies at a point in the first life of its job."""
    before, after = STANDS.get(point.act, (LIVE, LIVE))
    return (before if point.side is Side.BEFORE else after) or scenario.end.value


def may_stand(point: Point, scenario: Scenario, dialect: str) -> frozenset[str]:
    """How the row may stand there. PostgreSQL takes a beat on a connection of its own, beside
    which the job goes on; a SQLite file has one writer, and the beat is its first write."""
    if dialect == "postgresql" and point == Point(Side.AFTER, Act.BEAT):
        return frozenset({QUEUED, CLAIMED, SENT, LIVE})
    return frozenset({standing(point, scenario)})


def left_by_successor(before: str, point: Point, scenario: Scenario) -> str:
    """How the row stands when a worker dies at a point that found it as `before`."""
    if point.act in (Act.REGISTER, Act.BEAT) or point == Point(Side.BEFORE, Act.RESCUE):
        return before
    if point.act is Act.RESCUE:
        return {CLAIMED: QUEUED, SENT: DOUBT}.get(before, before)
    return standing(point, scenario)
