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
    Act,
    Limits,
    Observation,
    Progress,
    Seen,
    Sign,
    step,
)

LIMITS = Limits(run_timeout=1000.0, stall_timeout=300.0)
RUNNING = Seen(RunStatus.RUNNING)
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


# --- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", TERMINAL)
def test_a_terminal_status_ends(status: RunStatus) -> None:
    _, acts = follow((0, RUNNING), (5, Seen(status)))
    assert acts == [Act.WAIT, End(status)]


@pytest.mark.parametrize("status", TERMINAL)
def test_a_terminal_status_ends_whatever_the_clocks_say(status: RunStatus) -> None:
    _, acts = follow((0, RUNNING), (5000, Seen(status)))
    assert acts[-1] == End(status)


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
    progress, acts = follow((0, RUNNING), (299, RUNNING), (300, RUNNING))
    assert acts == [Act.WAIT, Act.WAIT, Act.STOP]
    assert progress.stopping is Stopping.STALLED


def test_news_start_the_quiet_anew() -> None:
    progress, acts = follow((0, RUNNING), (200, Sign.NEWS), (499, RUNNING), (500, RUNNING))
    assert acts[-2:] == [Act.WAIT, Act.STOP]
    assert progress.quiet_s == 300


def test_a_new_status_starts_the_quiet_anew() -> None:
    progress, _ = follow((0, Seen(RunStatus.QUEUED)), (290, RUNNING))
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
    _, acts = follow((0, RUNNING), (400, Sign.NEWS), (2000, Sign.OUT_OF_REACH), (2000, RUNNING))
    assert acts == [Act.WAIT] * 4
    _, acts = follow((0, RUNNING), (2000, Seen(RunStatus.COMPLETED)))
    assert acts[-1] == End(RunStatus.COMPLETED)


# --- stopping -----------------------------------------------------------------------------------


def test_a_stop_is_repeated_and_patience_ends() -> None:
    beats = [10.0 + STOP_EVERY_S * number / 2 for number in range(40)]
    _, acts = follow((0, RUNNING), (10, Sign.CANCEL), *((moment, RUNNING) for moment in beats))
    after = acts[2:]
    assert after[:5] == [Act.STOP, Act.WAIT, Act.STOP, Act.WAIT, Act.STOP]
    first_end = next(n for n, act in enumerate(after) if isinstance(act, End))
    assert beats[first_end] == 10 + STOP_PATIENCE_S
    assert after[first_end] == End(None, Stopping.CANCELLED)


def test_the_first_reason_to_stop_stays() -> None:
    progress, _ = follow((0, RUNNING), (300, RUNNING), (301, Sign.CANCEL), (302, RUNNING))
    assert progress.stopping is Stopping.STALLED
    progress, _ = follow((0, RUNNING), (1, Sign.CANCEL), (2, Sign.CANCEL))
    assert progress.stopping_since == 1


# --- a run that the server does not know --------------------------------------------------------


def test_a_run_is_lost_after_half_an_hour_of_nothing_else() -> None:
    _, acts = follow((0, RUNNING), (5, Sign.MISSING), (5 + LOST_AFTER_S - 1, Sign.MISSING))
    assert acts == [Act.WAIT] * 3
    _, acts = follow((5, Sign.MISSING), (5 + LOST_AFTER_S, Sign.MISSING))
    assert acts == [Act.WAIT, End(None, lost="404 for 30 minutes")]


def test_a_found_run_is_not_missing_any_more() -> None:
    _, acts = follow((0, Sign.MISSING), (1000, RUNNING), (1001, Sign.MISSING), (2900, Sign.MISSING))
    assert all(act is Act.WAIT for act in acts[:3])
    assert acts[3] == End(None, lost="404 for 32 minutes")
    _, acts = follow((0, Sign.MISSING), (1000, RUNNING), (1001, Sign.MISSING), (2000, Sign.MISSING))
    assert acts[3] is Act.WAIT


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
