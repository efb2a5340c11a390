"""Submissions over real sockets: when the mark comes, what is sent, what comes back."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from orchestrator.recoup.answers import (
    Accepted,
    Answered,
    Generated,
    NoAnswer,
    NotSent,
    Trouble,
    TroubleKind,
)
from tests.remote.clients import Mark, recoup
from tests.remote.rawserver import BOUND_S, Peer, always, answer, serving

BODY = {"prompt": "hello \ud83d"}
IDS = {"runId": "wrun_01", "chatId": "c-1", "sessionId": "s-1"}
ACCEPTED = Accepted("wrun_01", "c-1", "s-1")
LOCATION = "location: /api/chat/runs/wrun_01"


@pytest.fixture
def mark() -> Mark:
    return Mark()


async def test_202_with_the_three_ids_is_accepted(mark: Mark) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(answer(202, IDS | {"later": 1}, LOCATION))

    async with serving(script) as server, recoup(server.url) as client:
        assert await client.start_run(BODY, mark=mark) == ACCEPTED
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/chat/runs HTTP/1.1\r\n")
    assert b"\r\nx-api-key: recoup_sk_0123456789abcdef" in head
    assert b"\r\nuser-agent: recoup-orchestrator/" in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert body == b'{"prompt": "hello \\ud83d"}'
    assert mark.calls == 1


async def test_mark_comes_when_the_connection_stands_and_before_the_first_byte() -> None:
    received: list[bytes] = []
    connected, released = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        connected.set()
        with anyio.move_on_after(0.2):
            received.append(await peer.some(1))
        released.set()
        await peer.request()
        await peer.send(answer(202, IDS))

    async def mark() -> bool:
        with anyio.fail_after(BOUND_S):
            await connected.wait()
            await released.wait()
        return True

    async with serving(script) as server, recoup(server.url) as client:
        assert await client.start_run(BODY, mark=mark) == ACCEPTED
    assert received == []


async def test_mark_that_says_no_sends_nothing(mark: Mark) -> None:
    mark.answer = False
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.some(1))

    async with serving(script) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
        assert isinstance(result, NotSent)
        assert result.refused_by_mark
        assert len(server.peers) == 1
    assert seen == []


async def test_mark_that_raises_sends_nothing_closes_and_is_raised(mark: Mark) -> None:
    mark.error = TimeoutError("the database is gone")
    left = anyio.Event()

    async def script(peer: Peer) -> None:
        with pytest.raises(anyio.EndOfStream):
            await peer.some(1)
        left.set()

    async with serving(script) as server, recoup(server.url) as client:
        with pytest.raises(TimeoutError, match="the database is gone"):
            await client.start_run(BODY, mark=mark)
        with anyio.fail_after(BOUND_S):
            await left.wait()


async def test_mark_is_never_cancelled_and_its_time_is_not_the_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.recoup.submit.CONNECT_S", 0.1)
    finished = anyio.Event()

    async def slow_mark() -> bool:
        # Longer than connecting may take, and than the exchange once the request is out.
        with anyio.move_on_after(0.6):
            await anyio.sleep_forever()
        finished.set()
        return True

    async with (
        serving(always(answer(202, IDS))) as server,
        recoup(server.url, submit_timeout=0.3) as client,
    ):
        assert await client.start_run(BODY, mark=slow_mark) == ACCEPTED
    assert finished.is_set()


async def test_caller_cancelled_in_the_mark_lets_it_finish_and_sends_nothing() -> None:
    seen: list[bytes] = []
    marking, finished = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        seen.append(await peer.some(1))

    async def mark() -> bool:
        marking.set()
        with anyio.move_on_after(0.2):
            await anyio.sleep_forever()
        finished.set()
        return True

    async with (
        serving(script) as server,
        recoup(server.url) as client,
        anyio.create_task_group() as tasks,
    ):

        async def start() -> None:
            await client.start_run(BODY, mark=mark)

        tasks.start_soon(start)
        with anyio.fail_after(BOUND_S):
            await marking.wait()
        tasks.cancel_scope.cancel()
    assert finished.is_set()
    assert seen == []


async def test_cancelled_caller_is_cancelled_and_leaves_no_connection(mark: Mark) -> None:
    arrived = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.until_left()

    async with serving(script) as server, recoup(server.url) as client:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def start() -> None:
                    await client.start_run(BODY, mark=mark)
                    pytest.fail("a cancelled call returned")

                tasks.start_soon(start)
                with anyio.fail_after(BOUND_S):
                    await arrived.wait()
                scope.cancel()
        with anyio.fail_after(BOUND_S):
            await server.left.wait()
    assert scope.cancelled_caught


async def test_each_post_opens_a_connection_of_its_own(mark: Mark) -> None:
    async with serving(always(answer(202, IDS))) as server, recoup(server.url) as client:
        for _ in range(3):
            assert await client.start_run(BODY, mark=mark) == ACCEPTED
        assert len({peer.port for peer in server.peers}) == 3


async def test_request_that_the_transport_does_not_announce_is_held_back(
    mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.recoup.submit._HEAD_GOES_OUT", "another.name")
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        bodies.append(await peer.some(1))

    async with serving(script) as server, recoup(server.url) as client:
        assert isinstance(await client.start_run(BODY, mark=mark), NotSent)
    assert bodies == []
    assert mark.calls == 0


# --- nothing was sent -------------------------------------------------------------------------


async def test_refused_connection_was_not_sent(mark: Mark, unused_tcp_port: int) -> None:
    async with recoup(f"http://127.0.0.1:{unused_tcp_port}") as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NotSent)
    assert not result.refused_by_mark
    assert "refused" in result.error.lower() or "connect call failed" in result.error.lower()
    assert mark.calls == 0


async def test_unknown_host_was_not_sent(mark: Mark) -> None:
    async with recoup("https://no-such-host.invalid") as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NotSent)
    assert mark.calls == 0


async def test_refused_tls_was_not_sent(mark: Mark) -> None:
    async def script(peer: Peer) -> None:
        await peer.some(1)
        await peer.send(b"HTTP/1.1 400 this is not TLS\r\n\r\n")

    async with serving(script) as server, recoup(f"https://127.0.0.1:{server.port}") as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, NotSent)
    assert mark.calls == 0


@pytest.mark.parametrize("key", ["", " \n", "recoup_sk_a\r\nx-evil: 1", "sk_\u00e9"])
async def test_unusable_key_sends_nothing_and_is_not_quoted(mark: Mark, key: str) -> None:
    async with serving(always(answer(202, IDS))) as server:
        async with recoup(server.url, key=lambda: key) as client:
            result = await client.start_run(BODY, mark=mark)
        assert server.peers == []
    assert isinstance(result, NotSent)
    assert not key.strip() or key.strip() not in repr(result)
    assert mark.calls == 0


async def test_key_is_read_again_for_each_call(mark: Mark) -> None:
    keys = iter(["first", "second\n"])
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(answer(202, IDS))

    async with serving(script) as server, recoup(server.url, key=lambda: next(keys)) as client:
        await client.start_run(BODY, mark=mark)
        await client.start_run(BODY, mark=mark)
    assert b"x-api-key: first\r\n" in requests[0]
    assert b"x-api-key: second\r\n" in requests[1]


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "envelope", "error"),
    [
        ({"status": "error", "error": "No.", "missing_fields": ["a", ["b", 0]]}, True, "No."),
        ({"status": "error", "message": "Bad key"}, True, "Bad key"),
        ({"error": "other"}, False, "other"),
        ({"error": {"code": "404"}}, False, '{"error": {"code": "404"}}'),
        (b"<html>\n <b>Forbidden</b></html>", False, "<html> <b>Forbidden</b></html>"),
        (b"\xff\xfe", False, "\ufffd\ufffd"),
    ],
)
async def test_error_is_answered_in_the_servers_words(
    mark: Mark, body: Any, envelope: bool, error: str
) -> None:
    async with serving(always(answer(403, body))) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
        assert isinstance(result, Answered)
        assert result.url == f"{server.url}/api/chat/runs"
    assert (result.status, result.envelope, result.error) == (403, envelope, error)
    assert result.missing_fields == (("a", "b.0") if error == "No." else ())


async def test_empty_error_has_the_name_of_its_status(mark: Mark) -> None:
    async with serving(always(answer(502))) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, Answered)
    assert result.error == "HTTP 502 Bad Gateway"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirect_is_answered_and_not_followed(mark: Mark, status: int) -> None:
    async with serving(always(answer(202, IDS))) as elsewhere:
        reply = answer(status, b"", f"location: {elsewhere.url}/api/chat/runs", length=50)

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(reply)

        async with serving(script) as server, recoup(server.url) as client:
            result = await client.start_run(BODY, mark=mark)
        assert elsewhere.peers == []
        assert isinstance(result, Answered)
        assert not result.envelope
        assert result.location == f"{elsewhere.url}/api/chat/runs"


@pytest.mark.parametrize(
    "location", ["https://evil.example/\x1b[31mx", "http://[", "https://a:b:c/", "//"]
)
async def test_redirect_to_what_is_no_url_is_an_answer_too(mark: Mark, location: str) -> None:
    reply = answer(307, b"", f"location: {location}")
    async with serving(always(reply)) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
        trouble = await client.run_status("wrun_1")
    assert isinstance(result, Answered)
    assert (result.status, result.envelope) == (307, False)
    assert isinstance(trouble, Trouble)
    assert trouble.kind is TroubleKind.FOREIGN


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["retry-after: 7"], 7.0),
        (["retry-after: 1.5"], 1.5),
        (["retry-after: soon"], None),
        (["retry-after: -3"], None),
        (["retry-after: " + "9" * 5000], None),
        (
            ["retry-after: Fri, 31 Dec 1999 23:59:59 GMT", "date: Fri, 31 Dec 1999 23:58:59 GMT"],
            60.0,
        ),
        (["retry-after: Fri, 31 Dec 1999 23:59:59 GMT"], 0.0),
        ([], None),
    ],
)
async def test_retry_after_is_read_in_all_its_forms(
    mark: Mark, headers: list[str], seconds: float | None
) -> None:
    async with (
        serving(always(answer(503, b"busy", *headers))) as server,
        recoup(server.url) as client,
    ):
        result = await client.start_run(BODY, mark=mark)
    assert isinstance(result, Answered)
    assert result.retry_after == seconds


async def test_answer_that_comes_before_the_body_was_read_is_answered(mark: Mark) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer(413, b"too large", "connection: close"))
        await peer.until_left()

    async with serving(script) as server, recoup(server.url, submit_timeout=1.0) as client:
        result = await client.start_run({"prompt": "x" * 20_000_000}, mark=mark)
    # The write stalls, so the server's words may be lost; that is in doubt, never "not sent".
    assert isinstance(result, Answered | NoAnswer)
    assert mark.calls == 1


async def test_key_that_a_server_repeats_is_blotted_out(mark: Mark) -> None:
    body = {"status": "error", "error": "bad key recoup_sk_0123456789abcdef!"}
    async with serving(always(answer(401, body))) as server, recoup(server.url) as client:
        result = await client.start_run(BODY, mark=mark)
        assert "recoup_sk_" not in repr(client)
    assert isinstance(result, Answered)
    assert result.error == "bad key [key]!"
    assert "recoup_sk_" not in repr(result)


# --- generate ---------------------------------------------------------------------------------


async def test_generate_keeps_the_whole_answer(mark: Mark) -> None:
    body = {"text": [{"type": "text", "text": "x" * 3_000_000}], "finishReason": "stop"}
    async with serving(always(answer(200, body))) as server, recoup(server.url) as client:
        assert await client.generate(BODY, mark=mark) == Generated(body)
    assert mark.calls == 1


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, [1]), (202, IDS)])
async def test_generate_with_another_success_is_in_doubt(
    mark: Mark, status: int, body: Any
) -> None:
    async with serving(always(answer(status, body))) as server, recoup(server.url) as client:
        result = await client.generate(BODY, mark=mark)
    assert isinstance(result, NoAnswer)
    assert result.status == status


async def test_generate_of_a_host_without_it_is_answered(mark: Mark) -> None:
    async with serving(always(answer(404, b"<html>"))) as server, recoup(server.url) as client:
        result = await client.generate(BODY, mark=mark)
    assert isinstance(result, Answered)
    assert not result.envelope
