from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recoup.answers import RunStatus
from orchestrator.verdict import End, Stopping
from orchestrator.worker.progress import (
    LOST_AFTER_S,
    STOP_EVERY_S,
    STOP_PATIENCE_S,
    UNTOLD_PATIENCE_S,
    Act,
    Limits,
    Observation,
    Progress,
    Seen,
    Sign,
    resumed,
    step,
)

LIMITS = Limits(run_timeout=1000.0, stall_timeout=300.0)
RUNNING = Seen(RunStatus.RUNNING)
TICK = LIMITS.longest_tick
LOST = "the status route did not know the run for 30 minutes"
TERMINAL = [status for status in RunStatus if status.terminal]


def follow(
    *observed: tuple[float, Observation], progress: Progress | None = None
) -> tuple[Progress, list[Act | End]]:
    """Take observations with their moments, and return the progress and what followed each."""
    now = progress or Progress()
    acts: list[Act | End] = []
    for moment, observation in observed:
        now, act = step(now, observation, moment, LIMITS)
        acts.append(act)
    return now, acts


def again(
    observation: Observation, start: float, end: float, every: float = 100
) -> list[tuple[float, Observation]]:
    """The same observation again and again, at the latest at `end`."""
    moments: list[float] = [start]
    while moments[-1] < end:
        moments.append(min(moments[-1] + every, end))
    return [(moment, observation) for moment in moments]


# --- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", TERMINAL)
def test_a_terminal_status_ends(status: RunStatus) -> None:
    _, acts = follow((0, RUNNING), (5, Seen(status)))
    assert acts == [Act.WAIT, End(status)]


@pytest.mark.parametrize("status", TERMINAL)
def test_a_terminal_status_ends_whatever_the_clocks_say(status: RunStatus) -> None:
    _, acts = follow((0, Seen(status)), progress=Progress(followed_s=5000, quiet_s=5000))
    (end,) = acts
    assert isinstance(end, End)
    assert (end.status, end.lost) == (status, None)


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (Progress(followed_s=LIMITS.run_timeout), Stopping.TIMED_OUT),
        (Progress(followed_s=500, quiet_s=LIMITS.stall_timeout), Stopping.STALLED),
        (Progress(followed_s=500, quiet_s=299), None),
    ],
)
def test_clocks_that_ran_out_tell_that_a_dead_predecessor_stopped_the_run(
    left: Progress, why: Stopping | None
) -> None:
    found = resumed(left.followed_s, left.quiet_s, 0, LIMITS)
    for status in TERMINAL:
        _, acts = follow((1, Seen(status)), progress=found)
        assert acts == [End(status, why)]
        _, acts = follow((1, Sign.NEWS), (2, Seen(status)), progress=found)
        assert acts[-1] == End(status, why), "what came since does not undo the stop"


@pytest.mark.parametrize(
    "after_the_stop",
    [(), ((303.0, Sign.NEWS),), ((304.0, RUNNING), (305.0, Sign.NEWS))],
    ids=["at once", "after last words", "after more words"],
)
def test_a_successor_knows_of_a_stop_whose_end_the_predecessor_saw(
    after_the_stop: tuple[tuple[float, Observation], ...],
) -> None:
    """The one that stopped the run saw the end, saved its clocks, and died before it settled."""
    first, acts = follow(*again(RUNNING, 0, 300), *after_the_stop, (306, Seen(RunStatus.CANCELLED)))
    assert acts[-1] == End(RunStatus.CANCELLED, Stopping.STALLED)
    left = resumed(first.followed_s, first.quiet_s, 0, LIMITS)
    _, (end,) = follow((0, Seen(RunStatus.CANCELLED)), progress=left)
    assert end == End(RunStatus.CANCELLED, Stopping.STALLED)


