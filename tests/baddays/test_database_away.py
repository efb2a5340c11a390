"""PostgreSQL goes away and comes back; seconds stand for minutes (see `night.FAST`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from sqlalchemy import text

from orchestrator.store import migrations
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.testing import DevServer, Fault, Kind, Pace, Timing

from ..postgres import Own, migrated, own_server, text_of
from .night import Night

SLOW = '[text="Slow {0}." first=6]'


@pytest.fixture(scope="module")
def server() -> Iterator[Own]:
    with own_server() as own:
        yield own


@pytest.fixture
def url(server: Own) -> Iterator[str]:
    with migrated(server) as name:
        yield text_of(server.url.set(database=name))


BEATING = "SELECT count(*) FROM workers WHERE last_heartbeat_at > started_at"


@asynccontextmanager
async def away(server: Own, mode: str = "fast") -> AsyncIterator[None]:
    """Stop the server for the length of the block."""
    server.stop(mode)
    try:
        yield
    finally:
        server.start()


def dev_server(**timing: float) -> DevServer:
    return DevServer(timing=Timing(pace=Pace(chunk=0.001), **timing))


@pytest.mark.parametrize(("mode", "away_s"), [("poll", 1.0), ("stream", 4.0)])
async def test_runs_outlast_an_outage(
    server: Own, url: str, tmp_path: Path, mode: str, away_s: float
) -> None:
    """Shorter than `dead_after`, and twice as long; two workers, and none buries the other."""
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url, FOLLOW__MODE=mode)
        night.enqueue(*(SLOW.format(number) for number in range(8)))
        with night.worker() as one, night.worker() as two:
            await night.until(lambda: night.states() == {"running": 8}, "8 live runs")
            await night.until(lambda: night.sql(BEATING) == [(2,)], "two workers that beat")
            async with away(server):
                await anyio.sleep(away_s)
                assert (one.poll(), two.poll()) == (None, None)
            await night.all_completed(8)
            assert night.sql("SELECT count(*) FROM job_events WHERE event = 'run.adopted'") == [
                (0,)
            ]
            assert "worker.was_declared_dead" not in night.logs()
    assert dev.stats.stops == []


async def test_ids_that_come_while_the_database_is_away_are_written_later(
    server: Own, url: str, tmp_path: Path
) -> None:
    async with dev_server(provision=1.5) as dev:
        night = Night(tmp_path, dev, url)
        night.enqueue(*(f'[text="Answer {number}."]' for number in range(4)))
        with night.worker() as worker:
            await night.until(lambda: dev.stats.posts_by_prompt.total() == 4, "4 POSTs")
            async with away(server, "immediate"):
                await night.until(lambda: len(list(dev.runs)) == 4, "4 answers")
                await anyio.sleep(2.5)
            await night.all_completed(4)
            assert worker.poll() is None


async def test_restarts_one_after_another_lose_and_repeat_nothing(
    server: Own, url: str, tmp_path: Path
) -> None:
    async with dev_server(provision=0.1) as dev:
        night = Night(tmp_path, dev, url)
        night.enqueue(*(f'[text="Short {number}." first=0.3]' for number in range(30)))
        with night.worker(), night.worker():
            await night.until(lambda: bool(night.states().get("completed")), "a first one")
            for mode in ("immediate", "fast", "immediate", "immediate"):
                async with away(server, mode):
                    await anyio.sleep(0.3)
                await anyio.sleep(0.7)
            await night.all_completed(30)


async def test_connections_that_are_cut_at_random(url: str, tmp_path: Path) -> None:
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url)
        engine = sync_engine(parse_url(url))
        night.enqueue(*(f'[text="Cut {number}." first=0.2]' for number in range(30)))
        with night.worker():
            await night.until(
                lambda: night.sql("SELECT count(*) FROM workers") == [(1,)], "a worker"
            )
            for _ in range(12):
                with engine.begin() as connection:
                    connection.execute(cut)
                await anyio.sleep(0.15)
            await night.all_completed(30)


async def test_a_server_that_only_reads_is_waited_for(url: str, tmp_path: Path) -> None:
    name = parse_url(url).database
    engine = sync_engine(parse_url(url))

    def read_only(value: str) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(
                text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')
            )
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    async with dev_server(provision=0.5) as dev:
        night = Night(tmp_path, dev, url)
        night.enqueue(*(f'[text="Read {number}."]' for number in range(4)))
        with night.worker():
            await night.until(lambda: dev.stats.posts_by_prompt.total() == 4, "4 POSTs")
            read_only("on")
            await night.until(lambda: "read-only transaction" in night.logs(), "a refusal")
            read_only("off")
            await night.all_completed(4)


def try_to_connect(url: str) -> psycopg.Connection[Any] | None:
    """A connection, or None where the server has no more."""
    try:
        return psycopg.connect(url)
    except psycopg.OperationalError:
        return None


async def test_a_full_connection_table_is_waited_for(url: str, tmp_path: Path) -> None:
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url)
        plain = url.replace("postgresql+psycopg", "postgresql")
        hoard: list[psycopg.Connection[Any]] = []
        night.enqueue("[text='Waiting.']")
        try:
            while (each := try_to_connect(plain)) is not None:
                hoard.append(each)
            with night.worker("--once") as worker:
                await night.until(lambda: worker.poll() is not None, "its end")
                assert worker.returncode == 75
        finally:
            for each in hoard:
                each.close()
        with night.worker():
            await night.all_completed(1)


async def test_a_connection_table_that_fills_up_while_runs_are_live(
    url: str, tmp_path: Path
) -> None:
    """The worker's own connections are cut, and others take their places before it can."""
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url)
        plain = url.replace("postgresql+psycopg", "postgresql")
        hoard = [psycopg.connect(plain, autocommit=True)]
        night.enqueue(*(f'[text="Full {number}." first=2]' for number in range(4)))

        def none_is_left() -> bool:
            cut = len(hoard[0].execute(ours, ["orchestrator"]).fetchall())
            while (each := try_to_connect(plain)) is not None:
                hoard.append(each)
            return cut == 0

        try:
            with night.worker() as worker:
                await night.until(lambda: night.states() == {"running": 4}, "4 live runs")
                await night.until(none_is_left, "no connection of ours")
                await anyio.sleep(2.5)  # longer than `dead_after`
                assert "too many clients" in night.logs()
                while hoard:
                    hoard.pop().close()
                await night.all_completed(4)
                assert worker.poll() is None
        finally:
            for each in hoard:
                each.close()


