from __future__ import annotations

import pytest

from orchestrator.errors import LeaseLost
from orchestrator.job import Job
from orchestrator.store.schema import gates
from orchestrator.store.verbs import crew, guarded, outcomes, streams
from orchestrator.store.verbs.guarded import Grip
from orchestrator.store.verbs.streams import SAFE_AFTER_BREAKS, Place, Segment

from .desk import DONE, ORIGIN, Desk, accepted


def checkpoint(desk: Desk, job: Job, first: int, *chunks: object) -> None:
    desk.checkpoint(job, Segment(first, chunks), followed_s=3.0, quiet_s=1.0)


# --- checkpoints ------------------------------------------------------------------------------


def test_checkpoints_come_back_in_order_and_whole(desk: Desk) -> None:
    job = desk.running()
    nasty = {"type": "text-delta", "delta": "\x00\ud800\u2028"}
    checkpoint(desk, job, 0, {"n": 0}, nasty)
    checkpoint(desk, job, 2, {"n": 2})
    assert desk.read(streams.segments, job.id, 1) == [
        Segment(0, [{"n": 0}, nasty]),
        Segment(2, [{"n": 2}]),
    ]
    saved = desk.get(job.id)
    assert (saved.followed_s, saved.quiet_s) == (3.0, 1.0)


def test_what_lies_behind_a_gap_is_not_given(desk: Desk) -> None:
    job = desk.running()
    checkpoint(desk, job, 0, "a")
    checkpoint(desk, job, 2, "c", "d")
    checkpoint(desk, job, 4, "e")
    assert desk.read(streams.segments, job.id, 1) == [Segment(0, ["a"])]
    assert desk.read(streams.segments, job.id, 1, 2) == [Segment(2, ["c", "d"]), Segment(4, ["e"])]


def test_a_lost_lease_saves_no_chunk(desk: Desk) -> None:
    job = desk.running()
    desk.write(guarded.write, Grip.of(job), {}, seize=True)
    with pytest.raises(LeaseLost):
        checkpoint(desk, job, 0, "late")
    assert desk.read(streams.segments, job.id, 1) == []


def test_a_checkpoint_repeated_after_an_unknown_commit_is_there_once(desk: Desk) -> None:
    """By then more chunks may have come: the repetition brings those too."""
    job = desk.running()
    checkpoint(desk, job, 0, "a")
    checkpoint(desk, job, 1, "b", "c")
    checkpoint(desk, job, 1, "b", "c")
    assert desk.read(streams.segments, job.id, 1) == [Segment(0, ["a"]), Segment(1, ["b", "c"])]
    checkpoint(desk, job, 1, "b", "c", "d")
    assert desk.read(streams.segments, job.id, 1) == [
        Segment(0, ["a"]),
        Segment(1, ["b", "c", "d"]),
    ]


def test_a_checkpoint_leaves_other_attempts_and_jobs_alone(desk: Desk) -> None:
    job, other = desk.running(), desk.running()
    checkpoint(desk, other, 0, "other")
    checkpoint(desk, job, 0, "first attempt")
    desk.sql("UPDATE jobs SET attempt = 2 WHERE id = :id", id=job.id)
    checkpoint(desk, desk.get(job.id), 0, "second attempt")
    assert desk.read(streams.segments, job.id, 1) == [Segment(0, ["first attempt"])]
    assert desk.read(streams.segments, job.id, 2) == [Segment(0, ["second attempt"])]
    assert desk.read(streams.segments, other.id, 1) == [Segment(0, ["other"])]


# --- places -----------------------------------------------------------------------------------


def test_places_are_counted_in_the_whole_database(desk: Desk) -> None:
    one, two = desk.running(), desk.running()
    assert desk.try_stream(one, trials=1)
    assert desk.try_stream(one, trials=1), "its own place does not count"
    assert not desk.try_stream(two, trials=1)
    assert desk.get(two.id).stream_opened_at is None
    assert desk.open_stream(two) is Place.TAKEN
    desk.close_stream(one, left=False)
    assert desk.get(one.id).stream_left_at is None
    assert not desk.try_stream(one, trials=1)


def test_a_place_is_free_again_when_its_job_settles(desk: Desk) -> None:
    one, two = desk.running(), desk.running()
    desk.try_stream(one, trials=1)
    desk.apply(one, DONE)
    assert desk.try_stream(two, trials=1)


