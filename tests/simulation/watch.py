"""The promises, checked at each commit and at each request while a simulation runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.states import TRANSITIONS, State
from orchestrator.worker.lease import FENCE_AT

from .database import Change, Database
from .timeline import Timeline
from .trace import Trace

_PROMPT = re.compile(rb'"prompt":\s*"job (\d+)\.')
_STOP = re.compile(rb"POST /api/chat/([^/ ]+)/stop ")
_CLAIMED = frozenset({State.SUBMITTING.value, State.RUNNING.value})
_SETTLED = frozenset(state.value for state in State if state.settled)

PERSON = "person"


@dataclass(slots=True)
class Post:
    """A submission that began to go out."""

    process: str
    connection: int
    at: float
    job: int | None = None
    trouble: list[str] = field(default_factory=list)


class Watch:
    """Looks at every commit and every byte that goes out; `found` is what was wrong.

    It never raises: the code under simulation would take that for a fault of the network.
    """

    def __init__(
        self,
        *,
        database: Database,
        timeline: Timeline,
        trace: Trace,
        dead_after: float,
        on_moment: Callable[[str, str], None],
    ) -> None:
        self.found: list[str] = []
        self.states: dict[int, str] = {}
        self.posts: dict[int, Post] = {}
        self.marks: dict[int, list[str]] = defaultdict(list)
        self.marked_by: dict[int, str] = {}
        self.learned: dict[str, str] = {}
        self.limits: dict[str, int] = {}
        self._database = database
        self._timeline = timeline
        self._trace = trace
        self._dead_after = dead_after
        self._on_moment = on_moment
        self._beaten: dict[str, float] = {}

    def begins(self, process: str) -> None:
        """Take note that a worker starts: its row is its first heartbeat."""
        self._beaten[process] = self._timeline.now

    def learns(self, process: str, run_id: str) -> None:
        """Take note that a worker has read the id of a run that it started."""
        self.learned[run_id] = process

    def faulty(self, event: str, words: str) -> None:
        """Take note of a fault of the program under simulation."""
        self._broken(f"{event}: {words}")

    # --- commits ------------------------------------------------------------------------------

    def committed(self, who: str) -> None:
        """Check what the transaction of a worker, or of a person, has written."""
        changes = self._database.changes()
        written = {change.job_id for change in changes if change.kind == "job"}
        raised = {(change.job_id, change.lease) for change in changes if _seizes(change)}
        for change in changes:
            if change.kind == "job":
                own = (change.job_id, change.was_lease) in raised
                self._job(who, change, allowed=own or who in (PERSON, change.was_worker))
            elif change.kind == "worker":
                self._worker(who, change)
            elif change.job_id not in written:
                self._broken(f"{who} wrote a {change.kind} of job {change.job_id} without a guard")
        if self.limits and any(change.state == State.SUBMITTING for change in changes):
            self._within_limits()

    def _job(self, who: str, change: Change, *, allowed: bool) -> None:
        job = change.job_id or 0
        was, now = State(change.was_state or ""), State(change.state or "")
        if change.was_lease != change.lease or was is not now:
            self._trace.add(
                who,
                "job",
                id=job,
                was=was.value,
                now=now.value,
                lease=change.lease,
                held_by=change.worker,
            )
        self.states[job] = now.value
        if now is not was and now not in TRANSITIONS[was]:
            self._broken(f"job {job} went from {was} to {now}")
        moment = _moment(change)
        if moment is not None:
            self._on_moment(moment, who)
        kept = change.lease == change.was_lease
        if not kept and (change.lease or 0) <= (change.was_lease or 0):
            self._broken(f"the lease of job {job} fell from {change.was_lease} to {change.lease}")
        if kept and was.value in _CLAIMED and not allowed:
            self._broken(f"{who} wrote job {job}, which {change.was_worker} holds")
        if change.sent is not None and change.was_sent is None:
            self.marks[job] = [who]
            self.marked_by[job] = who
        elif change.sent is None:
            self.marks[job] = []

    def _worker(self, who: str, change: Change) -> None:
        other = change.worker or ""
        if other == who:
            self._beaten[who] = self._timeline.now
        elif change.was_state is None and change.state is not None:
            silent_s = self._timeline.now - self._beaten.get(other, 0.0)
            self._trace.add(who, "declares dead", worker=other, silent_s=round(silent_s, 1))
            if silent_s < self._dead_after:
                self._broken(f"{who} declared {other} dead {silent_s:.1f} s after its last beat")

    def _within_limits(self) -> None:
        for queue, most in self.limits.items():
            held = self._database.rows(
                "SELECT count(*) FROM jobs WHERE queue = ? AND state IN ('submitting', 'running')",
                queue,
            )[0][0]
            if held > most:
                self._broken(f"{held} jobs of queue {queue} are held; its limit is {most}")

    # --- requests -----------------------------------------------------------------------------

    def sends(self, process: str, connection: int, data: bytes) -> None:
        """Check a request that begins to go out."""
        post = self.posts.get(connection)
        if data.startswith(b"POST /api/chat/runs "):
            self.posts[connection] = Post(process, connection, self._timeline.now)
            self._may(process, "a POST")
            self._on_moment("posts", process)
        elif post is not None and post.job is None and (found := _PROMPT.search(data)):
            post.job = int(found[1])
            self._marked(post, post.job)
        elif found := _STOP.match(data):
            self._trace.add(process, "stop", chat=found[1].decode())
            self._stop(process, found[1].decode())

    def broke(self, connection: int, how: str) -> None:
        """Take note that a connection did not work as it should."""
        self._trace.count(f"connection {how}")
        if connection in self.posts:
            self.posts[connection].trouble.append(how)
            self._trace.add("network", "post", connection=connection, how=how)

    def _may(self, process: str, what: str) -> None:
        silent_s = self._timeline.now - self._beaten.get(process, 0.0)
        if silent_s >= FENCE_AT * self._dead_after:
            self._broken(f"{process} sent {what} {silent_s:.1f} s after its last heartbeat")

    def _marked(self, post: Post, job: int) -> None:
        self._trace.add(post.process, "post", id=job, connection=post.connection)
        marks, self.marks[job] = self.marks[job], []
        if marks != [post.process]:
            self._broken(f"{post.process} sent job {job}; marked to be sent by {marks or 'nobody'}")

    def _stop(self, process: str, chat: str) -> None:
        self._may(process, "a stop")
        wanted = self._database.rows(
            "SELECT count(*) FROM job_events e JOIN jobs j ON j.id = e.job_id"
            " WHERE e.event = 'stop.sent' AND e.worker_id = ?"
            " AND (j.chat_id = ? OR EXISTS (SELECT 1 FROM attempts a"
            " WHERE a.job_id = j.id AND a.chat_id = ?))",
            process,
            chat,
            chat,
        )[0][0]
        if not wanted:
            self._broken(f"{process} stopped the run of chat {chat}, which is not its own")

    def _broken(self, words: str) -> None:
        self._trace.add("watch", "BROKEN", words=words)
        self.found.append(words)

    # --- the end ------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether no job waits for anything but a person."""
        open_ones = [job for job, state in self.states.items() if state not in _SETTLED]
        if any(self.states[job] != State.IN_DOUBT for job in open_ones):
            return False
        waiting = "SELECT count(*) FROM jobs WHERE state = 'in_doubt' AND resubmit_at IS NOT NULL"
        return not open_ones or self._database.rows(waiting)[0][0] == 0


def _seizes(change: Change) -> bool:
    return change.kind == "job" and change.lease != change.was_lease


def _moment(change: Change) -> str | None:
    """What a worker did by a change of a job, in the words of plans."""
    match change.was_state, change.state:
        case "queued", "submitting":
            return "claims"
        case "submitting", "submitting":
            return "marks" if change.was_sent is None and change.sent is not None else None
        case "submitting", "running":
            return "accepts"
        case "running", "running":
            return "adopts" if change.lease != change.was_lease else None
        case _, "queued":
            return "puts back"
        case "submitting", "in_doubt":
            return "doubts"
        case _, state if state in _SETTLED:
            return "settles"
        case _:
            return None
