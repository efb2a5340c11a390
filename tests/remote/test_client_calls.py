"""Reads and stops over real sockets: each answer and each fault as its value."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.recoup.answers import (
    ChatListing,
    RunState,
    RunStatus,
    SessionChat,
    Stopped,
    Trouble,
    TroubleKind,
)
from tests.remote.clients import recoup
from tests.remote.rawserver import Peer, always, answer, serving

RUNNING = {"runId": "wrun_01", "status": "running"}
CHAT = {
    "id": "c-1",
    "sessionId": "s-1",
    "title": "Scheduled generation",
    "activeStreamId": "wrun_01",
    "lastAssistantMessageAt": None,
    "updatedAt": "2026-08-21T10:00:00.000Z",
    "later": {"field": 1},
}


def envelope(error: str) -> dict[str, str]:
    return {"status": "error", "error": error}


# --- results ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "status"),
    [(status.value, status) for status in RunStatus] + [("paused", RunStatus.RUNNING)],
)
async def test_run_status_is_read_with_all_its_fields(word: str, status: RunStatus) -> None:
    requests: list[bytes] = []
    body = {"runId": "wrun_01", "status": word, "durationMs": 5}

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(answer(200, body))

    async with serving(script) as server, recoup(server.url + "/") as client:
        assert await client.run_status("wrun_01") == RunState("wrun_01", status, body)
    assert requests[0].startswith(b"GET /api/chat/runs/wrun_01 HTTP/1.1\r\n")
    assert b"x-api-key: recoup_sk_0123456789abcdef\r\n" in requests[0]
    assert b"user-agent: recoup-orchestrator/" in requests[0].lower()


async def test_session_chat_keeps_the_messages_as_stored() -> None:
    messages = [{"id": "m", "role": "assistant", "parts": [{"type": "text", "text": "\u2028\x00"}]}]
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(answer(200, {"chat": CHAT, "isStreaming": True, "messages": messages}))

    async with serving(script) as server, recoup(server.url) as client:
        chat = await client.session_chat("s-1", "c-1")
    assert chat == SessionChat(
        chat_id="c-1",
        session_id="s-1",
        title="Scheduled generation",
        active_stream_id="wrun_01",
        updated_at="2026-08-21T10:00:00.000Z",
        last_assistant_message_at=None,
        is_streaming=True,
        messages=tuple(messages),
    )
    assert requests[0].startswith(b"GET /api/sessions/s-1/chats/c-1 HTTP/1.1\r\n")


async def test_session_chat_of_many_megabytes_is_read() -> None:
    message = {"id": "m", "parts": [{"text": "x" * 5_000_000}]}
    body = {"chat": CHAT, "messages": [message]}
    async with serving(always(answer(200, body))) as server, recoup(server.url) as client:
        chat = await client.session_chat("s-1", "c-1")
    assert isinstance(chat, SessionChat)
    assert chat.messages == (message,)
    assert not chat.is_streaming


async def test_chats_are_listed_in_their_order() -> None:
    rows = [
        {"id": "c-2", "sessionId": "s-2", "title": "T", "updatedAt": "now", "artistId": "a"},
        {"id": "c-1", "sessionId": None},
    ]
    reply = answer(200, {"status": "success", "chats": rows})
    async with serving(always(reply)) as server, recoup(server.url) as client:
        assert await client.chats() == (
            ChatListing("c-2", "s-2", "T", "now", "a"),
            ChatListing("c-1", None, None, None, None),
        )


@pytest.mark.parametrize("ended", [True, False])
async def test_stop_says_whether_the_chat_pointed_at_a_run(ended: bool) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(answer(200, {"success": True, "stopped": ended}))

    async with serving(script) as server, recoup(server.url) as client:
        assert await client.stop("c-1") == Stopped(stopped=ended)
    assert requests[0].startswith(b"POST /api/chat/c-1/stop HTTP/1.1\r\n")


# --- troubles by status -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"status": "error", "message": "Unauthorized"}, TroubleKind.UNAUTHORIZED),
        (401, b"<html>", TroubleKind.UNAUTHORIZED),
        (403, envelope("Forbidden"), TroubleKind.FORBIDDEN),
        (403, b"<html>", TroubleKind.FOREIGN),
        (404, envelope("Run not found"), TroubleKind.NOT_FOUND),
        (404, b"<html>", TroubleKind.FOREIGN),
        (400, envelope("bad"), TroubleKind.REFUSED),
        (402, envelope("credits"), TroubleKind.REFUSED),
        (405, b"", TroubleKind.FOREIGN),
        (408, b"", TroubleKind.UNAVAILABLE),
        (425, b"", TroubleKind.UNAVAILABLE),
        (429, b"", TroubleKind.THROTTLED),
        (500, envelope("Internal server error"), TroubleKind.UNAVAILABLE),
        (502, b"<html>", TroubleKind.UNAVAILABLE),
        (503, b"", TroubleKind.UNAVAILABLE),
        (301, b"", TroubleKind.FOREIGN),
        (307, b"", TroubleKind.FOREIGN),
    ],
)
async def test_status_gives_the_kind_of_trouble(status: int, body: Any, kind: TroubleKind) -> None:
    reply = answer(status, body, "retry-after: 3", "location: https://elsewhere.example")
    async with serving(always(reply)) as server, recoup(server.url) as client:
        results: list[object] = [
            await client.run_status("wrun_01"),
            await client.session_chat("s", "c"),
            await client.chats(),
            await client.stop("c"),
        ]
        async with client.stream("c", 0) as opened:
            results.append(opened)
    for trouble in results:
        assert isinstance(trouble, Trouble)
        assert (trouble.kind, trouble.status, trouble.retry_after) == (kind, status, 3.0)
        assert trouble.error


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, envelope("Run not found"), None),
        (200, RUNNING, None),
        (200, b"<html>", TroubleKind.UNREADABLE),
        (401, envelope("key"), TroubleKind.UNAUTHORIZED),
        (404, b"<html>", TroubleKind.FOREIGN),
        (308, b"", TroubleKind.FOREIGN),
        (500, envelope("x"), TroubleKind.UNAVAILABLE),
    ],
)
async def test_key_is_good_when_the_api_does_not_know_the_run(
    status: int, body: Any, kind: TroubleKind | None
) -> None:
    async with serving(always(answer(status, body))) as server, recoup(server.url) as client:
        trouble = await client.check_key()
    assert (trouble.kind if trouble else None) is kind


@pytest.mark.parametrize(
    "body",
    [
        b"<html>sign in</html>",
        b"",
        b"[1]",
        b'{"a":' + b"[" * 100_000,
        b'{"status": ' + b"9" * 10_000 + b"}",
        {"chat": CHAT, "messages": {}},
        {"chat": CHAT, "messages": ["text"]},
        {"chat": CHAT, "messages": [], "isStreaming": "no"},
        {"chat": CHAT | {"title": 5}, "messages": []},
        {"chat": CHAT | {"id": "another"}, "messages": []},
        {"messages": []},
        {"runId": "wrun_02", "status": "completed"},
        {"runId": "wrun_01", "status": None},
        {"runId": 1, "status": "running"},
        {"stopped": "yes"},
        {"chats": [{"id": "../x"}]},
        {"chats": [None]},
    ],
)
async def test_body_of_another_shape_is_unreadable(body: Any) -> None:
    async with serving(always(answer(200, body))) as server, recoup(server.url) as client:
        for result in (
            await client.run_status("wrun_01"),
            await client.session_chat("s-1", "c-1"),
            await client.chats(),
            await client.stop("c-1"),
        ):
            assert isinstance(result, Trouble)
            assert result.kind is TroubleKind.UNREADABLE
            assert result.error.startswith("the body of HTTP 200 ")


@pytest.mark.parametrize("status", [201, 204, 206])
async def test_other_success_is_unreadable(status: int) -> None:
    body: Any = b"" if status == 204 else RUNNING
    async with serving(always(answer(status, body))) as server, recoup(server.url) as client:
        result = await client.run_status("wrun_01")
    assert isinstance(result, Trouble)
    assert (result.kind, result.status) == (TroubleKind.UNREADABLE, status)
