from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import orchestrator
from orchestrator import (
    ConfigError,
    DuplicateKey,
    Filter,
    InvalidJob,
    Job,
    JobFailed,
    JobHandle,
    JobInDoubt,
    NotAllowed,
    NotFound,
    Orchestrator,
    SchemaMismatch,
    State,
    StoreUnavailable,
)
from orchestrator.job import Message
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.verbs import outcomes, people
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.streams import Segment

from ..store.desk import DONE, FAILED, Desk

BOUND_S = 10.0

CHUNKS = [
    {"type": "start", "messageId": "m1"},
    {"type": "start-step"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "Hel"},
    {"type": "text-delta", "id": "t", "delta": "lo"},
    {"type": "text-end", "id": "t"},
]


@pytest.fixture
async def orc(database_url: str) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(database_url) as orc:
        yield orc


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    engine = sync_engine(parse_url(database_url))
    yield Desk(engine)
    engine.dispose()


def test_the_exported_names_are_those_that_are_declared() -> None:
    assert sorted(orchestrator.__all__, key=str) == orchestrator.__all__
    for name in orchestrator.__all__:
        assert getattr(orchestrator, name) is not None


# --- enqueue ----------------------------------------------------------------------------------


async def test_the_first_enqueue_makes_the_file(tmp_path: Path) -> None:
    async with Orchestrator(f"sqlite:///{tmp_path}/jobs.db") as orc:
        handle = await orc.enqueue("hello", queue="q", tags=["t"])
        assert handle.created
        job = await handle.get()
        assert (job.prompt, job.queue, job.tags) == ("hello", "q", ["t"])
        assert repr(handle) == f"JobHandle(id={job.id}, created=True)"


async def test_many_are_enqueued_in_order(orc: Orchestrator) -> None:
    handles = await orc.enqueue_many({"prompt": str(n)} for n in range(5))
    assert [(await handle.get()).prompt for handle in handles] == list("01234")


async def test_none_is_enqueued_if_one_is_wrong(orc: Orchestrator) -> None:
    with pytest.raises(InvalidJob, match=r"there is no such option; did you mean queue\?"):
        await orc.enqueue_many([{"prompt": "a"}, {"prompt": "b", "quueue": "x"}])
    assert await orc.jobs() == []


async def test_a_key_of_ones_own(orc: Orchestrator) -> None:
    first = await orc.enqueue("a", unique_key="k")
    second = await orc.enqueue("a", unique_key="k")
    assert (second.id, second.created) == (first.id, False)
    with pytest.raises(DuplicateKey):
        await orc.enqueue("a", unique_key="k", on_conflict="raise")
    third = await orc.enqueue("b", unique_key="k", on_conflict="replace")
    assert (third.id, (await third.get()).prompt) == (first.id, "b")
    with pytest.raises(InvalidJob, match="it must be one of return, raise, replace"):
        await orc.enqueue("a", unique_key="k", on_conflict="ignore")


async def test_one_of_many_that_is_wrong_is_named_by_its_number(orc: Orchestrator) -> None:
    with pytest.raises(InvalidJob, match="job 3 of those given: model: ") as refused:
        await orc.enqueue_many({"prompt": "a", "model": model} for model in ("m", "n", ""))
    assert (refused.value.field, refused.value.number) == ("model", 3)
    with pytest.raises(InvalidJob) as refused:
        await orc.enqueue("a", model="")
    assert refused.value.number is None
    assert await orc.jobs() == []


@pytest.mark.parametrize("queue", [99999, "", "q" * 256])
async def test_a_queue_that_cannot_be_is_refused(orc: Orchestrator, queue: Any) -> None:
    for call in (
        orc.pause(queue),
        orc.resume(queue),
        orc.limit_queue(queue, 1),
        orc.weigh_queue(queue, 1),
    ):
        with pytest.raises(InvalidJob, match="queue: "):
            await call


@pytest.mark.parametrize("number", [-1, 0.5, "4", True])
async def test_a_limit_and_a_weight_are_whole_numbers(orc: Orchestrator, number: Any) -> None:
    with pytest.raises(NotAllowed, match="limit: "):
        await orc.limit_queue("q", number)
    with pytest.raises(NotAllowed, match="weight: "):
        await orc.weigh_queue("q", number)


async def test_the_configuration_fills_what_is_not_said(tmp_path: Path) -> None:
    config = tmp_path / "orchestrator.toml"
    config.write_text(
        f'[database]\nurl = "sqlite:///{tmp_path}/jobs.db"\n'
        '[defaults]\nmodel = "m"\nqueue = "q"\nmax_attempts = 3\n'
    )
    async with Orchestrator.from_config(config, environ={}) as orc:
        job = await (await orc.enqueue("a")).get()
        other = await (await orc.enqueue("a", model="n", queue="r", max_attempts=1)).get()
    assert (job.model, job.queue, job.max_attempts) == ("m", "q", 3)
    assert (other.model, other.queue, other.max_attempts) == ("n", "r", 1)


