"""What the server has seen: every request, every submission, every stream."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

_KEPT: Final = 20_000
"""Requests that are remembered one by one; counters go on."""


@dataclass(slots=True)
class Call:
    """One request. `at` is in seconds since 1970; `start_index` as it stood in the query."""

    at: float
    route: str
    method: str
    path: str
    start_index: str | None = None
    prompt: str | None = None
    run_id: str | None = None
    status: int | None = None
    """None while it is worked on, and when it was never answered."""
    ended_at: float | None = None
    faults: list[str] = field(default_factory=list)
    """The kinds of the faults that struck it."""
    sent: int = 0
    """Stored chunks that a stream sent."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One call of the stop route and what became of it."""

    at: float
    chat_id: str
    run_id: str | None
    stopped: bool


class Record:
    """Readable at any time. `posts` is what an earlier process counted.

    `posts_by_prompt` counts the submissions that arrived, whatever the answer was;
    `runs_by_prompt` the runs that were really started.
    """

    def __init__(
        self,
        *,
        posts: Counter[str],
        runs: Counter[str],
        on_post: Callable[[str, float], None],
        now: Callable[[], float],
    ) -> None:
        self.posts_by_prompt = posts
        self.runs_by_prompt = runs
        self.calls: deque[Call] = deque(maxlen=_KEPT)
        self.statuses: Counter[tuple[str, int | None]] = Counter()
        self.stops: list[Stop] = []
        self.open_streams = 0
        self.max_open_streams = 0
        self._on_post = on_post
        self._now = now

    def began(self, call: Call) -> None:
        """Note a request that has just come."""
        self.calls.append(call)

    def ended(self, call: Call) -> None:
        """Note the end of its answer."""
        call.ended_at = self._now()
        self.statuses[call.route, call.status] += 1

    def posted(self, prompt: str, at: float) -> None:
        """Note that a submission arrived."""
        self.posts_by_prompt[prompt] += 1
        self._on_post(prompt, at)

    def stream_opened(self) -> None:
        """Note that a reader follows a stream."""
        self.open_streams += 1
        self.max_open_streams = max(self.max_open_streams, self.open_streams)

    def stream_closed(self) -> None:
        """Note that it does not any more."""
        self.open_streams -= 1

    def requests(self, route: str | None = None) -> list[Call]:
        """Give the requests so far, of one route or of all."""
        return [call for call in self.calls if route in (None, call.route)]

    def as_json(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {
            "posts_by_prompt": dict(self.posts_by_prompt),
            "runs_by_prompt": dict(self.runs_by_prompt),
            "posts": self.posts_by_prompt.total(),
            "runs": self.runs_by_prompt.total(),
            "answers": [
                {"route": route, "status": status, "count": count}
                for (route, status), count in self.statuses.items()
            ],
            "open_streams": self.open_streams,
            "max_open_streams": self.max_open_streams,
            "stops": [asdict(stop) for stop in self.stops],
            "requests": [asdict(call) for call in self.calls],
        }