@pytest.mark.parametrize("limit", ["run_timeout", "stall_timeout"])
def test_a_run_that_somebody_cancels_just_before_a_clock_runs_out_was_not_stopped_by_us(
    limit: str,
) -> None:
    limits = Limits(**{"run_timeout": 1000.0, "stall_timeout": 1000.0, limit: 100.0})
    progress, _ = step(Progress(), RUNNING, 0, limits)
    progress, act = step(progress, RUNNING, 90, limits)
    assert act is Act.WAIT
    _, end = step(progress, Seen(RunStatus.CANCELLED), 110, limits)
    assert end == End(RunStatus.CANCELLED)


def test_a_persons_wish_comes_before_what_the_clocks_say() -> None:
    _, acts = follow(
        (0, Sign.CANCEL), (1, Seen(RunStatus.CANCELLED)), progress=Progress(followed_s=5000)
    )
    assert acts == [Act.WAIT, End(RunStatus.CANCELLED, Stopping.CANCELLED)]


def test_a_run_that_ends_after_a_stop_says_who_stopped_it() -> None:
    _, acts = follow((0, RUNNING), (1, Sign.CANCEL), (2, RUNNING), (3, Seen(RunStatus.COMPLETED)))
    assert acts == [Act.WAIT, Act.WAIT, Act.STOP, End(RunStatus.COMPLETED, Stopping.CANCELLED)]


@pytest.mark.parametrize("sign", [Sign.NEWS, Sign.OUT_OF_REACH, Sign.CANCEL])
def test_nothing_else_ends_a_run(sign: Sign) -> None:
    _, acts = follow((0, RUNNING), (10**6, sign))
    assert acts[-1] is Act.WAIT


# --- the clocks ---------------------------------------------------------------------------------


def test_a_run_that_takes_too_long_is_stopped() -> None:
    observed: list[tuple[float, Observation]] = [(0, RUNNING)]
    for moment in range(100, 1001, 100):
        observed += [(moment - 1, Sign.NEWS), (moment, RUNNING)]
    progress, acts = follow(*observed)
    assert acts[-1] is Act.STOP
    assert Act.STOP not in acts[:-1]
    assert (progress.stopping, progress.followed_s) == (Stopping.TIMED_OUT, 1000)


def test_a_run_that_says_nothing_new_is_stopped() -> None:
    progress, acts = follow(*again(RUNNING, 0, 299), (300, RUNNING))
    assert acts == [*[Act.WAIT] * 4, Act.STOP]
    assert progress.stopping is Stopping.STALLED


def test_news_start_the_quiet_anew() -> None:
    progress, acts = follow(
        *again(RUNNING, 0, 160), (200, Sign.NEWS), *again(RUNNING, 260, 499), (500, RUNNING)
    )
    assert acts[-1] is Act.STOP
    assert Act.STOP not in acts[:-1]
    assert progress.quiet_s == 300


def test_a_new_status_starts_the_quiet_anew() -> None:
    progress, _ = follow(*again(Seen(RunStatus.QUEUED), 0, 200), (290, RUNNING))
    assert (progress.quiet_s, progress.followed_s) == (0, 290)


def test_the_clocks_stand_still_while_the_api_is_out_of_reach() -> None:
    progress, acts = follow(
        (0, RUNNING), (100, RUNNING), (101, Sign.OUT_OF_REACH), (9000, RUNNING), (9100, RUNNING)
    )
    assert (progress.followed_s, progress.quiet_s) == (200, 200)
    assert Act.STOP not in acts


def test_the_clocks_go_on_where_a_former_worker_left_them() -> None:
    left = Progress(followed_s=900, quiet_s=50)
    progress, acts = follow((10**6, RUNNING), (10**6 + 100, RUNNING), progress=left)
    assert acts == [Act.WAIT, Act.STOP]
    assert progress.stopping is Stopping.TIMED_OUT