def test_a_lost_lease_opens_no_stream(desk: Desk) -> None:
    job = desk.running()
    desk.write(guarded.write, Grip.of(job), {}, seize=True)
    with pytest.raises(LeaseLost):
        desk.open_stream(job)


@pytest.mark.parametrize(
    ("leaving", "if_safe_at", "open_at_once"),
    [
        ("unknown", None, True),
        ("unsafe", None, True),
        ("unknown", ORIGIN, False),
        ("unsafe", ORIGIN, False),
        ("safe", ORIGIN, True),
    ],
)
def test_a_place_comes_with_the_ids_where_the_stream_is_opened_at_once(
    desk: Desk, leaving: str, if_safe_at: str | None, open_at_once: bool
) -> None:
    desk.start()
    job = desk.sent()
    desk.write(lambda connection: connection.execute(gates.update().values(leaving=leaving)))
    applied = outcomes.Applied(job=job, outcome=accepted(1), by="w1")
    accepting = streams.Accepted(applied=applied, if_safe_at=if_safe_at)
    (running,) = desk.write(streams.accept_each, [accepting])
    assert running == desk.get(job.id)
    assert (running.stream_opened_at is not None) == open_at_once
    assert desk.event_names(job.id)[-1] == "submit.accepted"


# --- leaving ----------------------------------------------------------------------------------


def leave(desk: Desk, *, survived: bool) -> str:
    job = desk.running()
    desk.open_stream(job)
    desk.close_stream(job, left=True)
    assert desk.get(job.id).stream_left_at is not None
    desk.write(streams.learn_leaving, Grip.of(job), ORIGIN, survived=survived, by="w1")
    assert (desk.get(job.id).stream_left_at is None) == survived, "who settles it must know"
    return desk.read(streams.leaving, ORIGIN)


def test_leaving_is_unknown_then_safe_after_enough_breaks(desk: Desk) -> None:
    desk.start()
    assert desk.read(streams.leaving, ORIGIN) == "unknown"
    learnt = [leave(desk, survived=True) for _ in range(SAFE_AFTER_BREAKS)]
    assert learnt == ["unknown"] * (SAFE_AFTER_BREAKS - 1) + ["safe"]


def test_one_cancelled_run_makes_leaving_unsafe_for_good(desk: Desk) -> None:
    desk.start()
    for _ in range(SAFE_AFTER_BREAKS):
        leave(desk, survived=True)
    assert leave(desk, survived=False) == "unsafe"
    assert [leave(desk, survived=True) for _ in range(SAFE_AFTER_BREAKS)][-1] == "unsafe"


def test_a_break_counts_although_its_moment_could_not_be_written(desk: Desk) -> None:
    desk.start()
    job = desk.running()
    assert (job.stream_opened_at, job.stream_left_at) == (None, None)
    desk.write(streams.learn_leaving, Grip.of(job), ORIGIN, survived=True, by="w1")
    assert desk.rows("SELECT breaks_survived AS n FROM gates") == [{"n": 1}]
    desk.write(streams.learn_leaving, Grip.of(job), ORIGIN, survived=False, by="w1")
    assert desk.read(streams.leaving, ORIGIN) == "unsafe"
    learnt = [event.detail for event in desk.events(job.id)][-2:]
    assert learnt == [{"api_origin": ORIGIN, "run": run} for run in ("survived", "cancelled")]


def test_a_lost_lease_teaches_nothing_about_leaving(desk: Desk) -> None:
    desk.start()
    job = desk.running()
    desk.write(guarded.write, Grip.of(job), {}, seize=True)
    with pytest.raises(LeaseLost):
        desk.write(streams.learn_leaving, Grip.of(job), ORIGIN, survived=False, by="w1")
    assert desk.read(streams.leaving, ORIGIN) == "unknown"
    assert "stream.leaving_learnt" not in desk.event_names(job.id)


def test_what_is_learnt_holds_for_all_keys_of_an_origin(desk: Desk) -> None:
    desk.start("w1")
    desk.start("w2", key="k2")
    leave(desk, survived=False)
    assert desk.rows("SELECT DISTINCT leaving FROM gates") == [{"leaving": "unsafe"}]
    assert desk.read(streams.leaving, "https://elsewhere.example") == "unknown"
    desk.write(crew.ensure_gate, desk.start("w3", key="k3"))
    assert desk.read(streams.leaving, ORIGIN) == "unsafe"
