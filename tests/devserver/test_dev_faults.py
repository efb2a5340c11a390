from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from orchestrator.testing import PRESETS, DevServer, Fault, Faults, Kind

from .client import ids_of, open_client, plain_client, until

if TYPE_CHECKING:
    from .client import Client


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def strikes(faults: Faults, count: int, **about: str) -> list[bool]:
    return [faults.take(Kind.ANSWER, **about) is not None for _ in range(count)]


# --- the switchboard ------------------------------------------------------------------------


def test_a_fault_strikes_as_often_as_it_says() -> None:
    faults = Faults(clock=Clock())
    faults.add("server-error", times=2, skip=1)
    assert strikes(faults, 5) == [False, True, True, False, False]
    assert faults.listed()[0]["active"] is False


def test_a_fault_ends_with_its_time() -> None:
    clock = Clock()
    faults = Faults(clock=clock)
    faults.add("server-error", seconds=5)
    assert strikes(faults, 2) == [True, True]
    clock.now = 5.0
    assert strikes(faults, 1) == [False]


def test_a_probability_is_repeatable() -> None:
    runs = []
    for _ in range(2):
        faults = Faults(clock=Clock(), seed=7)
        faults.add("server-error", probability=0.3)
        runs.append(strikes(faults, 1000))
    assert runs[0] == runs[1]
    assert 240 < sum(runs[0]) < 360


def test_a_fault_strikes_only_where_it_belongs() -> None:
    faults = Faults(clock=Clock())
    number = faults.add("server-error", route="status", prompt="red")
    assert strikes(faults, 1, route="status", prompt="a red one") == [True]
    assert strikes(faults, 1, route="status", prompt="a blue one") == [False]
    assert strikes(faults, 1, route="stream", prompt="a red one") == [False]
    faults.remove(number)
    assert faults.listed() == []


@pytest.mark.parametrize("wrong", [{"route": "nowhere"}, {"when": "never"}, {"kind": "unheard"}])
def test_a_fault_that_makes_no_sense_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"nowhere|never|unheard"):
        Faults(clock=Clock()).add("server-error", **wrong)


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(name for name, fault in PRESETS.items() if fault.kind is Kind.ANSWER)
)
async def test_every_preset_answer_is_given(client: Client, name: str) -> None:
    fault = PRESETS[name]
    client.server.faults.add(name, route="start", times=1)
    answer = await client.http.post("/api/chat/runs", json={"prompt": "x"})
    assert answer.status_code == fault.status
    for header, text in fault.headers.items():
        assert answer.headers[header] == text
    if fault.body is None:
        assert answer.json() == {"status": "error", fault.key: fault.error}
    else:
        assert answer.text == fault.body
    assert client.server.stats.posts_by_prompt["x"] == 1
    assert client.server.stats.runs_by_prompt["x"] == int(fault.when == "after")
    await client.start("x")


async def test_an_outage_takes_every_route(client: Client) -> None:
    ids = await client.start("x")
    client.server.faults.add("proxy-503")
    for method, path in (
        ("POST", "/api/chat/runs"),
        ("GET", f"/api/chat/runs/{ids.run}"),
        ("GET", f"/api/chat/{ids.chat}/stream"),
        ("POST", f"/api/chat/{ids.chat}/stop"),
        ("GET", f"/api/sessions/{ids.session}/chats/{ids.chat}"),
        ("GET", "/api/chats"),
        ("GET", f"/api/chats/{ids.chat}/messages"),
        ("POST", "/api/chat/generate"),
    ):
        assert (await client.http.request(method, path)).status_code == 503
    client.server.faults.clear()
    assert await client.ended(ids) == "completed"


# --- lost and slow answers ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.RESET])
@pytest.mark.parametrize(("when", "started"), [("before", 0), ("after", 1)])
async def test_an_answer_is_lost(client: Client, kind: Kind, when: str, started: int) -> None:
    client.server.faults.add(Fault(kind=kind, route="start", when=when, times=1))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await client.http.post("/api/chat/runs", json={"prompt": "x"})
    stats = client.server.stats
    assert stats.posts_by_prompt["x"] == 1
    assert stats.runs_by_prompt["x"] == started
    (call,) = stats.requests("start")
    assert (call.status, call.faults) == (None, [kind])


