from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DatabaseError, IntegrityError

from orchestrator.errors import LeaseLost, StoreUnavailable
from orchestrator.request import job_values
from orchestrator.store import sqlite
from orchestrator.store.commit import MAX_BATCH, GroupCommit, Write
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import look
from orchestrator.store.verbs.enqueue import enqueue_many

from .desk import Desk

BOUND_S = 10.0


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with Store.open(parse_url(database_url)) as store:
        yield store


def insert(connection: Connection, prompt: str) -> int:
    return enqueue_many(connection, [job_values({"prompt": prompt})])[0].id


def refuse(_connection: Connection) -> None:
    raise LeaseLost("another has it")


def break_a_check(connection: Connection) -> None:
    connection.execute(text("INSERT INTO jobs (prompt, state) VALUES ('x', 'nowhere')"))


def write_nonsense(connection: Connection) -> None:
    connection.execute(text("INSERT INTO nothing VALUES (1)"))


def prompts(desk: Desk) -> list[str]:
    return [row["prompt"] for row in desk.rows("SELECT prompt FROM jobs ORDER BY id")]


class Begun:
    """Counts the transactions that begin on the store's connections."""

    def __init__(self, store: Store) -> None:
        self.writing = 0
        event.listen(store._engine, "begin", self._on_begin)

    def _on_begin(self, connection: Connection) -> None:
        self.writing += bool(connection.get_execution_options().get(sqlite.WRITE))


# --- sharing a transaction --------------------------------------------------------------------


async def test_writes_share_transactions(store: Store, desk: Desk) -> None:
    begun = Begun(store)
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(
                partial(store.write, partial(insert, prompt=str(number)), order=number)
            )
    assert sorted(map(int, prompts(desk))) == list(range(200))
    # One for whoever came first, one or two for all that waited meanwhile.
    assert begun.writing <= 3


