"""The points at which a worker can die with its own state and the world's apart.

Each write to the database and each exchange with the API has two: before it, when nothing of it
stands, and after it, when it stands and nobody in this process has acted on it. A test that
injects a `Reach` kills or halts a real worker at each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NamedTuple, TypeAlias


class Act(StrEnum):
    """What a worker does to the world, in the order of a job's life."""

    # --- writes
    REGISTER = "register"
    BEAT = "beat"
    SWEEP = "sweep"
    CLAIM = "claim"
    CANARY = "canary"
    """The claim of the one job that tries a closed gate."""
    MARK = "mark"
    PUT_BACK = "put back"
    ANSWER = "answer"
    """What the answer to the POST made of the job: the ids above all."""
    LATE_ANSWER = "late answer"
    GATE = "gate"
    LEARN_CHAT = "learn chat"
    OPEN_STREAM = "open stream"
    CHECKPOINT = "checkpoint"
    CLOSE_STREAM = "close stream"
    LEARN_LEAVING = "learn leaving"
    PROGRESS = "progress"
    NOTE_STOP = "note stop"
    SETTLE = "settle"
    RELEASE = "release"
    RESCUE = "rescue"
    MEND = "mend"
    """A job of our own of which no task knows, or at which this program failed."""
    BURY = "bury"

    # --- exchanges with the API
    POST = "POST"
    """Before it nothing is connected; after it the answer is read."""
    BODY = "POST body"
    """Before it the head is out; after it the whole request is."""
    STATUS = "status"
    STREAM = "stream"
    """Before it nothing is asked; after it the head of the response is read."""
    CHUNKS = "chunks"
    """Bytes that came in the middle of a stream: before they are folded, and after."""
    CHAT = "chat"
    """A look at the chat while its run goes on."""
    FIND_CHAT = "find chat"
    COLLECT = "collect"
    """One of the looks for the finished message."""
    STOP = "stop"
    PROBE = "probe"

    # --- the end
    DRAIN = "drain"
    """Before it nothing is let go; after it no task is left."""


class Side(StrEnum):
    """On which side of an act a point lies."""

    BEFORE = "before"
    AFTER = "after"


class Point(NamedTuple):
    """One place in a worker's life."""

    side: Side
    act: Act

    def __str__(self) -> str:
        return f"{self.side} {self.act}"


POINTS = tuple(Point(side, act) for act in Act for side in Side)

Reach: TypeAlias = Callable[[Point], None]
"""Is told of each point as it is passed. What it raises is raised there."""


def pass_by(point: Point) -> None:
    """Do nothing: the `Reach` of every worker outside tests."""


@contextmanager
def passing(reach: Reach, act: Act) -> Iterator[None]:
    """Tell `reach` of the two sides of an act; of the second only if nothing was raised."""
    reach(Point(Side.BEFORE, act))
    yield
    reach(Point(Side.AFTER, act))