async def test_a_202_breaks_in_its_body_but_names_the_run(client: Client) -> None:
    client.server.faults.add("broken-body", times=1)
    request = client.http.build_request("POST", "/api/chat/runs", json={"prompt": "x"})
    answer = await client.http.send(request, stream=True)
    assert answer.status_code == 202
    run_id = answer.headers["Location"].removeprefix("/api/chat/runs/")
    with pytest.raises(httpx.RemoteProtocolError):
        await answer.aread()
    await answer.aclose()
    assert client.server.runs.get(run_id) is not None


async def test_an_answer_is_slow_and_the_run_starts_although_the_client_left(
    client: Client,
) -> None:
    client.server.faults.add(Fault(kind=Kind.DELAY, route="start", delay=0.2, times=1))
    with pytest.raises(httpx.ReadTimeout):
        await client.http.post("/api/chat/runs", json={"prompt": "x"}, timeout=0.05)
    assert client.server.stats.runs_by_prompt["x"] == 0
    await until(lambda: client.server.stats.runs_by_prompt["x"] == 1)


async def test_provisioning_takes_its_time(client: Client) -> None:
    began = time.monotonic()
    await client.start("x [provision=0.1]")
    assert time.monotonic() - began >= 0.1


# --- streams --------------------------------------------------------------------------------


async def test_a_stream_is_cut_again_and_again_while_the_run_goes_on(client: Client) -> None:
    client.server.faults.add(Fault(kind=Kind.CUT, route="stream", after=0.05))
    ids = await client.start("x [tokens=150 delay=0.01]")
    ends = []
    while await client.status(ids) == "running":
        answer = await client.stream(ids)
        if answer.status == 200:
            assert answer.done
            ends.append("finish" in answer.types)
    assert len(ends) >= 3
    assert not any(ends[:-1])


async def test_a_connection_drops_inside_a_chunk(client: Client) -> None:
    client.server.faults.add("drop", chunks=4, times=1)
    ids = await client.start("x [tail=60]")
    await client.written(ids, 10)
    answer = await client.stream(ids)
    assert (answer.broken, answer.done, len(answer.events)) == (True, False, 4)
    assert answer.rest.startswith(b"data: {")
    assert await client.status(ids) == "running"


async def test_a_stream_is_hidden_or_ends_in_a_lone_finish(client: Client) -> None:
    ids = await client.start("x [tail=60]")
    client.server.faults.add("no-stream", times=2)
    assert (await client.stream(ids)).status == 204
    client.server.faults.add("lone-finish")
    answer = await client.stream(ids)
    assert (answer.status, answer.events, answer.done) == (200, [{"type": "finish"}], True)
    assert "x-workflow-run-id" not in answer.headers
    await client.stop(ids)
    assert (await client.stream(ids, 3)).events == [{"type": "finish"}]


async def test_a_stream_names_another_run_and_no_tail(client: Client) -> None:
    client.server.faults.add("cut", kind=Kind.OTHER_RUN)
    client.server.faults.add("cut", kind=Kind.NO_TAIL)
    ids = await client.start("x [first=0.3]")
    answer = await client.stream(ids)
    assert answer.headers["x-workflow-run-id"] != ids.run
    assert "x-workflow-stream-tail-index" not in answer.headers


async def test_a_reader_that_leaves_cancels_the_run_only_where_it_does(client: Client) -> None:
    async def leave(prompt: str) -> str:
        ids = await client.start(f"{prompt} [hang]")
        path = f"/api/chat/{ids.chat}/stream"
        async with client.http.stream("GET", path) as answer:
            await anext(aiter(answer.aiter_raw()))
        await until(lambda: client.server.stats.open_streams == 0)
        return await client.status(ids)

    assert await leave("safe") == "running"
    client.server.faults.add("cancel-on-leave")
    assert await leave("unsafe") == "cancelled"
    run = next(run for run in client.server.runs if run.status == "cancelled")
    assert run.in_slot, "the run's own clean-up never ran"


