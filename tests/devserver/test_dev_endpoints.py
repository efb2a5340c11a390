from __future__ import annotations

import re
import uuid
from typing import Any

import httpx
import pytest

from orchestrator.testing import DevServer, Timing

from .client import Client, open_client, plain_client

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NOBODY = str(uuid.UUID(int=1))


async def bare(server: DevServer, method: str, path: str, **fields: Any) -> httpx.Response:
    """Send a request without the key that the other tests use."""
    async with plain_client(base_url=server.url) as http:
        return await http.request(method, path, **fields)


# --- POST /api/chat/runs --------------------------------------------------------------------


async def test_a_start_is_accepted_with_three_ids_and_a_location(client: Client) -> None:
    answer = await client.http.post("/api/chat/runs", json={"prompt": "hello"})
    assert answer.status_code == 202
    body = answer.json()
    assert set(body) == {"runId", "chatId", "sessionId"}
    assert re.fullmatch(r"wrun_[0-7][0-9A-HJKMNP-TV-Z]{25}", body["runId"])
    assert UUID.fullmatch(body["chatId"])
    assert UUID.fullmatch(body["sessionId"])
    assert answer.headers["Location"] == f"/api/chat/runs/{body['runId']}"


async def test_each_start_makes_a_run_of_its_own(client: Client) -> None:
    first, second = await client.start("same"), await client.start("same")
    assert {first.run, first.chat, first.session}.isdisjoint(
        {second.run, second.chat, second.session}
    )
    assert client.server.stats.runs_by_prompt["same"] == 2


@pytest.mark.parametrize(
    ("body", "sentence", "missing"),
    [
        (b"{", "Invalid JSON body", None),
        (b"", "Invalid JSON body", None),
        (b"[]", "Invalid input: expected object", []),
        (b"{}", "Exactly one of prompt or messages must be provided", []),
        (b'{"prompt": "  "}', "Exactly one of prompt or messages must be provided", []),
        (b'{"messages": []}', "Exactly one of prompt or messages must be provided", []),
        (
            b'{"prompt": "x", "messages": [{"role": "user", "parts": []}]}',
            "Exactly one of prompt or messages must be provided",
            [],
        ),
        (b'{"prompt": 1}', "Invalid input: expected string", ["prompt"]),
        (b'{"prompt": null}', "Invalid input: expected string", ["prompt"]),
        (b'{"messages": "x"}', "Invalid input: expected array", ["messages"]),
        (b'{"prompt": "x", "artistId": "a"}', "artistId must be a valid UUID", ["artistId"]),
    ],
)
async def test_a_bad_body_is_400_even_without_a_key(
    server: DevServer, body: bytes, sentence: str, missing: list[str] | None
) -> None:
    answer = await bare(server, "POST", "/api/chat/runs", content=body)
    assert answer.status_code == 400
    expected = {"status": "error", "error": sentence}
    assert answer.json() == (
        expected if missing is None else {**expected, "missing_fields": missing}
    )


async def test_a_blank_messages_list_beside_a_prompt_counts_as_absent(client: Client) -> None:
    await client.start("x", messages=[], topic="dropped", roomId="not checked here")


async def test_a_foreign_account_or_organization_is_403(client: Client) -> None:
    for field in ("accountId", "organizationId"):
        answer = await client.http.post("/api/chat/runs", json={"prompt": "x", field: NOBODY})
        assert (answer.status_code, answer.json()["status"]) == (403, "error")
    assert not client.server.stats.runs_by_prompt


async def test_malformed_messages_are_accepted_and_fail_without_a_trace(client: Client) -> None:
    answer = await client.http.post(
        "/api/chat/runs", json={"messages": [{"id": "1", "content": "hi"}]}
    )
    assert answer.status_code == 202
    run = client.server.runs.get(answer.json()["runId"])
    assert run is not None
    ids = type(await client.start("other"))(
        run.order.run_id, run.order.chat_id, run.order.session_id
    )
    assert await client.status(ids) == "running"
    stream = await client.stream(ids)
    assert (stream.status, stream.events, stream.done) == (200, [], True)
    assert await client.ended(ids) == "failed"
    chat = await client.chat(ids)
    assert chat["messages"] == []
    assert chat["isStreaming"] is True, "the pointer stays when a run fails early"
    assert (await client.stream(ids)).status == 204
    assert (await client.chat(ids))["isStreaming"] is False


