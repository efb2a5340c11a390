"""Statements that are run over rows keep each value as it was, whatever its company."""

from __future__ import annotations

import random
from typing import Any

import pytest

from orchestrator.job import Message
from orchestrator.outcome import Outcome
from orchestrator.states import State
from orchestrator.store.rows import told
from orchestrator.store.schema import jobs
from orchestrator.store.verbs import look, outcomes
from orchestrator.store.verbs.outcomes import Applied

from .desk import Desk

TEXTS = [
    "",
    "null",
    "0",
    "1e5",
    'it\'s "quoted" and \\escaped\\',
    "line\nbreak\r\ttab",
    "\ufeff\uffff caf\u00e9 \U0001f600",
    "{}",
    ":its_id %(rows)s ? $1",
    "a" * 70_000,
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -(2**62),
    10**40,
    5e-324,
    1.7976931348623157e308,
    "\x00 and \ud83d alone",
    {"": [], "a": {"b": None}},
    ["'", '"', "\\", "\u2028"],
]


def _settled(desk: Desk, kept: list[tuple[dict[str, Any], Any]]) -> None:
    """Settle a job with each of these columns and message contents, all at once, and compare."""
    running = [desk.running() for _ in kept]
    ends = [
        Applied(
            job=job,
            outcome=Outcome(State.COMPLETED, "run.completed", columns=columns),
            by="w1",
            kept=[Message(0, None, "assistant", "text", {"content": content}, "server")],
        )
        for job, (columns, content) in zip(running, kept, strict=True)
    ]
    done = desk.write(outcomes.apply_each, ends)
    assert done == [desk.get(job.id) for job in running]
    for job, (columns, content) in zip(done, kept, strict=True):
        assert {name: getattr(job, name) for name in columns} == columns
        (message,) = desk.read(look.messages_of, job.id)
        assert message.message == {"content": content}


def test_texts_and_json_come_back_as_they_were(desk: Desk) -> None:
    _settled(desk, [({"result_text": text}, text) for text in TEXTS])
    _settled(desk, [({"result_text": "x"}, value) for value in VALUES])


def test_numbers_come_back_to_the_last_bit(desk: Desk) -> None:
    chance = random.Random(7)  # noqa: S311 - any numbers will do
    costs = [0.1 + 0.2, 0.04175327737820533, 1e-7, 5e-324, 1.7976931348623157e308, 3.0]
    costs += [chance.random() * 10.0 ** chance.randint(-12, 12) for _ in range(50)]
    tokens = [0, 1, 2**53 + 1, 2**62 + 3]
    _settled(
        desk,
        [
            ({"cost_usd": cost, "total_tokens": tokens[number % len(tokens)]}, cost)
            for number, cost in enumerate(costs)
        ],
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_large_row_among_small_ones_is_written_like_any(desk: Desk, place: int) -> None:
    texts = ["small", "as small"]
    texts.insert(place, 'very large, and \\ full of " escapes\n' * 40_000)
    _settled(desk, [({"result_text": text}, text) for text in texts])


def test_no_row_shares_a_portion_with_a_large_one() -> None:
    sizes = [10, 10, 1_200_000, 10, 600_000, 600_000, 10]
    columns: list[list[Any]] = [list(range(len(sizes))), ["x" * size for size in sizes]]
    kinds = {"id": jobs.c.id.type, "result_text": jobs.c.result_text.type}
    portions = [each["rows"].count('"id"') for each in told("postgresql", kinds, columns)]
    assert portions == [2, 1, 2, 2]
