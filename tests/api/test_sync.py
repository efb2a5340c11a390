from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anyio
import pytest

from orchestrator import (
    ConfigError,
    DuplicateKey,
    Filter,
    InvalidJob,
    Job,
    JobFailed,
    JobInDoubt,
    NotAllowed,
    NotFound,
    SchemaMismatch,
    State,
    StoreUnavailable,
    api,
    sync,
)
from orchestrator.config import Settings
from orchestrator.job import Message
from orchestrator.recoup.answers import Accepted, RunState
from orchestrator.recoup.client import RecoupClient
from orchestrator.remote import client_for
from orchestrator.store.engine import parse_url, sync_engine
from orchestrator.store.verbs import outcomes, people
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.streams import Segment
from orchestrator.testing import DevServer

from ..store.desk import DONE, Desk

BOUND_S = 10.0


@pytest.fixture
def orc(database_url: str) -> Iterator[sync.Orchestrator]:
    with sync.Orchestrator(database_url) as orc:
        yield orc


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    engine = sync_engine(parse_url(database_url))
    yield Desk(engine)
    engine.dispose()


# --- a twin -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "twin"),
    [(api.Orchestrator, sync.Orchestrator), (api.JobHandle, sync.JobHandle)],
)
def test_the_twins_have_the_same_methods_with_the_same_arguments(one: type, twin: type) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, callable)
            if not name.startswith("_") or name == "__init__"
        }

    assert public(twin) == public(one)


# --- enqueue ----------------------------------------------------------------------------------


def test_the_first_enqueue_makes_the_file(tmp_path: Path) -> None:
    with sync.Orchestrator(f"sqlite:///{tmp_path}/jobs.db") as orc:
        with pytest.raises(NotFound, match="no database at"):
            orc.get(1)
        assert not (tmp_path / "jobs.db").exists()
        handle = orc.enqueue("hello", queue="q")
        assert (handle.created, handle.get().queue) == (True, "q")
        assert repr(handle) == "JobHandle(id=1, created=True)"


def test_all_or_nothing(orc: sync.Orchestrator) -> None:
    with pytest.raises(InvalidJob):
        orc.enqueue_many([{"prompt": "a"}, {"prompt": ""}])
    assert orc.jobs() == []
    handles = orc.enqueue_many([{"prompt": "a"}, {"prompt": "b"}])
    assert [handle.get().prompt for handle in handles] == ["a", "b"]


def test_a_key_of_ones_own(orc: sync.Orchestrator) -> None:
    first = orc.enqueue("a", unique_key="k")
    assert (orc.enqueue("a", unique_key="k").id) == first.id
    with pytest.raises(DuplicateKey):
        orc.enqueue_many([{"prompt": "new"}, {"prompt": "b", "unique_key": "k"}])
    assert len(orc.jobs()) == 1
    assert orc.enqueue("b", unique_key="k", on_conflict="replace").get().prompt == "b"


def test_threads_share_one_object(orc: sync.Orchestrator) -> None:
    with ThreadPoolExecutor(4) as pool:
        handles = list(pool.map(orc.enqueue, map(str, range(20))))
    assert sorted(handle.id for handle in handles) == list(range(1, 21))


def test_a_configuration_is_read(tmp_path: Path) -> None:
    config = tmp_path / "orchestrator.toml"
    config.write_text(
        f'[database]\nurl = "sqlite:///{tmp_path}/jobs.db"\n[defaults]\nmodel = "m"\n'
    )
    with sync.Orchestrator.from_config(config, environ={}) as orc:
        assert orc.enqueue("a").get().model == "m"


def test_a_newer_schema_is_refused(orc: sync.Orchestrator, desk: Desk) -> None:
    desk.sql("UPDATE alembic_version SET version_num = '9999'")
    for call in (lambda: orc.get(1), lambda: orc.enqueue("a"), lambda: orc.cancel(1)):
        with pytest.raises(SchemaMismatch, match="newer"):
            call()


def test_a_file_that_cannot_be_opened_is_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    with sync.Orchestrator(f"sqlite:///{tmp_path}/jobs.db") as orc:
        with pytest.raises(StoreUnavailable, match="unable to open"):
            orc.enqueue("a")
        with pytest.raises(StoreUnavailable, match="unable to open"):
            orc.get(1)


def test_an_object_serves_again_after_its_block(database_url: str) -> None:
    orc = sync.Orchestrator(database_url)
    with orc:
        orc.enqueue("a")
    with orc:
        assert len(orc.jobs()) == 1


# --- look -------------------------------------------------------------------------------------


def test_messages_events_and_queries(orc: sync.Orchestrator, desk: Desk) -> None:
    job = desk.running()
    kept = [Message(0, "m", "assistant", "done", {"id": "m"}, "server")]
    desk.write(outcomes.settle, Grip.of(job), DONE, kept)
    handle = orc.handle(job.id)
    assert handle.messages() == orc.messages(job.id) == kept
    events = handle.events()
    assert events[-1].event == "run.completed"
    assert orc.events(job.id, after_id=events[-2].id) == events[-1:]
    assert orc.sql("SELECT id FROM jobs WHERE state = :s", s="completed") == [{"id": job.id}]
    assert [found.id for found in orc.jobs(states=("completed",))] == [job.id]