def test_a_clock_acts_only_on_a_status_read_after_it_ran_out() -> None:
    nearly = Progress(followed_s=990)
    _, acts = follow((0, RUNNING), (20, Sign.NEWS), (21, RUNNING), progress=nearly)
    assert acts == [Act.WAIT, Act.WAIT, Act.STOP]
    _, acts = follow((0, RUNNING), (20, Sign.OUT_OF_REACH), (21, RUNNING), progress=nearly)
    assert acts == [Act.WAIT] * 3
    _, acts = follow((0, RUNNING), (20, Seen(RunStatus.COMPLETED)), progress=nearly)
    assert acts[-1] == End(RunStatus.COMPLETED)


def test_a_machine_that_was_suspended_has_not_followed() -> None:
    night = 8 * 3600.0
    progress, acts = follow((0, RUNNING), (10, RUNNING), (10 + night, RUNNING))
    assert acts == [Act.WAIT] * 3
    assert (progress.followed_s, progress.quiet_s) == (10 + TICK, 10 + TICK)
    progress, acts = follow((0, Sign.MISSING), (night, Sign.MISSING), progress=progress)
    assert acts == [Act.WAIT] * 2
    assert progress.missing_s == TICK


def test_a_tick_within_the_bound_counts_whole() -> None:
    progress, _ = follow((0, RUNNING), (TICK, RUNNING))
    assert (progress.followed_s, progress.quiet_s) == (TICK, TICK)


# --- stopping -----------------------------------------------------------------------------------


def test_a_stop_is_repeated_and_patience_ends() -> None:
    beats = [10.0 + STOP_EVERY_S * number / 2 for number in range(40)]
    progress, acts = follow((0, RUNNING), (10, Sign.CANCEL), (10, RUNNING), (10, Sign.TOLD))
    assert acts == [Act.WAIT, Act.WAIT, Act.STOP, Act.WAIT]
    _, after = follow(*((moment, RUNNING) for moment in beats), progress=progress)
    assert after[:5] == [Act.WAIT, Act.WAIT, Act.STOP, Act.WAIT, Act.STOP]
    first_end = next(n for n, act in enumerate(after) if isinstance(act, End))
    assert beats[first_end] == 10 + STOP_PATIENCE_S
    assert after[first_end] == End(None, Stopping.CANCELLED)


def test_the_first_reason_to_stop_stays() -> None:
    progress, _ = follow(*again(RUNNING, 0, 300), (301, Sign.CANCEL), (302, RUNNING))
    assert progress.stopping is Stopping.STALLED
    beats = again(RUNNING, 2, 1000)
    progress, _ = follow((0, RUNNING), (1, Sign.CANCEL), *beats)
    assert progress.followed_s >= LIMITS.stall_timeout
    assert progress.stopping is Stopping.CANCELLED


def test_patience_counts_from_the_first_stop() -> None:
    """A wish that met an outage still sends a stop, and the run has its time to obey."""
    outage = again(Sign.OUT_OF_REACH, 2, 2 + 2 * STOP_PATIENCE_S)
    begin = outage[-1][0] + 1
    progress, acts = follow((0, RUNNING), (1, Sign.CANCEL), *outage, (begin, RUNNING))
    assert acts == [*[Act.WAIT] * (len(acts) - 1), Act.STOP]
    progress, _ = follow((begin, Sign.TOLD), (begin + 10, Sign.TOLD), progress=progress)
    assert progress.told_at == begin
    progress, acts = follow(
        (begin + 20, Sign.CANCEL),
        (begin + 20, RUNNING),
        (begin + STOP_PATIENCE_S - 1, RUNNING),
        (begin + STOP_PATIENCE_S, RUNNING),
        progress=progress,
    )
    assert acts == [Act.WAIT, Act.STOP, Act.STOP, End(None, Stopping.CANCELLED)]


def test_a_run_that_cannot_be_told_to_stop_is_waited_for_much_longer() -> None:
    """Patience with a run that was told says nothing of one that never was."""
    nearly = again(RUNNING, 2, UNTOLD_PATIENCE_S + 1)
    progress, acts = follow((0, RUNNING), (1, Sign.CANCEL), *nearly)
    assert set(acts[2:]) == {Act.STOP}
    _, acts = follow((2 + UNTOLD_PATIENCE_S, RUNNING), progress=progress)
    assert acts == [End(None, Stopping.CANCELLED, untold=True)]
    _, acts = follow((2 + UNTOLD_PATIENCE_S, Seen(RunStatus.COMPLETED)), progress=progress)
    assert acts == [End(RunStatus.COMPLETED, Stopping.CANCELLED)]