async def test_a_cut_of_the_server_cancels_nothing(client: Client) -> None:
    client.server.faults.add("cancel-on-leave")
    client.server.faults.add("cut", chunks=2, times=1)
    ids = await client.start("x [first=2]")
    assert (await client.stream(ids)).done
    assert await client.ended(ids) == "completed"


# --- runs and chats -------------------------------------------------------------------------


async def test_a_run_stays_running_until_it_is_stopped(client: Client) -> None:
    client.server.faults.add("stuck", times=1)
    ids = await client.start("x")
    run = client.server.runs.get(ids.run)
    assert run is not None
    await until(lambda: run.position == len(run.plan.beats) - 1)
    with anyio.move_on_after(0.1) as patience:
        await client.stream(ids)
    assert patience.cancelled_caught, "its stream stays open and silent"
    assert await client.status(ids) == "running"
    assert (await client.message(ids))["role"] == "assistant"
    await client.stop(ids)
    assert await client.status(ids) == "cancelled"


async def test_a_run_that_pauses_for_ever_goes_on_when_it_is_released(client: Client) -> None:
    ids = await client.start("x [steps=2 tool_time=inf tail=inf text=Done.]")
    run = client.server.runs.get(ids.run)
    assert run is not None
    await until(lambda: run.chunks[-1:] != () and run.chunks[-1]["type"] == "tool-input-available")
    client.server.runs.release(run)
    await until(lambda: run.chunks[-1]["type"] == "finish")
    assert await client.status(ids) == "running"
    answer = await client.http.post(f"/_dev/runs/{ids.run}/release")
    assert answer.json()["status"] == "completed"
    assert (await client.message(ids))["parts"][-1]["text"] == "Done."
    client.server.runs.release(run)
    assert await client.status(ids) == "completed"


async def test_messages_are_missing_or_lack_the_last_step(client: Client) -> None:
    ids = await client.start("x [steps=2 commit]")
    assert await client.ended(ids) == "completed"
    client.server.faults.add("no-messages", times=1)
    assert (await client.chat(ids))["messages"] == []
    client.server.faults.add("missing-step", times=1)
    early, whole = await client.message(ids), await client.message(ids)
    assert whole["parts"][: len(early["parts"])] == early["parts"]
    assert [part["type"] for part in early["parts"]].count("step-start") == 1
    assert [part["type"] for part in whole["parts"]].count("step-start") == 2
    assert len(early["metadata"]["stepFinishReasons"]) == 1


async def test_a_fraction_of_the_polls_fails(client: Client) -> None:
    client.server.faults.add("run-not-found", probability=0.5)
    ids = await client.start("x")
    answers = [(await client.http.get(f"/api/chat/runs/{ids.run}")).status_code for _ in range(40)]
    assert {200, 404} == set(answers)


async def test_a_stop_that_takes_too_long_is_504(client: Client) -> None:
    client.server.faults.add(
        Fault(kind=Kind.ANSWER, route="stop", when="after", status=504, error="too long", times=1)
    )
    ids = await client.start("x [hang]")
    assert (await client.stop(ids)).status_code == 504


# --- the door -------------------------------------------------------------------------------


async def test_connections_are_refused_and_streams_broken(client: Client) -> None:
    ids = await client.start("x [tokens=40 delay=0.02]")
    broken = []

    async def read() -> None:
        try:
            broken.append((await client.stream(ids)).broken)
        except httpx.ReadError:
            broken.append(True)

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        await until(lambda: client.server.stats.open_streams == 1)
        await client.server.refuse()
    assert broken == [True]
    with pytest.raises(httpx.ConnectError):
        await client.start("y")
    await client.server.accept()
    assert await client.ended(ids) == "completed"
    assert (await client.message(ids))["id"]


