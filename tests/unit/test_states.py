from __future__ import annotations

import pytest

from orchestrator.states import (
    CLAIMED,
    FAILED_KINDS,
    RETRYABLE_KINDS,
    SETTLED,
    TRANSITIONS,
    ErrorKind,
    State,
    kinds_of,
)

LEADS_TO = {
    "queued": "submitting cancelled failed",
    "submitting": "running queued in_doubt failed cancelled completed",
    "in_doubt": "queued running completed failed cancelled",
    "running": "completed failed cancelled queued",
    "completed": "queued",
    "failed": "queued",
    "cancelled": "queued",
}
"""The table as the documentation states it."""


def test_the_transition_table_is_the_documented_one() -> None:
    table = {state.value: {other.value for other in TRANSITIONS[state]} for state in TRANSITIONS}
    assert table == {state: set(others.split()) for state, others in LEADS_TO.items()}


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[State.QUEUED] = frozenset()  # type: ignore[index]  # that is what is tested


def test_every_state_can_be_reached_and_left() -> None:
    assert set().union(*TRANSITIONS.values()) == set(State)
    assert all(TRANSITIONS.values())


def test_settled_states_are_left_only_for_the_queue() -> None:
    assert {state for state in State if state.settled} == SETTLED
    for state in SETTLED:
        assert TRANSITIONS[state] == {State.QUEUED}
    assert not CLAIMED & SETTLED


def test_each_kind_belongs_to_one_state() -> None:
    owners = {kind: [state for state in State if kind in kinds_of(state)] for kind in ErrorKind}
    assert all(len(states) == 1 for states in owners.values())
    assert {kind for kind, (state,) in owners.items() if state is State.FAILED} == FAILED_KINDS
    assert owners[ErrorKind.IN_DOUBT] == [State.IN_DOUBT]
    assert owners[ErrorKind.CANCELLED] == [State.CANCELLED]


def test_only_kinds_of_a_run_that_the_api_ended_may_be_retried() -> None:
    assert RETRYABLE_KINDS < FAILED_KINDS
    never = {"rejected", "run_lost", "no_output", "incomplete", "model_error", "collect_failed"}
    assert not {kind.value for kind in RETRYABLE_KINDS} & never