# --- a run that the server does not know --------------------------------------------------------


def test_a_run_is_lost_after_half_an_hour_of_nothing_else() -> None:
    nearly = [(0.0, RUNNING), *again(Sign.MISSING, 5, 5 + LOST_AFTER_S - 1)]
    _, acts = follow(*nearly)
    assert acts == [Act.WAIT] * len(nearly)
    _, acts = follow(*nearly, (5 + LOST_AFTER_S, Sign.MISSING))
    assert acts[-1] == End(None, lost=LOST)


def test_a_lost_run_that_was_to_stop_says_why() -> None:
    _, acts = follow((0, Sign.CANCEL), *again(Sign.MISSING, 5, 5 + LOST_AFTER_S))
    assert acts[-1] == End(None, Stopping.CANCELLED, lost=LOST)


def test_only_the_time_between_two_404s_in_a_row_is_missing_time() -> None:
    outage = again(Sign.OUT_OF_REACH, 30, 2 * LOST_AFTER_S, every=30)
    progress, acts = follow((0, Sign.MISSING), *outage, (3 * LOST_AFTER_S, Sign.MISSING))
    assert set(acts) == {Act.WAIT}
    assert progress.missing_s == 0


def test_missing_time_adds_up_over_an_outage() -> None:
    half = LOST_AFTER_S / 2
    first = again(Sign.MISSING, 0, half)
    second = again(Sign.MISSING, 10**5, 10**5 + half)
    _, acts = follow(*first, (half + 1, Sign.OUT_OF_REACH), *second)
    assert set(acts[:-1]) == {Act.WAIT}
    assert acts[-1] == End(None, lost=LOST)


def test_a_found_run_is_not_missing_any_more() -> None:
    missing = again(Sign.MISSING, 0, 1700)
    found = [*missing, (1750.0, RUNNING), *again(Sign.MISSING, 1751, 1751 + LOST_AFTER_S - 1)]
    progress, acts = follow(*found)
    assert set(acts) == {Act.WAIT}
    assert progress.missing_s == LOST_AFTER_S - 1
    _, acts = follow(*found, (1751 + LOST_AFTER_S, Sign.MISSING))
    assert acts[-1] == End(None, lost=LOST)


def test_time_in_which_a_run_is_missing_does_not_count() -> None:
    progress, _ = follow((0, RUNNING), (10, Sign.MISSING), (900, RUNNING))
    assert progress.followed_s == 0


# --- properties ---------------------------------------------------------------------------------

observations = st.sampled_from([*Sign, *(Seen(status) for status in RunStatus)])
pauses = st.floats(0, 400)


@given(st.lists(st.tuples(pauses, observations), max_size=40))
def test_only_the_server_patience_or_loss_ends_a_run(
    observed: list[tuple[float, Observation]],
) -> None:
    progress, now = Progress(), 0.0
    for pause, observation in observed:
        now += pause
        before = progress
        progress, act = step(progress, observation, now, LIMITS)
        assert progress.quiet_s >= 0
        assert before.followed_s <= progress.followed_s <= now
        assert progress.followed_s - before.followed_s <= TICK
        assert progress.quiet_s - before.quiet_s <= TICK
        assert progress.missing_s - before.missing_s <= TICK
        if act is Act.STOP:
            assert observation == RUNNING or observation == Seen(RunStatus.QUEUED)
            assert progress.stopping is not None
        if isinstance(act, End):
            assert (act.status is None) != (
                isinstance(observation, Seen) and observation.status.terminal
            )
            if act.status is None:
                assert act.lost or act.stopping
            return