@pytest.mark.parametrize("bad", [refuse, break_a_check, write_nonsense])
async def test_one_bad_write_does_not_fail_the_others(store: Store, desk: Desk, bad: Any) -> None:
    raised: list[BaseException] = []

    async def do_wrong() -> None:
        try:
            await store.write(bad, order=2)
        except (LeaseLost, DatabaseError) as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks:
        for number in (0, 1):
            tasks.start_soon(partial(store.write, partial(insert, prompt=str(number))))
        tasks.start_soon(do_wrong)
        for number in (3, 4):
            tasks.start_soon(partial(store.write, partial(insert, prompt=str(number)), order=3))
    assert sorted(prompts(desk)) == ["0", "1", "3", "4"]
    assert len(raised) == 1


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (refuse, LeaseLost),
        (break_a_check, IntegrityError),
        (write_nonsense, DatabaseError),
    ],
)
async def test_a_verb_s_error_reaches_its_caller(
    store: Store, bad: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await store.write(bad)
    assert await store.write(partial(insert, prompt="next")) >= 1


class Held:
    """What a caller holds while it writes."""


@pytest.mark.parametrize("number", [1, 3])
async def test_a_refused_write_leaves_nothing_to_the_collector(store: Store, number: int) -> None:
    """A worker lets the collector of cycles look seldom: what a caller held must go by itself."""
    seen: list[weakref.ref[Held]] = []

    async def try_to_write() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        with contextlib.suppress(LeaseLost):
            await store.write(refuse)

    gc.disable()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(number):
                tasks.start_soon(try_to_write)
        assert [ref() for ref in seen] == [None] * number
    finally:
        gc.enable()


async def test_each_caller_gets_its_own_result(store: Store) -> None:
    found: dict[str, int] = {}

    async def one(prompt: str) -> None:
        found[prompt] = await store.write(partial(insert, prompt=prompt))

    async with anyio.create_task_group() as tasks:
        for prompt in ("a", "b", "c"):
            tasks.start_soon(one, prompt)
    for prompt, job_id in found.items():
        assert (await store.read(look.load, job_id)).prompt == prompt


async def test_a_write_is_durable_when_it_returns(store: Store, desk: Desk) -> None:
    job_id = await store.write(partial(insert, prompt="a"))
    assert desk.get(job_id).prompt == "a"


# --- order ------------------------------------------------------------------------------------


class Recorder:
    """Stands where the database does; holds the first batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[bool, int]]] = []
        self.first_is_under_way = anyio.Event()
        self.go_on = anyio.Event()

    async def run(self, writes: Sequence[Write[object]]) -> None:
        self.batches.append([(write.urgent, write.order) for write in writes])
        if len(self.batches) == 1:
            self.first_is_under_way.set()
            with anyio.fail_after(BOUND_S):
                await self.go_on.wait()


def nothing(_connection: Connection) -> None:
    return None


async def waiting_behind_the_first(*waiting: tuple[bool, int]) -> list[list[tuple[bool, int]]]:
    recorder = Recorder()
    commits = GroupCommit(run=recorder.run)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commits.write, nothing)
        with anyio.fail_after(BOUND_S):
            await recorder.first_is_under_way.wait()
        for urgent, order in waiting:
            tasks.start_soon(partial(commits.write, nothing, urgent=urgent, order=order))
        while len(commits._waiting) < len(waiting):
            await anyio.lowlevel.checkpoint()
        recorder.go_on.set()
    return recorder.batches[1:]


async def test_rows_are_touched_in_order_of_id() -> None:
    batches = await waiting_behind_the_first((False, 9), (True, 5), (False, 1), (False, 7))
    assert batches == [[(False, 1), (True, 5), (False, 7), (False, 9)]]


async def test_urgent_writes_go_before_a_long_line() -> None:
    line = [(False, number) for number in range(MAX_BATCH)]
    first, second = await waiting_behind_the_first(*line, (True, 9999))
    assert (True, 9999) in first
    assert len(first) == MAX_BATCH
    assert second == [(False, MAX_BATCH - 1)]


# --- cancelled callers ------------------------------------------------------------------------


async def test_a_cancelled_callers_write_still_runs(store: Store, desk: Desk) -> None:
    begun = Begun(store)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.write(partial(insert, prompt="late"))
    assert scope.cancelled_caught
    assert prompts(desk) == ["late"]
    assert begun.writing == 1


async def test_a_cancelled_leader_still_serves_those_behind_it(store: Store, desk: Desk) -> None:
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(partial(store.write, partial(insert, prompt="behind")))
            scope.cancel()
            await store.write(partial(insert, prompt="leader"))
    assert sorted(prompts(desk)) == ["behind", "leader"]


# --- a database out of reach ------------------------------------------------------------------


async def test_a_failing_transaction_fails_everyone_in_it_and_nobody_later() -> None:
    failing = True

    async def run(writes: Sequence[Write[object]]) -> None:
        if failing:
            raise StoreUnavailable("away")
        for write in writes:
            write.result = "done"

    commits = GroupCommit(run=run)
    raised: list[str] = []

    async def one() -> None:
        try:
            await commits.write(nothing)
        except StoreUnavailable as error:
            raised.append(str(error))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(one)
    assert raised == ["away"] * 3
    failing = False
    answer: object = await commits.write(nothing)
    assert answer == "done"


async def a_slow_commit(_writes: Sequence[Write[object]]) -> None:
    await anyio.sleep(0.2)


@pytest.mark.parametrize("who", ["leader", "waiter", "the only waiter"])
async def test_a_caller_that_asyncio_cancels_leaves_the_others_their_answers(who: str) -> None:
    """`asyncio.wait_for` knows no shield: whoever leads or waits may be gone at any moment."""
    ran: list[str] = []

    async def run(writes: Sequence[Write[object]]) -> None:
        await a_slow_commit(writes)
        for entry in writes:
            entry.result = entry.verb(None)  # type: ignore[arg-type] # these verbs touch nothing

    commits = GroupCommit(run=run)

    def named(name: str) -> Callable[[Connection], str]:
        def verb(_connection: Connection) -> str:
            ran.append(name)
            return name

        return verb

    async def impatient(name: str) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(commits.write(named(name)), 0.05)

    async def patient(name: str) -> None:
        answer: object = await commits.write(named(name))
        assert answer == name

    first, second = (impatient, patient) if who == "leader" else (patient, impatient)
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as callers:
            callers.start_soon(first, "one")
            await anyio.sleep(0.02)
            callers.start_soon(second, "two")
            if who == "waiter":
                callers.start_soon(patient, "three")
        await patient("last")
    expected = {"one", "two", "last"} | ({"three"} if who == "waiter" else set())
    assert set(ran) == expected
    assert len(ran) == len(expected)


async def test_a_locked_file_is_out_of_reach(sqlite_url: str, sqlite_desk: Desk) -> None:
    def impatient(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA busy_timeout = 1")

    writing = sqlite_desk.engine.connect().execution_options(**{sqlite.WRITE: True})
    async with Store.open(parse_url(sqlite_url)) as store:
        event.listen(store._engine, "connect", impatient)
        with writing as other, other.begin():
            store._engine.dispose()
            with pytest.raises(StoreUnavailable, match="database is locked"):
                await store.write(partial(insert, prompt="a"))
        assert await store.write(partial(insert, prompt="b")) == 1
