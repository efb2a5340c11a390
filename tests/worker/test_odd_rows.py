"""Values that are hard to keep, from enqueue to the stored message; and rows that others wrote."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import Any

import psycopg
import pytest

from orchestrator.store.types import plain

from .harness import Bench, canonical

TEXTS = {
    "bidi": "\u202eevil\u202c \u2066isolate\u2069 \u200f",
    "beyond the basic plane": "🎵 👩‍👩‍👧‍👦 \U00020000 \U0010fffd",
    "noncharacters": "\uffff \ufffe \ufdd0 \U0010ffff \ue000",
    "combining": "e\u0301 Z\u0351\u036b\u0343 \u1100\u1161\u11a8 \ufb01",
    "line ends": "a\r\nb\rc\nd\u2028e\u2029f\u0085g\x0bh\x0ci",
    "controls": "\x01\x07\x08\x1b[2J\x7f\x9b\t",
    "zero width": "a\u200bb\u200dc\ufeffd\u2060e\xadf",
    "code": "'; DROP TABLE jobs; -- \" \\ \\x41 %s %(x)s %% :x $1 {} {0} \\u0000",
    "replacement": "\ufffd",
    "long": "wörter" * 5_000,
}


async def test_every_text_is_kept_on_its_whole_way(bench: Bench) -> None:
    prompts = {name: f"do {text} now [text={json.dumps(text)}]" for name, text in TEXTS.items()}
    ids = dict(zip(prompts, await bench.enqueue(*prompts.values(), tags=["\uffff🎵"]), strict=True))
    assert await bench.once() == 0
    for name, job_id in ids.items():
        job = await bench.assert_completed(job_id, TEXTS[name])
        assert job.prompt == prompts[name]
        assert (job.request, job.tags) == ({"prompt": prompts[name]}, ["\uffff🎵"])
        (kept,) = await bench.messages(job_id)
        assert kept.text == TEXTS[name]


UNHOLDABLE = "nul \x00 high \ud83c low \udfb5 pair 🎵 end"
METADATA = {
    "nul\x00\ud800": "\x00\udfff",
    "whole": [2**53 + 1, 2**64, -(2**100), 0],
    "real": [1e308, 5e-324, 0.1, -2.5e-10],
    "": {"null": None, "empty": [{}, [], ""], "yes": True},
    "like": ["NaN", "Infinity", "\\u0000", "null"],
}


async def test_what_text_cannot_hold_is_replaced_there_and_whole_in_json(bench: Bench) -> None:
    words = f"{UNHOLDABLE} [text={json.dumps(UNHOLDABLE)} reasoning={json.dumps(UNHOLDABLE)}]"
    (job_id,) = await bench.enqueue_rows({"messages": [{"content": words}], "metadata": METADATA})
    assert await bench.once() == 0
    job = await bench.job(job_id)
    sent = [{"role": "user", "parts": [{"type": "text", "text": words}]}]
    assert job.input_messages == sent
    assert job.request == {"messages": sent}
    assert job.metadata == METADATA
    assert bench.posts(words) == 1
    await bench.assert_kept(job)
    (kept,) = await bench.messages(job_id)
    assert [part["text"] for part in kept.message["parts"] if part["type"] != "step-start"] == [
        UNHOLDABLE
    ] * 2
    assert job.result_text == kept.text == plain(UNHOLDABLE)
    assert "\x00" not in plain(UNHOLDABLE)
    assert "🎵" in plain(UNHOLDABLE)


def nested(depth: int) -> Any:
    value: Any = "the innermost"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(METADATA | {"whole": [2**53 - 1, -(2**53)]}, id="odd"),
        pytest.param(nested(500), id="nested"),
    ],
)
async def test_what_a_tool_gave_is_kept_exactly(bench: Bench, value: Any) -> None:
    (job_id,) = await bench.enqueue(
        f'[steps=2 tool=odd input={json.dumps(value)} output={json.dumps(value)} text="Done."]'
    )
    assert await bench.once() == 0
    job = await bench.assert_completed(job_id, "Done.")
    (message,) = [row.message for row in await bench.messages(job.id)]
    (call,) = [part for part in message["parts"] if part["type"] == "tool-odd"]
    assert (call["input"], call["output"]) == (canonical(value), canonical(value))


async def test_a_row_that_cannot_be_read_stands_in_nobodys_way(bench: Bench) -> None:
    """A database takes JSON that Python does not: each claim of each worker would meet it."""
    many_digits = '{"n": ' + "7" * 5000 + "}"
    for columns, values in (
        ("prompt, metadata", {"a": 'kept [text="Fine."]', "b": many_digits}),
        ("prompt, tags", {"a": 'endless [text="Fine."]', "b": '[1e999, "t"]'}),
        ("input_messages, batch", {"a": f"[{many_digits}]", "b": "odd"}),
        ("prompt, exclude_tools", {"a": "odd", "b": many_digits}),
    ):
        await bench.execute(f"INSERT INTO jobs ({columns}) VALUES (:a, :b)", **values)  # noqa: S608 - our own words
    (good,) = await bench.enqueue('good [text="Fine."]')
    assert await bench.once() == 3
    states = [(await bench.job(job_id)).state for job_id in (1, 2, 3, 4)]
    assert states == ["completed", "completed", "failed", "failed"]
    kept: object = (await bench.job(1)).metadata
    assert kept == many_digits
    for job_id, field in ((3, "input_messages"), (4, "exclude_tools")):
        job = await bench.job(job_id)
        assert (job.error_kind, job.attempt) == ("rejected", 0)
        assert field in (job.error or "")
    await bench.assert_completed(good, "Fine.")
    assert bench.all_posts() == 3


async def test_a_plain_driver_enqueues(bench: Bench) -> None:
    statement = "INSERT INTO jobs (prompt) VALUES ('plain [text=\"It works.\"]')"
    async with bench.working():
        if bench.url.startswith("sqlite"):
            path = bench.url.removeprefix("sqlite:///")
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute(statement)
                connection.commit()
        else:
            with psycopg.connect(bench.url) as connection:
                connection.execute(statement)
        await bench.until_settled(1)
    job = await bench.assert_completed(1, "It works.")
    assert (job.queue, job.attempt, job.max_attempts) == ("default", 1, 1)