def test_waiting(orc: sync.Orchestrator, desk: Desk) -> None:
    queued = orc.enqueue("a", queue="later", scheduled_at="2999-01-01T00:00:00Z")
    with pytest.raises(TimeoutError, match="was not settled"):
        queued.wait(0.01)
    job = desk.running()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(orc.handle(job.id).wait, BOUND_S)
        desk.apply(job, DONE)
        assert waiting.result(BOUND_S).state is State.COMPLETED
    assert orc.handle(job.id).result() == "done"
    with pytest.raises(JobFailed):
        orc.handle(desk.failed().id).result()
    with pytest.raises(JobInDoubt):
        orc.handle(desk.doubtful().id).result()


def test_a_watch_shows_the_growing_text(orc: sync.Orchestrator, desk: Desk) -> None:
    job = desk.running()
    chunks = [
        {"type": "start", "messageId": "m"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "Hello"},
    ]
    seen: list[tuple[State, str]] = []
    for update in orc.handle(job.id).watch():
        seen.append((update.job.state, update.text))
        if update.text == "":
            segment = Segment(0, chunks)
            desk.checkpoint(job, segment)
        elif update.text == "Hello":
            desk.apply(job, DONE)
    assert seen == [
        (State.RUNNING, ""),
        (State.RUNNING, "Hello"),
        (State.COMPLETED, "done"),
    ]


# --- decide -----------------------------------------------------------------------------------


def test_what_a_person_decides(orc: sync.Orchestrator, desk: Desk) -> None:
    handle = orc.enqueue("a")
    assert handle.cancel().state is State.CANCELLED
    with pytest.raises(NotAllowed):
        orc.cancel(handle.id)
    assert handle.retry().state is State.QUEUED
    handle.cancel()
    assert orc.resolve(desk.doubtful().id, "fail").state is State.FAILED
    assert orc.resolve(desk.doubtful().id, "resubmit").state is State.QUEUED
    with pytest.raises(NotAllowed, match="choose resubmit"):
        orc.resolve(1, "guess")


def test_a_verb_for_each_job_that_matches(orc: sync.Orchestrator, desk: Desk) -> None:
    orc.enqueue_many([{"prompt": "a"}, {"prompt": "b", "queue": "q"}])
    before = orc.jobs()
    (tried,) = orc.each(people.cancel, Filter(queues=("q",)), dry_run=True)
    assert orc.jobs() == before
    (done,) = orc.each(people.cancel, Filter(queues=("q",)))
    for job_id, answer in (tried, done):
        assert job_id == 2
        assert isinstance(answer, Job)
        assert answer.state is State.CANCELLED
    assert desk.get(2).state is State.CANCELLED


def test_queues(orc: sync.Orchestrator, desk: Desk) -> None:
    orc.enqueue("a", queue="q")
    orc.pause("q")
    assert desk.claim() == []
    orc.resume("q")
    orc.limit_queue("q", 0)
    assert desk.claim() == []
    orc.limit_queue("q", None)
    assert len(desk.claim()) == 1


def test_adopting_needs_a_key(database_url: str, desk: Desk) -> None:
    job = desk.doubtful()
    with (
        sync.Orchestrator(database_url, environ={}) as orc,
        pytest.raises(ConfigError, match="RECOUP_API_KEY"),
    ):
        orc.resolve(job.id, "adopt", chat_id="c")
    assert desk.get(job.id) == job


async def test_a_run_that_is_over_is_found_and_adopted(database_url: str, desk: Desk) -> None:
    async def always() -> bool:
        return True

    async with DevServer() as server:
        settings = Settings.model_validate({"api": {"base_url": server.url}})
        environ = {"RECOUP_API_KEY": server.key}
        async with client_for(settings, environ) as client:
            answer = await client.start_run({"prompt": 'hello [text="Hi there."]'}, mark=always)
            assert isinstance(answer, Accepted)
            with anyio.fail_after(BOUND_S):
                while not await is_over(client, answer.run_id):
                    await anyio.lowlevel.checkpoint()
        job = desk.doubtful()
        orc = sync.Orchestrator(database_url, settings=settings, environ=environ)
        (found,) = await anyio.to_thread.run_sync(orc.candidates, job.id)
        assert (found.chat_id, found.text) == (answer.chat_id, "Hi there.")
        adopt = partial(orc.resolve, job.id, "adopt", chat_id=found.chat_id)
        adopted = await anyio.to_thread.run_sync(adopt)
    assert (adopted.state, adopted.result_text) == (State.COMPLETED, "Hi there.")


async def is_over(client: RecoupClient, run_id: str) -> bool:
    state = await client.run_status(run_id)
    assert isinstance(state, RunState)
    return state.status.terminal
