"""The Recoup API: one method for each call, answers as values."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote

import anyio

from orchestrator.errors import ConfigError
from orchestrator.recoup import reading
from orchestrator.recoup.answers import (
    Answered,
    ChatListing,
    Json,
    NoAnswer,
    NoStream,
    NotSent,
    RunState,
    SessionChat,
    Stopped,
    Submission,
    Trouble,
    TroubleKind,
)
from orchestrator.recoup.ids import is_id
from orchestrator.recoup.reply import Reply, exchange
from orchestrator.recoup.stream import OpenStream, open_stream
from orchestrator.recoup.submit import Around, Mark, submit
from orchestrator.recoup.transport import (
    checked_base_url,
    checked_proxy,
    fresh_connections,
    pooled_connections,
    timeouts,
    tls_context,
)

T = TypeVar("T")

_NOBODY: Around = contextlib.nullcontext()
_NO_RUN = "wrun_00000000000000000000000000"
_SUBMISSION_BODY = 1 << 20
_CALL_BODY = 100 << 20
_GENERATE_BODY = 100 << 20
_WHOLE_CALL = 3  # a long chat may arrive slowly: a call may last three silences of call_timeout


class RecoupClient:
    """Calls the API at `base_url`; use it as an async context manager, once.

    `base_url` is https, or http on loopback. `key` is asked for the API key before each call;
    what it raises of OSError, ValueError or ConfigError becomes the call's trouble. `proxy` is
    the URL of an http or https proxy; the environment's proxy variables are not read.
    Timeouts are in seconds and bound the silence: `submit_timeout` and `generate_timeout` of
    the two submissions, `call_timeout` of other calls, `stream_idle_timeout` of a stream, the
    wait for its head included. `max_calls` and `max_streams` bound the connections of each.

    No method raises a transport's error, follows a redirect, or repeats a submission. Raises
    ValueError naming the argument that cannot be used.
    """

    def __init__(
        self,
        *,
        base_url: str,
        key: Callable[[], str],
        proxy: str | None = None,
        submit_timeout: float = 150.0,
        generate_timeout: float = 3600.0,
        call_timeout: float = 20.0,
        stream_idle_timeout: float,
        max_calls: int,
        max_streams: int,
    ) -> None:
        self._base_url = checked_base_url(base_url)
        checked_proxy(proxy)
        self._key = key
        self._proxy = proxy
        self._submit_timeout = _positive("submit_timeout", submit_timeout)
        self._generate_timeout = _positive("generate_timeout", generate_timeout)
        self._call_timeout = _positive("call_timeout", call_timeout)
        self._stream_idle_timeout = _positive("stream_idle_timeout", stream_idle_timeout)
        self._max_calls = int(_positive("max_calls", max_calls))
        self._max_streams = int(_positive("max_streams", max_streams))
        self._open = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"RecoupClient(base_url={self._base_url!r})"

    async def __aenter__(self) -> Self:
        proxy = self._proxy
        tls = tls_context(self._base_url, proxy)
        async with contextlib.AsyncExitStack() as opening:
            enter = opening.enter_async_context
            self._posts = await enter(fresh_connections(tls=tls, proxy=proxy))
            self._calls = await enter(
                pooled_connections(tls=tls, proxy=proxy, limit=self._max_calls)
            )
            self._streams = await enter(
                pooled_connections(tls=tls, proxy=proxy, limit=self._max_streams)
            )
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    # --- submissions ------------------------------------------------------------------------

    async def start_run(
        self, body: dict[str, Json], *, mark: Mark, around: Around = _NOBODY
    ) -> Submission:
        """POST /api/chat/runs on a fresh connection.

        `mark` is awaited once, when the connection stands and before the first byte goes out,
        shielded from cancellation; with False nothing is sent. Raises what the mark raises,
        nothing being sent then, and ValueError for a body that is not JSON. `around` is entered
        when the head is out and left when the body is. After a crash here a run may exist exactly
        if the mark had been made.
        """
        return await self._submit(
            "/api/chat/runs",
            body,
            mark=mark,
            around=around,
            answer_s=self._submit_timeout,
            limit=_SUBMISSION_BODY,
            read=reading.start_answer,
        )

    async def generate(
        self, body: dict[str, Json], *, mark: Mark, around: Around = _NOBODY
    ) -> Submission:
        """POST /api/chat/generate, the synchronous call; the same rules as `start_run`."""
        return await self._submit(
            "/api/chat/generate",
            body,
            mark=mark,
            around=around,
            answer_s=self._generate_timeout,
            limit=_GENERATE_BODY,
            read=reading.generate_answer,
        )

    async def _submit(
        self,
        path: str,
        body: dict[str, Json],
        *,
        mark: Mark,
        around: Around,
        answer_s: float,
        limit: int,
        read: Callable[[Reply, str], Submission],
    ) -> Submission:
        content = json.dumps(body, allow_nan=False).encode("ascii")
        try:
            key = self._read_key()
        except _NoKeyError as exc:
            return NotSent(str(exc))
        sending = await submit(
            self._posts,
            url=self._base_url + path,
            headers={
                "x-api-key": key,
                "content-type": "application/json",
                "accept": "application/json",
            },
            content=content,
            mark=mark,
            around=around,
            answer_s=answer_s,
            limit=limit,
        )
        if sending.marked:
            return _without(key, read(sending.reply, self._base_url + path))
        error = sending.reply.fault or "the request was held back"
        return _without(key, NotSent(error, refused_by_mark=sending.marked is False))

    # --- other calls ------------------------------------------------------------------------

    async def run_status(self, run_id: str) -> RunState | Trouble:
        """GET /api/chat/runs/{runId}."""
        if not is_id(run_id):
            return _not_an_id("run", run_id)
        return await self._call(
            "GET", f"/api/chat/runs/{run_id}", lambda reply: reading.run_state(reply, run_id)
        )

    async def session_chat(self, session_id: str, chat_id: str) -> SessionChat | Trouble:
        """GET /api/sessions/{sessionId}/chats/{chatId}: the chat and its stored messages."""
        if not is_id(session_id) or not is_id(chat_id):
            return _not_an_id("session or chat", f"{session_id} / {chat_id}")
        return await self._call(
            "GET",
            f"/api/sessions/{session_id}/chats/{chat_id}",
            lambda reply: reading.session_chat(reply, session_id, chat_id),
        )

    async def chats(self) -> tuple[ChatListing, ...] | Trouble:
        """GET /api/chats: the account's chats that hold a message, newest first."""
        return await self._call("GET", "/api/chats", reading.chat_listings)

    async def stop(self, chat_id: str) -> Stopped | Trouble:
        """POST /api/chat/{chatId}/stop: cancel whatever run the chat points at."""
        if not is_id(chat_id):
            return _not_an_id("chat", chat_id)
        return await self._call("POST", f"/api/chat/{chat_id}/stop", reading.stopped)

    async def check_key(self) -> Trouble | None:
        """Ask for a run that cannot exist: None when the API answers and takes the key."""
        return await self._call("GET", f"/api/chat/runs/{_NO_RUN}", reading.key_trouble)

    async def _call(self, method: str, path: str, read: Callable[[Reply], T]) -> T | Trouble:
        try:
            key = self._read_key()
        except _NoKeyError as exc:
            return Trouble(TroubleKind.UNAUTHORIZED, str(exc))
        # A POST takes a fresh connection: the pool repeats only GETs that meet a stale one.
        client = self._calls if method == "GET" else self._posts
        request = client.build_request(
            method,
            self._base_url + path,
            headers={"x-api-key": key, "accept": "application/json"},
            timeout=timeouts(self._call_timeout),
        )
        deadline = anyio.current_time() + _WHOLE_CALL * self._call_timeout
        reply = await exchange(
            client, request, limit=_CALL_BODY, scope=anyio.CancelScope(deadline=deadline)
        )
        return _without(key, read(reply))

    # --- the stream -------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def stream(
        self, chat_id: str, start_index: int
    ) -> AsyncIterator[OpenStream | NoStream | Trouble]:
        """GET /api/chat/{chatId}/stream from the chunk `start_index`, which is 0 or more.

        The connection is closed at the end of the block. Leaving before the reads have ended
        may cancel the run on the server.
        """
        if not is_id(chat_id) or start_index < 0:
            yield _not_an_id("chat or start index", f"{chat_id} / {start_index}")
            return
        try:
            key = self._read_key()
        except _NoKeyError as exc:
            yield Trouble(TroubleKind.UNAUTHORIZED, str(exc))
            return
        request = self._streams.build_request(
            "GET",
            f"{self._base_url}/api/chat/{chat_id}/stream?startIndex={start_index}",
            headers={
                "x-api-key": key,
                "accept": "text/event-stream",
                # A compressing proxy would hold chunks back to fill its window.
                "accept-encoding": "identity",
            },
            # The head may come only with the first chunk, and that may take as long as any
            # other; leaving earlier could cancel the run.
            timeout=timeouts(self._stream_idle_timeout),
        )
        opening = open_stream(
            self._streams,
            request,
            idle_s=self._stream_idle_timeout,
            answer_s=self._call_timeout,
        )
        async with opening as opened:
            yield _without(key, opened)

    def _read_key(self) -> str:
        try:
            key = self._key().strip()
        except (OSError, ConfigError) as exc:
            raise _NoKeyError(f"the API key cannot be read: {exc}") from None
        except ValueError as exc:
            # Its text may quote what was read.
            raise _NoKeyError(f"the API key cannot be read: {type(exc).__name__}") from None
        if not (key and key.isascii() and key.isprintable()) or " " in key:
            raise _NoKeyError("the API key is empty or holds characters that no header can carry")
        return key


class _NoKeyError(Exception):
    """There is no usable key; the text never quotes it."""


def _without(key: str, value: T) -> T:
    """Return `value` with the key blotted out of its words, should a server repeat it.

    A redirect may carry it as URLs do.
    """
    if not isinstance(value, Answered | NoAnswer | NotSent | Trouble):
        return value
    blotted: dict[str, Any] = {}
    for name in ("error", "location"):
        words = getattr(value, name, None)
        if isinstance(words, str):
            for form in (key, quote(key), quote(key, safe="")):
                words = words.replace(form, "[key]")
            blotted[name] = words
    answer: Any = value  # the type checker has no name for "a T that is a dataclass"
    return cast("T", dataclasses.replace(answer, **blotted))


def _not_an_id(what: str, value: object) -> Trouble:
    return Trouble(TroubleKind.REFUSED, f"{what}: {str(value)[:80]!r}: cannot be an id; not asked")


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: {value!r}: write a positive, finite number")
    return value
