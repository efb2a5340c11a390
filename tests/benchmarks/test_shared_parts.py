"""The benchmarks' shared parts: what the stub says, what figures keep, what is durable."""

from __future__ import annotations

import asyncio
import sys

import psycopg
import pytest

from benchmarks.common.database import NotDurableError, durable_server, plain, written
from benchmarks.common.life import client_of, live
from benchmarks.common.measured import Measured, quantile
from benchmarks.common.process import measure, stub
from benchmarks.common.rounds import interleaved, median_of
from benchmarks.floor import measured_floor
from benchmarks.peers.runner import crew
from benchmarks.stub_answers import Answers
from orchestrator.recoup import fold_message
from orchestrator.recoup.answers import Accepted, NoStream, RunState, RunStatus, SessionChat
from orchestrator.recoup.stream import OpenStream
from tests import postgres


async def _yes() -> bool:
    return True


@pytest.mark.parametrize("chunks", [8, 20, 500])
def test_the_stubs_message_is_what_its_chunks_fold_to(chunks: int) -> None:
    answers = Answers(chunks)
    assert len(answers.all_chunks(7)) == chunks
    folded = fold_message(answers.all_chunks(7))
    assert folded.fatal is None
    assert folded.message == answers.stored(7)


def test_the_floor_starts_each_job_once() -> None:
    measured = measured_floor(jobs=30, in_flight=10)
    assert (measured.name, measured.jobs) == ("floor", 30)
    assert measured.seconds > 0
    assert measured.cpu_s > 0
    # In a process of its own it prints the same as one line.
    assert measure("benchmarks.floor", ["--jobs", "5", "--in-flight", "2"]).jobs == 5


async def test_the_stub_streams_slowly_resumes_and_counts_who_leaves() -> None:
    with stub("--stream-s", "0.4", "--latency-ms", "5", "--loop", "asyncio") as served:
        async with client_of(served.base_url, 4) as client:
            await asyncio.gather(*(live(client, f"prompt {number}") for number in range(4)))
            accepted = await client.start_run({"prompt": "left"}, mark=_yes)
            assert isinstance(accepted, Accepted)
            chat_id, session_id = accepted.chat_id or "", accepted.session_id or ""
            async with client.stream(chat_id, 0) as opened:
                assert isinstance(opened, OpenStream)
                assert opened.head.run_id == accepted.run_id
                async for _ in opened.reads():
                    break
            chat = await client.session_chat(session_id, chat_id)
            assert isinstance(chat, SessionChat)
            assert (chat.active_stream_id, chat.messages) == (accepted.run_id, ())
            async with client.stream(chat_id, 19) as opened:
                assert isinstance(opened, OpenStream)
                body = b"".join([data async for data in opened.reads()])
            assert body.startswith(b'data: {"type":"finish"')
            assert body.endswith(b"data: [DONE]\n\n")
            state = await client.run_status(accepted.run_id)
            assert isinstance(state, RunState)
            assert state.status is RunStatus.COMPLETED
            async with client.stream(chat_id, 20) as opened:
                assert isinstance(opened, NoStream)
    served.check(5)
    assert served.counts["streams_left"] == 1
    assert served.counts["streams_open"] == 0
    with pytest.raises(AssertionError):
        served.check(6)


def test_figures_read_back_and_medians_are_of_all_rounds() -> None:
    made = [Measured("a", 10, seconds, seconds / 2, {"n": seconds}) for seconds in (1.0, 9.0, 2.0)]
    assert Measured.of_line(made[0].line()) == made[0]
    assert median_of(made) == Measured("a", 10, 2.0, 1.0, {"n": 2.0})
    assert [quantile(range(1, 101), share) for share in (0.5, 0.95, 1.0)] == [50, 95, 100]
    order = [name for name, _ in interleaved(2, {"x": lambda: made[0], "y": lambda: made[1]})]
    assert order == ["x", "y", "y", "x"]


def test_the_database_is_durable_and_counts_what_was_written() -> None:
    with durable_server() as database, database.fresh() as url:
        with psycopg.connect(plain(url), autocommit=True) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            connection.execute("CREATE TABLE t (n integer)")
            before = written(plain(url))
            for _ in range(5):
                connection.execute("INSERT INTO t VALUES (1)")
                connection.execute("SELECT * FROM t")
        assert written(plain(url)).since(before, 5)["commits_per_job"] == 1.0


def test_a_server_that_would_lose_data_is_refused() -> None:
    with (
        postgres.own_server() as server,
        pytest.raises(NotDurableError, match="fsync is off"),
        durable_server(postgres.text_of(server.url)),
    ):
        pytest.fail("it was taken")


def test_peers_that_are_not_installed_are_named() -> None:
    found = crew(sys.executable)
    assert set(found.versions) | set(found.left_out) == {"pgqueuer", "procrastinate", "oban"}
    assert "3.12" in found.left_out["oban"]
