"""What a worker took, and what became of it: for its exit code and its status line."""

from __future__ import annotations

from collections import Counter

from orchestrator.job import Job
from orchestrator.states import State


class Tally:
    """Counts the jobs that a worker took, by how each of them last stood.

    `forgetful`: a job that is settled is counted and its id forgotten, so that a worker may live
    for months; one that comes back after that counts once more. A worker that ends by itself
    remembers them all, and how many it took.
    """

    def __init__(self, *, forgetful: bool = False) -> None:
        self._forgetful = forgetful
        self._numbers: Counter[State] = Counter()
        self._last: dict[int, State] = {}
        self._taken: set[int] = set()

    @property
    def taken(self) -> int:
        """How many jobs the worker took, unless it is forgetful; what it sweeps is not taken."""
        return len(self._taken)

    def take(self, job: Job) -> None:
        """Take note of a job that the worker begins to hold."""
        if not self._forgetful:
            self._taken.add(job.id)

    def count(self, job: Job) -> None:
        """Take note of a job as it stands after an act."""
        before = self._last.get(job.id)
        if before is not None:
            self._numbers[before] -= 1
        self._numbers[job.state] += 1
        self._last[job.id] = job.state
        if self._forgetful and job.state.settled:
            del self._last[job.id]

    def number(self, state: State) -> int:
        """How many of the jobs last stood in `state`."""
        return self._numbers[state]

    @property
    def ends(self) -> dict[str, int]:
        """How many jobs ended in each state, those in doubt among them."""
        at_rest = (state for state in State if state.settled or state is State.IN_DOUBT)
        return {state.value: self.number(state) for state in at_rest if self.number(state)}

    @property
    def all_completed(self) -> bool:
        """True if nothing that this worker handled ended otherwise."""
        return not any(map(self.number, (State.FAILED, State.CANCELLED, State.IN_DOUBT)))
