from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import httpx

from orchestrator.devserver import serve
from orchestrator.testing import DevServer, Pace, Timing

from .client import BOUND_S, Client, open_client, plain_client, until

if TYPE_CHECKING:
    from pathlib import Path

_SERVE = """
import sys, anyio
from orchestrator.devserver import serve
anyio.run(lambda: serve(
    port=int(sys.argv[1]), database=sys.argv[2], on_ready=lambda url: print(url, flush=True)
))
"""


async def test_runs_go_on_after_a_restart_with_the_same_chunks(tmp_path: Path) -> None:
    timing = Timing(pace=Pace(chunk=0.005))
    database = tmp_path / "dev.db"
    # The tail: a reader that is late must find the run still going.
    prompt = r'x [steps=3 tool=search text="one \ud83d two" tokens=5 tail=2]'
    async with DevServer(timing=timing, database=database) as server, open_client(server) as http:
        client = Client(server, http)
        ids = await client.start(prompt)
        done = await client.start("half \ud83d")
        cancelled = await client.start("stopped [hang]")
        await client.stop(cancelled)
        await client.ended(done)
        result = await client.message(done)
        await client.written(ids, 20)
        run = server.runs.get(ids.run)
        assert run is not None
        before = list(run.chunks)
    async with DevServer(timing=timing, database=database) as server, open_client(server) as http:
        client = Client(server, http)
        again = server.runs.get(ids.run)
        assert again is not None
        assert list(again.chunks)[: len(before)] == before
        assert again.plan == run.plan
        answer = await client.stream(ids, len(before))
        assert [*before, *answer.events] == list(again.plan.chunks)
        assert await client.ended(ids) == "completed"
        assert await client.message(done) == result
        assert await client.status(cancelled) == "cancelled"
        assert server.stats.runs_by_prompt["half \ud83d"] == 1
        assert server.stats.posts_by_prompt.total() == 3
        assert set(server.stats.posts_by_prompt) == set(server.stats.runs_by_prompt)


async def test_a_killed_server_goes_on_where_its_readers_stood(tmp_path: Path) -> None:
    database = str(tmp_path / "dev.db")
    prompt = "x [steps=2 tokens=40 delay=0.02]"

    def start(port: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, port, database], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    process, url = start("0")
    key = {"x-api-key": "recoup_sk_dev"}
    raw = b""
    try:
        async with plain_client(headers=key) as http:
            ids = (await http.post(f"{url}/api/chat/runs", json={"prompt": prompt})).json()
            stream = f"{url}/api/chat/{ids['chatId']}/stream"
            with contextlib.suppress(httpx.TransportError):
                async with http.stream("GET", stream) as answer:
                    async for piece in answer.aiter_raw():
                        raw += piece
                        if raw.count(b"\n\n") >= 20:
                            process.kill()
            assert b"[DONE]" not in raw, "the stream broke with the process"
            _close(process)
            seen = raw.count(b"\n\n")
            process, again = start(url.rpartition(":")[2])
            assert again == url
            rest = await http.get(stream, params={"startIndex": seen})
            assert int(rest.headers["x-workflow-stream-tail-index"]) >= seen - 1
            truth = (await http.get(f"{url}/_dev/runs/{ids['runId']}")).json()
            assert truth["status"] == "completed"
            frames = [*raw.split(b"\n\n")[:seen], *rest.content.split(b"\n\n")]
            assert [frame for frame in frames if frame][-1] == b"data: [DONE]"
            assert len([frame for frame in frames if frame]) - 1 == len(truth["chunks"])
            stats = (await http.get(f"{url}/_dev/stats")).json()
            assert stats["posts_by_prompt"] == {prompt: 1}
    finally:
        _close(process)


def _close(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(BOUND_S)
    if process.stdout is not None:
        process.stdout.close()


async def test_serve_runs_until_cancelled() -> None:
    urls: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await serve(keys=["recoup_sk_mine"], on_ready=urls.append)

        tasks.start_soon(run)
        await until(lambda: bool(urls))
        async with plain_client() as http:
            headers = {"x-api-key": "recoup_sk_mine"}
            answer = await http.get(f"{urls[0]}/api/chats", headers=headers)
            assert answer.json() == {"status": "success", "chats": []}
        tasks.cancel_scope.cancel()
    async with plain_client() as http:
        try:
            await http.get(urls[0])
        except httpx.ConnectError:
            return
    raise AssertionError("the port is still open")


async def test_a_server_that_goes_down_cancels_nothing(tmp_path: Path) -> None:
    database = tmp_path / "dev.db"
    server = await DevServer(database=database).__aenter__()
    server.faults.add("cancel-on-leave")
    async with open_client(server) as http:
        client = Client(server, http)
        ids = await client.start("x [hang]")

        async def read() -> None:
            with contextlib.suppress(httpx.TransportError):
                await client.stream(ids)

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await until(lambda: server.stats.open_streams == 1)
            await server.__aexit__(None, None, None)
    async with DevServer(database=database) as server, open_client(server) as http:
        assert await Client(server, http).status(ids) == "running"