# --- a database that is not there ---------------------------------------------------------------


async def test_looking_makes_no_file(tmp_path: Path) -> None:
    async with Orchestrator(f"sqlite:///{tmp_path}/jobs.db") as orc:
        with pytest.raises(NotFound, match="no database at"):
            await orc.get(1)
        with pytest.raises(NotFound):
            await orc.cancel(1)
        assert not (tmp_path / "jobs.db").exists()
        await orc.enqueue("a")
        assert len(await orc.jobs()) == 1


async def test_a_newer_schema_is_refused(database_url: str, desk: Desk) -> None:
    desk.sql("UPDATE alembic_version SET version_num = '9999'")
    async with Orchestrator(database_url) as orc:
        with pytest.raises(SchemaMismatch, match="newer"):
            await orc.get(1)
        with pytest.raises(SchemaMismatch, match="newer"):
            await orc.enqueue("a")


async def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    async with Orchestrator(f"sqlite:///{tmp_path}/jobs.db") as orc:
        with pytest.raises(StoreUnavailable, match="unable to open"):
            await orc.enqueue("a")


# --- look ---------------------------------------------------------------------------------------


async def test_jobs_are_filtered(orc: Orchestrator) -> None:
    await orc.enqueue_many(
        [
            {"prompt": "100% sure", "queue": "a", "tags": ["x", 'q"u'], "batch": "b"},
            {"prompt": "other", "queue": "b", "tags": ["xy"]},
            {"prompt": "third"},
        ]
    )
    await orc.cancel(3)

    async def found(wanted: Filter) -> list[int]:
        return [job.id for job in await orc.jobs(wanted)]

    assert await found(Filter(queues=("a", "b"))) == [1, 2]
    assert await found(Filter(tag="x")) == [1]
    assert await found(Filter(tag='q"u')) == [1]
    assert await found(Filter(search="100%")) == [1]
    assert await found(Filter(batch="b")) == [1]
    assert await found(Filter(states=("cancelled",))) == [3]
    assert await found(Filter(error_kinds=("cancelled",))) == [3]
    assert await found(Filter(ids=(2, 3))) == [2, 3]
    assert [job.id for job in await orc.jobs(newest=True, limit=2)] == [3, 2]
    assert [job.id for job in await orc.jobs(queues=("b",))] == [2]


async def test_messages_events_and_queries(orc: Orchestrator, desk: Desk) -> None:
    job = desk.running()
    kept = [Message(0, "m", "assistant", "done", {"id": "m"}, "server")]
    desk.write(outcomes.settle, Grip.of(job), DONE, kept)
    handle = orc.handle(job.id)
    assert await handle.messages() == kept
    assert await orc.messages(job.id, attempt=2) == []
    events = await handle.events()
    assert [event.event for event in events][-1] == "run.completed"
    assert await orc.events(job.id, after_id=events[-2].id) == events[-1:]
    assert await orc.sql("SELECT id FROM jobs WHERE state = :state", state="completed") == [
        {"id": job.id}
    ]


# --- wait and result --------------------------------------------------------------------------


async def test_a_wait_ends_when_the_job_settles(orc: Orchestrator, desk: Desk) -> None:
    job = desk.running()
    waited: list[Job] = []

    async def wait() -> None:
        waited.append(await orc.handle(job.id).wait(BOUND_S))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.to_thread.run_sync(partial(desk.apply, job, DONE))
    assert [found.state for found in waited] == [State.COMPLETED]
    assert await orc.handle(job.id).result() == "done"


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_a_wait_has_a_bound(orc: Orchestrator, timeout: float) -> None:  # noqa: ASYNC109 - handed on
    handle = await orc.enqueue("a")
    with pytest.raises(TimeoutError, match=f"job {handle.id} was not settled within {timeout:g} s"):
        await handle.wait(timeout)
    assert (await handle.get()).state is State.QUEUED


async def test_a_failed_job_has_no_result(orc: Orchestrator, desk: Desk) -> None:
    job = desk.failed()
    with pytest.raises(JobFailed, match="it failed") as caught:
        await orc.handle(job.id).result()
    assert (caught.value.job_id, caught.value.state) == (job.id, "failed")
    assert caught.value.error_kind == "run_failed"