async def test_a_worker_that_finds_no_server_says_so_and_ends_with_75(
    server: Own, url: str, tmp_path: Path
) -> None:
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url)
        async with away(server):
            for arguments in (("worker", "--once"), ("enqueue", "hello")):
                done = await night.command(*arguments)
                assert done.returncode == 75, done.stderr
                assert b"error: the database cannot be used now" in done.stderr
                assert b"Traceback" not in done.stderr


async def test_another_schema_ends_a_worker_with_78(url: str, tmp_path: Path) -> None:
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url)
        engine = sync_engine(parse_url(url))
        for version, words in (("9999", b"is newer"), ("0001", b"orchestrator migrate upgrade")):
            with engine.begin() as connection:
                connection.execute(
                    text("UPDATE alembic_version SET version_num = :v"), {"v": version}
                )
            done = await night.command("worker", "--once")
            assert (done.returncode, words in done.stderr) == (78, True), done.stderr
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE alembic_version"))
        done = await night.command("worker", "--once")
        assert (done.returncode, b"orchestrator init" in done.stderr) == (78, True)
        assert migrations.head() != "9999"


async def test_without_a_session_of_its_own(url: str, tmp_path: Path) -> None:
    """As behind a transaction pooler: each connection is cut off after a few uses, nothing kept."""
    async with dev_server() as dev:
        night = Night(tmp_path, dev, url, DATABASE__LISTEN_URL=url)
        dev.faults.add(Fault(kind=Kind.DELAY, route="status", delay=0.05))
        night.enqueue(*(f'[text="Pooled {number}."]' for number in range(10)))
        with night.worker():
            await night.all_completed(10)
            assert night.sql("SELECT count(*) FROM pg_prepared_statements") == [(0,)]
