"""Ids, keys and arguments that never reach a URL, a header or a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.recoup.answers import (
    Trouble,
    TroubleKind,
)
from orchestrator.recoup.client import RecoupClient
from tests.remote.clients import recoup
from tests.remote.rawserver import always, answer, serving

if TYPE_CHECKING:
    from collections.abc import Callable


RUNNING = {"runId": "wrun_01", "status": "running"}


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a?b", "a b", "%2e", "é", "x" * 129, "a\n"])
async def test_id_that_is_none_never_enters_a_url(bad: str) -> None:
    async with serving(always(answer(200, RUNNING))) as server, recoup(server.url) as client:
        async with client.stream(bad, 0) as opened:
            results = [
                opened,
                await client.run_status(bad),
                await client.session_chat(bad, "c"),
                await client.session_chat("s", bad),
                await client.stop(bad),
            ]
        assert server.peers == []
    for result in results:
        assert isinstance(result, Trouble)
        assert result.kind is TroubleKind.REFUSED


def unreadable_file() -> str:
    raise PermissionError(13, "Permission denied", "/etc/key")


def undecodable_file() -> str:
    return b"recoup_sk_\xff".decode()


@pytest.mark.parametrize("key", [unreadable_file, undecodable_file, str])
async def test_key_that_cannot_be_read_is_unauthorized(key: Callable[[], str]) -> None:
    async with serving(always(answer(200, RUNNING))) as server:
        async with recoup(server.url, key=key) as client, client.stream("c", 0) as opened:
            results = [await client.run_status("wrun_01"), await client.check_key(), opened]
        assert server.peers == []
    for result in results:
        assert isinstance(result, Trouble)
        assert result.kind is TroubleKind.UNAUTHORIZED
        assert "recoup_sk_" not in repr(result)


async def test_key_is_in_no_word_of_a_trouble() -> None:
    reply = answer(403, b"<pre>x-api-key: recoup_sk_0123456789abcdef</pre>")
    async with serving(always(reply)) as server, recoup(server.url) as client:
        async with client.stream("c", 0) as opened:
            results = [await client.run_status("wrun_01"), opened]
        assert "recoup_sk_" not in repr(client) + str(client)
    for result in results:
        assert "recoup_sk_" not in repr(result)
        assert "[key]" in repr(result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_url": "http://api.example.com"}, "base_url: 'http://api.example.com': .*https"),
        ({"base_url": "ftp://127.0.0.1"}, "base_url"),
        ({"base_url": "api.example.com"}, "base_url"),
        ({"base_url": "https://"}, "base_url"),
        ({"base_url": "https://h/?a=1"}, "base_url"),
        ({"base_url": "https://h/#a"}, "base_url"),
        ({"base_url": "https://ho st"}, "base_url"),
        ({"base_url": "https://u:secret@h"}, "base_url"),
        ({"proxy": "socks5://u:secret@h:1"}, "proxy"),
        ({"proxy": "h:1"}, "proxy"),
        ({"max_calls": 0}, "max_calls: 0"),
        ({"max_streams": 0}, "max_streams: 0"),
        ({"call_timeout": float("inf")}, "call_timeout: inf"),
        ({"submit_timeout": -1.0}, "submit_timeout"),
    ],
)
def test_argument_that_cannot_be_used_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        recoup(**({"url": "https://api.example.com"} | change_of_url(change)))
    assert "secret" not in str(caught.value)


def change_of_url(change: dict[str, Any]) -> dict[str, Any]:
    return {"url" if name == "base_url" else name: value for name, value in change.items()}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost", "https://h/prefix/"]
)
def test_loopback_may_do_without_tls(url: str) -> None:
    assert isinstance(recoup(url), RecoupClient)
