"""What the Recoup API answered, as frozen values.

The client turns every answer and every failure of a call into one of these; nothing here
does I/O. The facts are those of the service's public pages and source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""A JSON value as `json.loads` gives it."""


# --- submissions: POST /api/chat/runs and POST /api/chat/generate ---------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A 202: the run exists.

    `chat_id` and `session_id` are None when the body broke and only `Location` named the run.
    """

    run_id: str
    chat_id: str | None
    session_id: str | None


@dataclass(frozen=True, slots=True)
class Generated:
    """A 200 of the synchronous endpoint; `body` is the whole answer."""

    body: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Answered:
    """A complete answer that is neither `Accepted` nor `Generated`.

    `envelope` is True when the body is the API's own error envelope, a JSON object whose
    `status` is `"error"`; a proxy or a wrong host does not speak it. `error` is the server's
    sentence, or the start of the body where there is none. `retry_after` is in seconds.
    """

    status: int
    envelope: bool
    error: str
    url: str
    retry_after: float | None = None
    location: str | None = None
    missing_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotSent:
    """The request surely did not begin to go out: no byte of it left this process."""

    error: str
    refused_by_mark: bool = False
    """True when the caller's mark said not to send; then `error` says so too."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The request began to go out and no readable answer came: a run may have been started."""

    error: str
    status: int | None = None
    """The HTTP status, when the head of an answer was read before its body broke."""


Submission: TypeAlias = Accepted | Generated | Answered | NotSent | NoAnswer


# --- reads --------------------------------------------------------------------------------


class TroubleKind(StrEnum):
    """Why a call other than a submission gave no result, by what the caller can do."""

    UNAUTHORIZED = "unauthorized"  # 401: the key, or the look-up of the key
    FORBIDDEN = "forbidden"  # 403 in the API's own envelope
    NOT_FOUND = "not_found"  # 404 in the API's own envelope; may be a passing fault
    THROTTLED = "throttled"  # 429: wait, for Retry-After if it is given
    UNAVAILABLE = "unavailable"  # 408, 425, 5xx: ask again later
    UNREACHABLE = "unreachable"  # DNS, refused, TLS, timeout, reset
    FOREIGN = "foreign"  # 3xx, or a 4xx without the envelope: a proxy or a wrong host
    REFUSED = "refused"  # any other 4xx in the API's own envelope
    UNREADABLE = "unreadable"  # a 2xx whose body is not what the API documents


@dataclass(frozen=True, slots=True)
class Trouble:
    """A call that gave no result. `retry_after` is in seconds."""

    kind: TroubleKind
    error: str
    status: int | None = None
    retry_after: float | None = None


class RunStatus(StrEnum):
    """A run's status in the API's words; an unknown word reads as `running`."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True for the statuses that never change again."""
        return self in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class RunState:
    """GET /api/chat/runs/{runId}. `raw` is the whole answer, later versions' fields included."""

    run_id: str
    status: RunStatus
    raw: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionChat:
    """GET /api/sessions/{sessionId}/chats/{chatId}; `messages` oldest first, as stored."""

    chat_id: str
    session_id: str
    title: str | None
    active_stream_id: str | None
    updated_at: str | None
    last_assistant_message_at: str | None
    is_streaming: bool
    messages: tuple[dict[str, Json], ...]


@dataclass(frozen=True, slots=True)
class ChatListing:
    """One row of GET /api/chats. `updated_at` is the server's ISO 8601 text."""

    chat_id: str
    session_id: str | None
    title: str | None
    updated_at: str | None
    artist_id: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """POST /api/chat/{chatId}/stop. `stopped` False: the chat points at no run, which proves
    nothing about a run."""

    stopped: bool


@dataclass(frozen=True, slots=True)
class NoStream:
    """A 204 of the stream route: nothing to resume now, which is not the end of the run."""


@dataclass(frozen=True, slots=True)
class StreamHead:
    """The head of a 200 of the stream route. `run_id` and `tail_index` are None when absent."""

    run_id: str | None
    tail_index: int | None