async def test_messages_with_parts_are_answered(client: Client) -> None:
    parts = [{"type": "text", "text": "from parts"}]
    answer = await client.http.post(
        "/api/chat/runs", json={"messages": [{"role": "user", "parts": parts}]}
    )
    assert answer.status_code == 202
    assert client.server.stats.runs_by_prompt["from parts"] == 1


# --- keys -----------------------------------------------------------------------------------


async def test_credentials(server: DevServer) -> None:
    async def ask(headers: dict[str, str]) -> httpx.Response:
        return await bare(server, "GET", "/api/chats", headers=headers)

    none = await ask({})
    both = await ask({"x-api-key": server.key, "Authorization": f"Bearer {server.key}"})
    wrong = await ask({"x-api-key": "recoup_sk_other"})
    assert [none.status_code, both.status_code, wrong.status_code] == [401, 401, 401]
    assert "error" in none.json()
    assert "error" in both.json()
    assert "error" not in wrong.json()
    assert wrong.json()["message"]
    assert (await ask({"Authorization": f"Bearer {server.key}"})).status_code == 200


async def test_a_key_can_be_revoked_and_given_back(client: Client) -> None:
    server = client.server
    await client.start("before")
    server.keys.revoke(server.key)
    refused = await client.http.post("/api/chat/runs", json={"prompt": "between"})
    assert refused.status_code == 401
    server.keys.allow(server.key)
    await client.start("after")
    assert set(server.stats.runs_by_prompt) == {"before", "after"}
    assert server.stats.posts_by_prompt["between"] == 1


async def test_chats_of_another_account_are_forbidden(client: Client, server: DevServer) -> None:
    server.keys.allow("recoup_sk_second")
    ids = await client.start("mine")
    await client.ended(ids)
    headers = {"x-api-key": "recoup_sk_second"}
    for method, path in (
        ("GET", f"/api/chat/{ids.chat}/stream"),
        ("POST", f"/api/chat/{ids.chat}/stop"),
        ("GET", f"/api/sessions/{ids.session}/chats/{ids.chat}"),
    ):
        assert (await bare(server, method, path, headers=headers)).status_code == 403
    # The state route has no owner check, and the list holds only one's own chats.
    status = await bare(server, "GET", f"/api/chat/runs/{ids.run}", headers=headers)
    assert status.json()["status"] == "completed"
    assert (await bare(server, "GET", "/api/chats", headers=headers)).json()["chats"] == []


# --- reads ----------------------------------------------------------------------------------


async def test_not_found_answers(client: Client) -> None:
    ids = await client.start("x")
    for path, status, error in (
        ("/api/chat/runs/wrun_NONE", 404, "Run not found"),
        (f"/api/chat/{NOBODY}/stream", 404, "Chat not found"),
        ("/api/chat/nonsense/stream", 400, "chatId must be a valid UUID"),
        (f"/api/sessions/{NOBODY}/chats/{ids.chat}", 404, "Session not found"),
        (f"/api/sessions/{ids.session}/chats/{NOBODY}", 404, "Chat not found"),
        (f"/api/chats/{ids.chat}/messages", 404, "Chat room not found"),
    ):
        answer = await client.http.get(path)
        assert (answer.status_code, answer.json()["error"]) == (status, error)


async def test_a_nonsense_session_is_500_without_the_envelope(client: Client) -> None:
    ids = await client.start("x")
    answer = await client.http.get(f"/api/sessions/nonsense/chats/{ids.chat}")
    assert answer.status_code == 500
    assert "status" not in answer.text


async def test_other_routes_and_methods_answer_as_the_platform_does(client: Client) -> None:
    missing = await client.http.get("/api/nothing")
    assert missing.status_code == 404
    assert "text/html" in missing.headers["content-type"]
    wrong = await client.http.put("/api/chat/runs", json={})
    assert (wrong.status_code, wrong.content) == (405, b"")
    options = await client.http.options("/api/chat/runs")
    assert options.status_code == 200
    assert options.headers["access-control-allow-origin"] == "*"
    assert not client.server.stats.requests()


