from __future__ import annotations

import ast
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

import orchestrator
from orchestrator.errors import LeaseLost
from orchestrator.job import Job
from orchestrator.states import TRANSITIONS, ErrorKind, State, kinds_of
from orchestrator.store.verbs import guarded, people
from orchestrator.store.verbs.guarded import Grip

from .desk import Desk

MOVES = [(one, other) for one in State for other in State if one is not other]


def values_for(state: State) -> dict[str, str]:
    kinds = sorted(kinds_of(state))
    kind = {"error_kind": kinds[0].value} if kinds else {}
    return {**kind, "run_id": "wrun_1"}


def move(connection: Connection, grip: Grip, to: State) -> None:
    guarded.write(connection, grip, values_for(to), to=to, event="test.moved")


@pytest.mark.parametrize(("one", "other"), MOVES)
def test_only_moves_of_the_table_are_written(desk: Desk, one: State, other: State) -> None:
    job = desk.one_in(one)
    before = len(desk.events(job.id))
    if other in TRANSITIONS[one]:
        desk.write(move, Grip.of(job), other)
        event = desk.events(job.id)[-1]
        assert (event.from_state, event.to_state) == (one.value, other.value)
        after = desk.get(job.id)
        assert (after.state, after.lease) == (other, job.lease)
        assert (after.error_kind in kinds_of(other)) or (
            after.error_kind is None and not kinds_of(other)
        )
    else:
        with pytest.raises(AssertionError, match=f"no job goes from {one.value}"):
            desk.write(move, Grip.of(job), other)
        assert desk.get(job.id) == job
        assert len(desk.events(job.id)) == before


def test_the_table_has_a_row_for_each_state_and_no_way_to_itself() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(state not in leads_to for state, leads_to in TRANSITIONS.items())


def test_what_another_worker_was_faster_at_is_left_out(desk: Desk) -> None:
    settled, taken, gone, ours = desk.completed(), desk.running(), desk.running(), desk.running()
    desk.write(guarded.write, Grip.of(taken), {}, seize=True)
    desk.sql("DELETE FROM jobs WHERE id = :id", id=gone.id)

    def all_of_them(connection: Connection) -> list[Job]:
        return guarded.each_that_still_fits(
            [
                partial(people.cancel, connection, settled.id),
                partial(guarded.write, connection, Grip.of(taken), {"error": "late"}),
                partial(people.cancel, connection, gone.id),
                partial(guarded.write, connection, Grip.of(ours), {"error": "in time"}),
            ]
        )

    assert [job.id for job in desk.write(all_of_them)] == [ours.id]
    assert (desk.get(ours.id).error, desk.get(taken.id).error) == ("in time", None)
    assert desk.get(settled.id) == settled


def test_a_fault_of_this_program_is_not_left_out(desk: Desk) -> None:
    job = desk.running()

    def wrong(connection: Connection) -> list[Job]:
        move = partial(guarded.write, connection, Grip.of(job), {}, to=State.SUBMITTING, event="x")
        return guarded.each_that_still_fits([move])

    with pytest.raises(AssertionError, match="no job goes from running to submitting"):
        desk.write(wrong)


def test_a_job_whose_row_is_gone_is_held_by_nobody(desk: Desk) -> None:
    job = desk.running()
    assert desk.read(guarded.held, job.id) == job
    desk.sql("DELETE FROM jobs WHERE id = :id", id=job.id)
    with pytest.raises(LeaseLost, match=f"the row of job {job.id} is gone"):
        desk.read(guarded.held, job.id)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("off", [-1, 1])
def test_another_lease_writes_nothing(desk: Desk, state: State, off: int) -> None:
    job = desk.one_in(state)
    events = desk.events(job.id)
    wrong = Grip(job.id, job.lease + off, state)
    with pytest.raises(LeaseLost, match=f"job {job.id} is not {state.value}"):
        desk.write(guarded.write, wrong, {"error": "late"}, event="test.late")
    assert desk.get(job.id) == job
    assert desk.events(job.id) == events


@pytest.mark.parametrize(("one", "other"), MOVES)
def test_another_state_writes_nothing(desk: Desk, one: State, other: State) -> None:
    job = desk.one_in(one)
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip(job.id, job.lease, other), {"error": "late"})
    assert desk.get(job.id) == job


def test_a_job_that_is_gone_writes_nothing(desk: Desk) -> None:
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip(99, 0, State.QUEUED), {"error": "late"})


def test_a_move_needs_an_event_and_a_fitting_kind(desk: Desk) -> None:
    job = desk.running()
    with pytest.raises(AssertionError, match="needs an event"):
        desk.write(guarded.write, Grip.of(job), {}, to=State.COMPLETED)
    with pytest.raises(AssertionError, match="cancelled is no kind of failed"):
        desk.write(
            guarded.write,
            Grip.of(job),
            {"error_kind": ErrorKind.CANCELLED},
            to=State.FAILED,
            event="test.moved",
        )
    assert desk.get(job.id) == job


def test_seizing_shuts_the_old_holder_out(desk: Desk) -> None:
    job = desk.running()
    seized = desk.write(guarded.write, Grip.of(job), {}, seize=True)
    assert seized.lease == job.lease + 1
    with pytest.raises(LeaseLost):
        desk.write(guarded.write, Grip.of(job), {"error": "late"})
    desk.write(guarded.write, Grip.of(seized), {"error": "mine"})


def test_every_write_moves_updated_at_forward(desk: Desk) -> None:
    job = desk.running()
    assert desk.write(guarded.write, Grip.of(job), {}).updated_at > job.updated_at


def test_the_event_is_rolled_back_with_its_write(desk: Desk) -> None:
    job = desk.running()
    before = desk.events(job.id)

    def fails(connection: Connection) -> None:
        move(connection, Grip.of(job), State.COMPLETED)
        connection.execute(text("INSERT INTO jobs (prompt, state) VALUES ('x', 'nowhere')"))

    with pytest.raises(IntegrityError):
        desk.write(fails)
    assert desk.get(job.id) == job
    assert desk.events(job.id) == before


# --- the source -------------------------------------------------------------------------------


def _changes_jobs(node: ast.AST) -> bool:
    """True for `update(jobs)`, `jobs.update()`, and SQL text that updates jobs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return "update jobs" in " ".join(node.value.lower().split())
    if not isinstance(node, ast.Call):
        return False
    call = node.func
    named = isinstance(call, ast.Name) and call.id == "update"
    if (named or (isinstance(call, ast.Attribute) and call.attr == "update")) and any(
        ast.unparse(arg).endswith("jobs") for arg in node.args
    ):
        return True
    return isinstance(call, ast.Attribute) and ast.unparse(call).endswith("jobs.update")


def test_the_guarded_write_is_the_only_update_of_jobs() -> None:
    package = Path(orchestrator.__file__).parent
    found = [
        f"{path.relative_to(package).as_posix()}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        if "_migrations" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call | ast.Constant) and _changes_jobs(node)
    ]
    assert [place.partition(":")[0] for place in found] == ["store/verbs/guarded.py"], found


@pytest.mark.parametrize(
    "source",
    ["update(jobs)", "schema.jobs.update()", "text('UPDATE  jobs SET x=1')", "sa.update(t.jobs)"],
)
def test_the_search_would_find_it(source: str) -> None:
    assert any(_changes_jobs(node) for node in ast.walk(ast.parse(source)))
