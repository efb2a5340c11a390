"""The file of a SQLite database is locked, full, broken, or shared by two machines."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import sys
from pathlib import Path

import anyio
import pytest

from orchestrator.store.engine import parse_url
from orchestrator.store.sqlite import path_of
from orchestrator.testing import DevServer, Pace, Timing

from .night import Night


def file_of(url: str) -> Path:
    path = path_of(parse_url(url))
    assert path is not None
    return path


def dev_server(**timing: float) -> DevServer:
    return DevServer(timing=Timing(pace=Pace(chunk=0.001), **timing))


async def test_another_program_holds_the_lock_while_runs_are_live(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with dev_server(provision=0.5) as dev:
        night = Night(tmp_path, dev, sqlite_url)
        night.enqueue(*(f'[text="Locked {number}." first=0.5]' for number in range(6)))
        with night.worker() as worker:
            await night.until(lambda: dev.stats.posts_by_prompt.total() > 0, "a POST")
            with contextlib.closing(sqlite3.connect(file_of(sqlite_url), timeout=10)) as other:
                other.execute("BEGIN IMMEDIATE")
                await anyio.sleep(4.0)  # twice as long as a silent worker is thought alive
                other.rollback()
            await night.all_completed(6)
            assert worker.poll() is None


async def test_two_workers_share_one_file_and_one_is_killed(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with dev_server(provision=0.3) as dev:
        night = Night(tmp_path, dev, sqlite_url, SUBMIT__CONCURRENCY="2")
        with night.worker() as one, night.worker() as two:
            await night.until(lambda: night.sql("SELECT count(*) FROM workers") == [(2,)], "both")
            night.enqueue(*(f'[text="Shared {number}." first=5]' for number in range(8)))
            await night.until(lambda: night.states() == {"running": 8}, "8 live runs")
            holders = "SELECT count(DISTINCT worker_id) FROM jobs"
            assert night.sql(holders) == [(2,)]
            one.kill()
            await night.all_completed(8)
            assert two.poll() is None
            assert night.sql(holders) == [(1,)]


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit(2) is Linux's")
async def test_a_disk_that_is_full_when_the_answer_comes_loses_no_ids(
    sqlite_url: str, tmp_path: Path
) -> None:
    """No file of the worker's may grow while the 202 arrives; then there is room again."""
    async with dev_server(provision=1.0) as dev:
        night = Night(tmp_path, dev, sqlite_url)
        night.enqueue(*(f'[text="Full {number}." first=0.5]' for number in range(3)))
        with night.worker() as worker:
            await night.until(lambda: dev.stats.posts_by_prompt.total() == 3, "3 POSTs")
            free = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1, free[1]))
            await night.until(lambda: len(list(dev.runs)) == 3, "3 answers")
            await anyio.sleep(1.5)
            assert night.states() == {"submitting": 3}
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, free)
            await night.all_completed(3)
            assert worker.poll() is None


async def test_a_file_that_is_no_database_ends_a_worker_with_78(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with dev_server() as dev:
        night = Night(tmp_path, dev, sqlite_url)
        file_of(sqlite_url).write_bytes(b"These are a person's notes. " * 200)
        done = await night.command("worker", "--once")
        assert done.returncode == 78, done.stderr
        assert b"Traceback" not in done.stderr
        assert file_of(sqlite_url).read_bytes().startswith(b"These are a person's notes")


async def test_a_file_that_another_machine_works_on_is_refused(
    sqlite_url: str, tmp_path: Path
) -> None:
    async with dev_server() as dev:
        night = Night(tmp_path, dev, sqlite_url, WORKER__DEAD_AFTER="300")
        night.enqueue("[text='Here.']")
        night.write(
            "INSERT INTO workers (id, host, boot_id, pid, started_at, last_heartbeat_at, version,"
            " api_origin, key_fingerprint) SELECT 'w', 'elsewhere', 'other', 1, created_at,"
            " created_at, '0', 'https://api.example', 'k' FROM jobs"
        )
        done = await night.command("worker", "--once")
        assert done.returncode == 78, done.stderr
        assert b"'elsewhere'" in done.stderr
        assert b"postgresql://" in done.stderr
        assert dev.stats.posts_by_prompt.total() == 0
        night.write("UPDATE workers SET last_heartbeat_at = '2020-01-01 00:00:00.000000'")
        assert (await night.command("worker", "--once")).returncode == 0
        assert night.states() == {"completed": 1}