async def test_the_chat_grows_under_one_message_id(client: Client) -> None:
    ids = await client.start("grow [steps=3 tool=search tool_time=0.8]")
    seen: list[dict[str, Any]] = []
    while await client.status(ids) == "running":
        messages = (await client.chat(ids))["messages"]
        if messages and (not seen or messages[0] != seen[-1]):
            seen.append(messages[0])
    final = await client.message(ids)
    assert {message["id"] for message in seen} == {final["id"]}
    assert len(seen) >= 2
    for message in seen:
        assert final["parts"][: len(message["parts"])] == message["parts"]
    steps = [part["type"] for part in final["parts"]].count("step-start")
    assert steps == 3


async def test_chats_are_listed_from_their_first_message_on(client: Client) -> None:
    artist = str(uuid.uuid4())
    silent = await client.start("never [no_message]")
    slow = await client.start("waits [first=60]")
    ids = await client.start("listed", artistId=artist)
    await client.ended(ids)
    await client.ended(silent)
    chats = (await client.http.get("/api/chats")).json()
    assert chats["status"] == "success"
    (row,) = chats["chats"]
    assert (row["id"], row["sessionId"], row["artistId"]) == (ids.chat, ids.session, artist)
    assert row["title"] == "Scheduled generation"
    assert slow.chat != row["id"]
    filtered = await client.http.get("/api/chats", params={"artist_account_id": NOBODY})
    assert filtered.json()["chats"] == []
    foreign = await client.http.get("/api/chats", params={"account_id": NOBODY})
    assert foreign.status_code == 403


async def test_the_chat_points_at_its_run_while_it_goes_on(client: Client) -> None:
    ids = await client.start("pointed [tail=60]")
    chat = await client.chat(ids)
    assert (chat["chat"]["activeStreamId"], chat["isStreaming"]) == (ids.run, True)
    done = await client.start("over")
    await client.ended(done)
    chat = await client.chat(done)
    assert (chat["chat"]["activeStreamId"], chat["isStreaming"]) == (None, False)


# --- stop -----------------------------------------------------------------------------------


async def test_a_stop_cancels_and_waits(client: Client) -> None:
    ids = await client.start("stop me [steps=2 tool_time=60]")
    answer = await client.stop(ids)
    assert answer.json() == {"success": True, "stopped": True}
    assert await client.status(ids) == "cancelled"
    again = await client.stop(ids)
    assert again.json() == {"success": True, "stopped": False}
    assert [stop.stopped for stop in client.server.stats.stops] == [True, False]


async def test_a_stop_can_lose_the_race(client: Client) -> None:
    ids = await client.start("quick [stop_time=5 first=0.3]")
    assert (await client.stop(ids)).json()["stopped"] is True
    assert await client.status(ids) == "completed"


async def test_a_stop_that_does_not_end_the_run_in_time_is_504() -> None:
    async with DevServer(timing=Timing(stop_limit=0.05)) as server, open_client(server) as http:
        client = Client(server, http)
        ids = await client.start("stubborn [hang stop_time=0.2]")
        answer = await client.stop(ids)
        assert (answer.status_code, answer.json()["status"]) == (504, "error")
        assert await client.status(ids) == "running"
        assert await client.ended(ids) == "cancelled"


async def test_a_stop_without_a_pointer_proves_nothing(client: Client) -> None:
    ids = await client.start("hidden [no_stream tail=60]")
    assert (await client.stop(ids)).json() == {"success": True, "stopped": False}
    assert await client.status(ids) == "running"
    assert (await client.stream(ids)).status == 204


# --- the older endpoint ---------------------------------------------------------------------


async def test_generate_answers_with_the_whole_text(client: Client) -> None:
    room = str(uuid.uuid4())
    prompt = 'old [steps=2 reasoning="hm" sources text="The end."]'
    answer = await client.http.post(
        "/api/chat/generate", json={"prompt": prompt, "roomId": room, "topic": "t"}
    )
    assert answer.status_code == 200
    body = answer.json()
    assert body["text"] == [{"type": "text", "text": "The end."}]
    assert body["reasoningText"] == "hmhm"
    assert len(body["sources"]) == 2
    assert body["finishReason"] == "stop"
    usage = body["usage"]
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"]
    assert set(body["response"]) == {"messages", "headers", "body"}
    rows = (await client.http.get(f"/api/chats/{room}/messages")).json()["data"]
    assert [row["content"]["role"] for row in rows] == ["user", "assistant"]


async def test_generate_fails_with_the_run(client: Client) -> None:
    answer = await client.http.post("/api/chat/generate", json={"prompt": "old [fail]"})
    assert answer.status_code == 500
    assert answer.json() == {"status": "error", "error": "Internal server error"}