async def test_a_connection_that_stands_is_reset_while_others_are_refused(
    client: Client,
) -> None:
    server = client.server
    limits = httpx.Limits(max_keepalive_connections=1)
    headers = {"x-api-key": server.key}
    async with plain_client(base_url=server.url, headers=headers, limits=limits) as http:
        assert (await http.get("/api/chats")).status_code == 200
        await server.refuse()
        with pytest.raises(httpx.TransportError):
            await http.get("/api/chats")
        await server.accept()
        assert (await http.get("/api/chats")).status_code == 200


# --- the control routes ---------------------------------------------------------------------


async def test_another_process_can_switch_and_look(client: Client) -> None:
    http, prompt = client.http, "x [first=0.3]"
    added = await http.post(
        "/_dev/faults", json={"preset": "proxy-502", "route": "start", "times": 1}
    )
    assert added.status_code == 201
    by_kind = await http.post("/_dev/faults", json={"kind": "cut", "route": "stream", "chunks": 3})
    listed = (await http.get("/_dev/faults")).json()
    assert [fault["kind"] for fault in listed["faults"]] == ["answer", "cut"]
    assert "cancel-on-leave" in listed["presets"]
    assert (await http.post("/api/chat/runs", json={"prompt": prompt})).status_code == 502
    answer = await http.post("/api/chat/runs", json={"prompt": prompt})
    ids = ids_of(answer.json())
    assert len((await client.stream(ids)).events) == 3
    await http.delete(f"/_dev/faults/{by_kind.json()['id']}")
    assert len((await http.get("/_dev/faults")).json()["faults"]) == 1
    await http.delete("/_dev/faults")
    assert (await http.get("/_dev/faults")).json()["faults"] == []

    await client.ended(ids)
    stats = (await http.get("/_dev/stats")).json()
    assert (stats["posts_by_prompt"], stats["runs_by_prompt"]) == ({prompt: 2}, {prompt: 1})
    assert [call["status"] for call in stats["requests"]] == [502, 202, 200]
    run = (await http.get(f"/_dev/runs/{ids.run}")).json()
    assert run["chunks"][-1]["type"] == "finish"
    assert run["message"] == await client.message(ids)
    assert [run["runId"] for run in (await http.get("/_dev/runs")).json()["runs"]] == [ids.run]


async def test_another_process_can_change_keys_settle_runs_and_shut_the_door(
    client: Client,
) -> None:
    http, server = client.http, client.server
    ids = await client.start("x [hang]")
    settled = await http.post(f"/_dev/runs/{ids.run}/settle", json={"status": "cancelled"})
    assert settled.json()["status"] == "cancelled"
    assert await client.status(ids) == "cancelled"
    await http.post("/_dev/keys", json={"revoke": [server.key]})
    assert (await http.get("/api/chats")).status_code == 401
    await http.post("/_dev/keys", json={"allow": [server.key]})
    assert (await http.get("/api/chats")).status_code == 200
    assert (await http.post("/_dev/refuse", json={"seconds": 0.05})).status_code == 204
    assert (await http.get("/api/chats")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/_dev/faults", '{"preset": "no such"}'),
        ("/_dev/faults", '{"kind": "no such"}'),
        ("/_dev/faults", '{"kind": "cut", "field": 1}'),
        ("/_dev/faults", "nonsense"),
        ("/_dev/faults", "[]"),
    ],
)
async def test_a_wrong_switch_is_400(client: Client, path: str, body: str) -> None:
    assert (await client.http.post(path, content=body)).status_code == 400
    assert client.server.faults.listed() == []


async def test_the_server_closes_with_requests_under_way() -> None:
    raised: list[str] = []
    server = await DevServer().__aenter__()
    async with open_client(server) as http:

        async def wait() -> None:
            try:
                await http.post("/api/chat/generate", json={"prompt": "x [hang]"})
            except httpx.TransportError as error:
                raised.append(type(error).__name__)

        async with anyio.create_task_group() as requests:
            requests.start_soon(wait)
            await until(lambda: server.stats.posts_by_prompt.total() == 1)
            with anyio.fail_after(5):
                await server.__aexit__(None, None, None)
    assert len(raised) == 1
