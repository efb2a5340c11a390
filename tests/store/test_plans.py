"""What is asked all day must not slow down with the number of jobs that there ever were.

The statements are those that the verbs really send. They are explained on a database of
TEST_PLAN_ROWS jobs (10,000), a tenth of them waiting, whose statistics speak of ROWS;
`TEST_PLAN_ROWS=1000000 pytest tests/store/test_plans.py` fills it with as many. SQLite is asked
with statistics and, as most files are, without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from benchmarks.common.history import fill
from orchestrator.job import Job, Message
from orchestrator.store.engine import parse_url
from orchestrator.store.schema import metadata
from orchestrator.store.verbs import attempt, claim, crew, due, enqueue, outcomes, people, streams
from orchestrator.store.verbs.attempt import Marking, Seen
from orchestrator.store.verbs.outcomes import Applied
from orchestrator.store.verbs.streams import Saving, Segment
from tests import postgres

from .conftest import open_desk
from .desk import DONE, Desk, accepted, who
from .plans import BIG, Asked, asked, indexes, plans, repeated, scans

ROWS = 1_000_000
FILLED = int(os.environ.get("TEST_PLAN_ROWS", "10000"))

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
QUERIES = re.findall(r"^```sql\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

_FINISHED = (
    "INSERT INTO messages (job_id, attempt, position, role, text, message, source)"
    " SELECT id, 1, 0, 'assistant', 'done', '{}', 'server' FROM jobs",
    "INSERT INTO attempts (job_id, attempt, state)"
    " SELECT id, 0, 'failed' FROM jobs WHERE id % 9 = 0",
)
_UNFINISHED = (
    "UPDATE jobs SET state = 'queued', attempt = 0, error_kind = NULL, sent_at = NULL,"
    " run_id = NULL, finished_at = NULL, worker_id = NULL, lease = 0 WHERE id % 10 = 3",
    "UPDATE jobs SET state = 'running', error_kind = NULL, finished_at = NULL,"
    " stream_opened_at = accepted_at, worker_id = 'w' || (1 + id / 10 % 5)"
    " WHERE id % 10 = 4 AND id < 1000",
    "UPDATE jobs SET state = 'in_doubt', error_kind = 'in_doubt', finished_at = NULL,"
    " worker_id = NULL WHERE id % 10 = 5 AND id < 1000",
    "INSERT INTO stream_checkpoints (job_id, attempt, first_index, count, chunks)"
    " SELECT id, 1, 0, 1, '[]' FROM jobs WHERE id < 5000",
)


# --- a database that says that it is large -----------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "sqlite with statistics", "postgresql"])
def large(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        with postgres.database(server, request.getfixturevalue("postgres_template")) as url:
            yield from _large(postgres.text_of(url), analyzed=True)
        return
    path = tmp_path_factory.mktemp("large") / "jobs.db"
    path.write_bytes(request.getfixturevalue("migrated_file").read_bytes())
    yield from _large(f"sqlite:///{path}", analyzed=request.param != "sqlite")


def _large(url: str, *, analyzed: bool) -> Iterator[Desk]:
    fill(parse_url(url), FILLED)
    for desk in open_desk(url):
        for statement in (*_FINISHED, *_UNFINISHED):
            desk.sql(statement.replace(":", r"\:"))
        desk.start("w1")
        if analyzed:
            desk.sql("ANALYZE")
            _multiply(desk, ROWS / FILLED)
        yield desk


def _multiply(desk: Desk, factor: float) -> None:
    """Let the statistics speak of `factor` times as many rows."""
    if desk.engine.dialect.name == "postgresql":
        # The planner takes the rows of a page from here, and the pages from the file.
        names = ", ".join(f"'{name}'" for name in metadata.tables)
        ours = f"SELECT oid FROM pg_class WHERE relname IN ({names})"  # noqa: S608 - our own tables
        desk.sql(
            "UPDATE pg_class SET reltuples = reltuples * :factor WHERE reltuples > 0 AND"  # noqa: S608
            f" (oid IN ({ours}) OR oid IN (SELECT indexrelid FROM pg_index"
            f" WHERE indrelid IN ({ours})))",
            factor=factor,
        )
        return
    for row in desk.rows("SELECT tbl, idx, stat FROM sqlite_stat1"):
        numbers = [int(word) for word in str(row["stat"]).split() if word.isdecimal()]
        more = " ".join(str(round(number * factor) if number > 1 else 1) for number in numbers)
        desk.sql(
            "UPDATE sqlite_stat1 SET stat = :more WHERE tbl = :tbl AND idx IS :idx",
            more=more,
            tbl=row["tbl"],
            idx=row["idx"],
        )  # each connection of the desk is fresh, and reads them when it begins


# --- a job's way, and the worker's rounds ------------------------------------------------------


def _claimed(connection: Connection) -> list[Job]:
    return claim.claim(connection, who("w1"), 8)


def _marked(connection: Connection) -> list[Job]:
    body = {"prompt": "hello"}
    markings = [Marking(job=job, body=body, by="w1") for job in _claimed(connection)]
    return attempt.mark_each(connection, markings)


def _running(connection: Connection) -> list[Job]:
    marked = _marked(connection)
    ends = [Applied(job=job, outcome=accepted(job.id), by="w1") for job in marked]
    return outcomes.apply_each(connection, ends)


def _followed(connection: Connection) -> None:
    running = _running(connection)
    attempt.progress_each(
        connection,
        [Seen(job=job, run_status="running", followed_s=1, quiet_s=0) for job in running],
    )
    segment = Segment(0, [{"type": "start"}])
    streams.checkpoint_each(
        connection, [Saving(job=job, segment=segment, followed_s=1, quiet_s=0) for job in running]
    )


def _settled(connection: Connection) -> None:
    message = Message(0, "m", "assistant", "done", {"id": "m", "parts": []}, "server")
    running = _running(connection)
    ends = [Applied(job=job, outcome=DONE, by="w1", kept=[message]) for job in running]
    outcomes.apply_each(connection, ends)


def _on_trial(connection: Connection) -> None:
    job = _running(connection)[0]
    streams.open_if_safe(connection, job, api_origin=job.api_origin or "", trials=FILLED)


def _looked_up(connection: Connection) -> None:
    enqueue._existing(connection, ["one key", "another"], locked=True)


def _writes_jobs(each: Asked) -> bool:
    return each.statement.startswith("UPDATE jobs")


_KEY = {"jobs_pkey"}
_CLAIM = {"jobs_claim"} | _KEY
_DOUBT = {"jobs_in_doubt"}

HOT: dict[str, tuple[Callable[[Connection], object], set[str]]] = {
    "look for keys": (_looked_up, {"jobs_unique_key"}),
    "claim": (_claimed, _CLAIM),
    "mark": (_marked, _CLAIM),
    "follow": (_followed, _CLAIM | {"stream_checkpoints_pkey"}),
    "settle": (_settled, _CLAIM | {"messages_pkey", "stream_checkpoints_pkey"}),
    "open a stream on trial": (_on_trial, _CLAIM | {"jobs_streaming"}),
    "held by": (partial(crew.held_by, worker_id="w1"), {"jobs_held"}),
    "cancellations": (partial(crew.cancellations, worker_id="w1"), {"jobs_held"}),
    "look for what waits": (
        partial(due.waiting, who=who()),
        _DOUBT | {"jobs_claim", "jobs_expiry", "jobs_called_off"},
    ),
    "sweep cancelled": (people.sweep_cancelled, _DOUBT | {"jobs_called_off"}),
    "expire": (due.expire, {"jobs_expiry"}),
    "due resubmits": (people.due_resubmits, _DOUBT),
}
"""Each act, and the indexes by which it may find rows."""


@pytest.mark.parametrize("act", HOT)
def test_what_is_asked_all_day_goes_straight_to_its_rows(large: Desk, act: str) -> None:
    verb, by = HOT[act]
    gone_by: set[str] = set()
    sqlite = large.engine.dialect.name == "sqlite"
    for each in asked(large, verb):
        # SQLite finds the names of queues by any index: each that has waiting jobs costs a step.
        names = {"jobs_state"} if sqlite and "WITH RECURSIVE names" in each.statement else set()
        for steps in [*plans(large, each), *plans(large, each, writes=True)]:
            assert scans(steps) == [], each.statement
            assert indexes(steps) <= (_KEY if _writes_jobs(each) else by | names), each.statement
            gone_by |= indexes(steps)
    assert gone_by >= by


# --- a database whose statistics are of another day --------------------------------------------


@pytest.fixture(scope="module", params=["nothing is known", "no job was queued"])
def surprised(
    request: pytest.FixtureRequest, postgres_server: postgres.Server, postgres_template: str
) -> Iterator[Desk]:
    """Jobs were enqueued by the thousand since PostgreSQL last looked; it was told too little."""
    with postgres.database(postgres_server, postgres_template) as url:
        for desk in open_desk(postgres.text_of(url)):
            for name in BIG:
                desk.sql(f"ALTER TABLE {name} SET (autovacuum_enabled = false)")
            if request.param != "nothing is known":
                fill(parse_url(postgres.text_of(url)), 5000)
                desk.sql("ANALYZE")
            desk.start("w1")
            desk.sql("INSERT INTO jobs (prompt) SELECT 'hello' FROM generate_series(1, 5000)")
            yield desk


@pytest.mark.parametrize("act", ["claim", "mark", "follow", "settle"])
def test_a_worker_goes_by_the_index_whatever_the_statistics_say(surprised: Desk, act: str) -> None:
    verb, by = HOT[act]
    for each in asked(surprised, verb):
        for steps in plans(surprised, each, writes=True):
            assert scans(steps) == [], each.statement
            if "WITH RECURSIVE names" not in each.statement:
                assert indexes(steps) <= (_KEY if _writes_jobs(each) else by), each.statement
            for step in steps:
                above = step.path[-2].split()[-1] if len(step.path) > 1 else ""
                # Whoever sorts or counts jobs has read all that are queued.
                assert step.table != "jobs" or above not in ("Sort", "Aggregate"), each.statement


@pytest.mark.parametrize("act", [crew.abandoned, due.count_due], ids=lambda act: str(act.__name__))
def test_what_asks_for_all_jobs_at_work_leaves_the_settled_alone(
    large: Desk, act: Callable[[Connection], object]
) -> None:
    for each in asked(large, act):
        for steps in plans(large, each):
            assert scans(steps) == [], each.statement
            assert indexes(steps), each.statement
            assert "jobs_pkey" not in indexes(steps), each.statement


# --- views ------------------------------------------------------------------------------------


def _of_sql(desk: Desk, query: str) -> Asked:
    return Asked(query, () if desk.engine.dialect.name == "sqlite" else {})


@pytest.mark.parametrize("view", ["failures", "live", "waiting"])
def test_a_view_of_few_jobs_does_not_read_all(large: Desk, view: str) -> None:
    (steps,) = plans(large, _of_sql(large, f"SELECT * FROM {view}"))  # noqa: S608 - our own view
    assert indexes(steps)
    assert scans(steps) == []


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_no_question_of_the_morning_reads_a_table_again_and_again(large: Desk, query: str) -> None:
    for steps in plans(large, _of_sql(large, query)):
        assert steps
        assert repeated(steps) == []
        assert max(step.rows for step in steps) < 1.5 * ROWS


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM jobs a JOIN jobs b ON b.error > a.error",
        "SELECT (SELECT count(*) FROM jobs b WHERE b.error > a.error) FROM jobs a",
    ],
)
def test_a_table_that_is_read_again_and_again_is_seen(large: Desk, query: str) -> None:
    (steps,) = plans(large, _of_sql(large, query))
    assert repeated(steps)
