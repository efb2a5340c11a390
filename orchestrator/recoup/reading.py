"""What a reply means: pure functions from a `Reply` to the values of `answers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.recoup.answers import (
    Accepted,
    Answered,
    ChatListing,
    Generated,
    Json,
    NoAnswer,
    RunState,
    RunStatus,
    SessionChat,
    Stopped,
    Submission,
    Trouble,
    TroubleKind,
)
from orchestrator.recoup.body import (
    UnreadableBodyError,
    a_bool,
    a_list,
    a_string,
    an_object,
    is_envelope,
    json_object,
    missing_fields,
    optional_string,
    retry_after,
    sentence,
    shown_text,
)
from orchestrator.recoup.ids import is_id, run_id_of_location
from orchestrator.recoup.reply import Reply

T = TypeVar("T")


# --- submissions ----------------------------------------------------------------------------


def start_answer(reply: Reply, url: str) -> Submission:
    """Read the answer of POST /api/chat/runs to a request that went out."""
    if reply.status != 202:
        return _other_answer(reply, url)
    body = json_object(reply) or {}
    run_id, chat_id, session_id = (body.get(name) for name in ("runId", "chatId", "sessionId"))
    if is_id(run_id) and is_id(chat_id) and is_id(session_id):
        return Accepted(run_id, chat_id, session_id)
    if not is_id(run_id):
        run_id = run_id_of_location(reply.headers.get("location"))
    if run_id is not None:
        return Accepted(run_id, None, None)
    return NoAnswer(reply.fault or f"HTTP 202 without a run's id: {shown_text(reply)}", status=202)


def generate_answer(reply: Reply, url: str) -> Submission:
    """Read the answer of POST /api/chat/generate to a request that went out."""
    body = json_object(reply)
    if reply.status == 200 and body is not None:
        return Generated(body)
    return _other_answer(reply, url)


def _other_answer(reply: Reply, url: str) -> Submission:
    if reply.status is None:
        return NoAnswer(reply.fault or "no answer came")
    if reply.status < 300:
        why = reply.fault or f"this is not an answer of the call: {shown_text(reply)}"
        return NoAnswer(f"HTTP {reply.status}: {why}", status=reply.status)
    # A redirect says all in its head; what an error's broken body would have said is unknown.
    if reply.fault is not None and reply.status >= 400:
        return NoAnswer(f"HTTP {reply.status}: {reply.fault}", status=reply.status)
    body = json_object(reply)
    return Answered(
        status=reply.status,
        envelope=is_envelope(body),
        error=sentence(reply, body),
        url=url,
        retry_after=retry_after(reply),
        location=reply.headers.get("location"),
        missing_fields=missing_fields(body),
    )


# --- other calls ----------------------------------------------------------------------------


def run_state(reply: Reply, run_id: str) -> RunState | Trouble:
    """Read the answer of GET /api/chat/runs/{runId}; it must be about `run_id`."""

    def read(body: dict[str, Json]) -> RunState:
        _same(body, "runId", run_id)
        return RunState(run_id=run_id, status=_run_status(a_string(body, "status")), raw=body)

    return _read(reply, read)


def session_chat(reply: Reply, session_id: str, chat_id: str) -> SessionChat | Trouble:
    """Read the answer of GET /api/sessions/{sessionId}/chats/{chatId}."""

    def read(body: dict[str, Json]) -> SessionChat:
        chat = an_object(body.get("chat"), "chat")
        _same(chat, "id", chat_id)
        _same(chat, "sessionId", session_id)
        messages = a_list(body, "messages")
        return SessionChat(
            chat_id=chat_id,
            session_id=session_id,
            title=optional_string(chat, "title"),
            active_stream_id=optional_string(chat, "activeStreamId"),
            updated_at=optional_string(chat, "updatedAt"),
            last_assistant_message_at=optional_string(chat, "lastAssistantMessageAt"),
            is_streaming=body.get("isStreaming") is not None and a_bool(body, "isStreaming"),
            messages=tuple(an_object(message, "messages[]") for message in messages),
        )

    return _read(reply, read)


def chat_listings(reply: Reply) -> tuple[ChatListing, ...] | Trouble:
    """Read the answer of GET /api/chats."""

    def read(body: dict[str, Json]) -> tuple[ChatListing, ...]:
        return tuple(_listing(an_object(chat, "chats[]")) for chat in a_list(body, "chats"))

    return _read(reply, read)


def stopped(reply: Reply) -> Stopped | Trouble:
    """Read the answer of POST /api/chat/{chatId}/stop."""
    return _read(reply, lambda body: Stopped(stopped=a_bool(body, "stopped")))


def key_trouble(reply: Reply) -> Trouble | None:
    """Read the status answer of a run that cannot exist: None when the API took the key."""
    if reply.status == 200:
        status = _read(reply, lambda body: a_string(body, "status"))
        return status if isinstance(status, Trouble) else None
    trouble = trouble_of(reply)
    return None if trouble.kind is TroubleKind.NOT_FOUND else trouble


def trouble_of(reply: Reply) -> Trouble:
    """Say why a reply other than a complete 200 gave no result, by what can be done."""
    if reply.too_long:
        return Trouble(TroubleKind.UNREADABLE, reply.fault or "the body is too long", reply.status)
    if reply.fault is not None or reply.status is None:
        return Trouble(TroubleKind.UNREACHABLE, reply.fault or "no answer came", reply.status)
    if reply.status < 300:
        return unreadable(reply, "is not an answer of this call")
    body = json_object(reply)
    kind = _trouble_kind(reply.status, envelope=is_envelope(body))
    return Trouble(kind, sentence(reply, body), reply.status, retry_after(reply))


def unreadable(reply: Reply, why: str) -> Trouble:
    """Return the trouble of a 2xx; `why` continues "the body of HTTP 200"."""
    error = f"the body of HTTP {reply.status} {why}: {shown_text(reply)}"
    return Trouble(TroubleKind.UNREADABLE, error, reply.status)


def _trouble_kind(status: int, *, envelope: bool) -> TroubleKind:
    if status in (408, 425) or status >= 500:
        return TroubleKind.UNAVAILABLE
    if status in (401, 429):
        return TroubleKind.UNAUTHORIZED if status == 401 else TroubleKind.THROTTLED
    if status < 400 or not envelope:
        return TroubleKind.FOREIGN
    own = {403: TroubleKind.FORBIDDEN, 404: TroubleKind.NOT_FOUND}
    return own.get(status, TroubleKind.REFUSED)


def _read(reply: Reply, read: Callable[[dict[str, Json]], T]) -> T | Trouble:
    if reply.status != 200 or reply.fault is not None:
        return trouble_of(reply)
    body = json_object(reply)
    if body is None:
        return unreadable(reply, "is not a JSON object")
    try:
        return read(body)
    except UnreadableBodyError as exc:
        return unreadable(reply, str(exc))


def _run_status(word: str) -> RunStatus:
    try:
        return RunStatus(word)
    except ValueError:
        return RunStatus.RUNNING


def _listing(chat: dict[str, Json]) -> ChatListing:
    return ChatListing(
        chat_id=_id(chat, "id"),
        session_id=None if chat.get("sessionId") is None else _id(chat, "sessionId"),
        title=optional_string(chat, "title"),
        updated_at=optional_string(chat, "updatedAt"),
        artist_id=optional_string(chat, "artistId"),
    )


def _id(body: dict[str, Json], name: str) -> str:
    value = a_string(body, name)
    if not is_id(value):
        raise UnreadableBodyError(f"has no id at {name}")
    return value


def _same(body: dict[str, Json], name: str, asked: str) -> None:
    """Refuse an answer about something else; a field that is absent says nothing."""
    value = optional_string(body, name)
    if value is not None and value != asked:
        raise UnreadableBodyError(f"is about another {name} than {asked}")