async def test_a_doubt_ends_a_wait_and_asks_for_a_person(orc: Orchestrator, desk: Desk) -> None:
    job = desk.doubtful()
    assert (await orc.handle(job.id).wait(BOUND_S)).state is State.IN_DOUBT
    with pytest.raises(JobInDoubt):
        await orc.handle(job.id).result(BOUND_S)


async def test_a_doubt_that_will_be_sent_again_is_waited_for(orc: Orchestrator, desk: Desk) -> None:
    job = desk.doubtful()
    desk.sql("UPDATE jobs SET resubmit_at = available_at WHERE id = :id", id=job.id)
    with pytest.raises(TimeoutError):
        await orc.handle(job.id).wait(0)


# --- watch ------------------------------------------------------------------------------------


async def test_a_watch_shows_each_state_and_the_growing_text(orc: Orchestrator, desk: Desk) -> None:
    job = desk.running()
    seen: list[tuple[State, str]] = []

    def save(first: int, last: int) -> None:
        segment = Segment(first, CHUNKS[first:last])
        desk.checkpoint(job, segment)

    with anyio.fail_after(BOUND_S):
        async for update in orc.handle(job.id).watch():
            seen.append((update.job.state, update.text))
            match update.text:
                case "":
                    save(0, 4)
                case "Hel":
                    save(4, 5)
                case "Hello":
                    desk.apply(job, DONE)
    running = [(State.RUNNING, text) for text in ("", "Hel", "Hello")]
    assert seen == [*running, (State.COMPLETED, "done")]


async def test_a_watch_of_a_job_at_rest_shows_it_once(orc: Orchestrator, desk: Desk) -> None:
    for job in (desk.failed(), desk.doubtful(), desk.cancelled()):
        updates = [update async for update in orc.handle(job.id).watch()]
        assert [update.job for update in updates] == [job]


# --- decide -----------------------------------------------------------------------------------


async def test_what_a_person_decides(orc: Orchestrator, desk: Desk) -> None:
    handle = await orc.enqueue("a")
    assert (await handle.cancel()).state is State.CANCELLED
    with pytest.raises(NotAllowed):
        await handle.cancel()
    assert (await handle.retry()).state is State.QUEUED
    await handle.cancel()
    assert (await orc.resolve(desk.doubtful().id, "resubmit")).state is State.QUEUED
    await orc.cancel(2)
    assert (await orc.resolve(desk.doubtful().id, "fail")).state is State.FAILED


@pytest.mark.parametrize(("decision", "chat"), [("adopt", None), ("guess", None), ("guess", "c")])
async def test_a_decision_that_is_none(
    orc: Orchestrator, desk: Desk, decision: str, chat: str | None
) -> None:
    job = desk.doubtful()
    with pytest.raises(NotAllowed, match="choose resubmit, fail, or adopt with a chat_id"):
        await orc.resolve(job.id, decision, chat_id=chat)
    assert desk.get(job.id) == job


async def test_adopting_needs_a_key(database_url: str, desk: Desk) -> None:
    job = desk.doubtful()
    async with Orchestrator(database_url, environ={}) as orc:
        with pytest.raises(ConfigError, match="RECOUP_API_KEY"):
            await orc.resolve(job.id, "adopt", chat_id="c")
    assert desk.get(job.id) == job


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_verb_for_each_job_that_matches(
    orc: Orchestrator, desk: Desk, dry_run: bool
) -> None:
    done = desk.completed()
    handles = await orc.enqueue_many([{"prompt": "a"}, {"prompt": "b", "queue": "q"}])
    before = await orc.jobs()
    found = await orc.each(people.cancel, Filter(queues=("default",)), dry_run=dry_run)
    assert [job_id for job_id, _ in found] == [done.id, handles[0].id]
    refused, cancelled = (answer for _, answer in found)
    assert isinstance(refused, NotAllowed)
    assert isinstance(cancelled, Job)
    assert cancelled.state is State.CANCELLED
    after = await orc.jobs()
    if dry_run:
        assert after == before
    else:
        assert [job.state.value for job in after] == ["completed", "cancelled", "queued"]


async def test_queues(orc: Orchestrator, desk: Desk) -> None:
    await orc.enqueue("a", queue="q")
    await orc.pause("q", "lunch")
    assert desk.claim() == []
    await orc.resume("q")
    await orc.limit_queue("q", 0)
    assert desk.claim() == []
    await orc.limit_queue("q", None)
    assert len(desk.claim()) == 1


async def test_a_failed_run_can_be_tried_again(orc: Orchestrator, desk: Desk) -> None:
    job = desk.running()
    desk.apply(job, FAILED)
    handle: JobHandle = orc.handle(job.id)
    assert (await handle.retry()).attempt == 1
    (again,) = desk.claim()
    assert desk.mark(again).attempt == 2
