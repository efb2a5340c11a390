"""The dev server's stored message against the fold, each an independent reading of the protocol."""

from __future__ import annotations

import json

import pytest

from orchestrator.devserver.plan import Pace, plan_run
from orchestrator.devserver.script import read_script
from orchestrator.recoup.fold import fold_message

HARD = json.dumps("a\x00\u2028\x1b[0m 😀\u202e \ud83d end")


@pytest.mark.parametrize(
    "prompt",
    [
        "plain",
        "x [steps=3 tools=3 reasoning sources files commit]",
        "x [steps=4 tool_error cost=0.1 no_metadata]",
        "x [finish=tool-calls]",
        "x [finish=error error_chunk]",
        'x [steps=3 cost=1 reasoning input={"a":"é😀"} output=[1,null]]',
        "x [steps=2 output=null]",
        "x [steps=2 output=0 input=false]",
        'x [text=""]',
        'x [text="half of it" extra=[{"type":"x-new","y":1}]]',
        f"x [split=1 text={HARD} reasoning={HARD}]",
    ],
)
def test_every_stored_message_is_what_its_chunks_fold_to(prompt: str) -> None:
    plan = plan_run(read_script(prompt), message_id="msg_1", model="m", pace=Pace())
    chunks = []
    stored = 0
    for beat in plan.beats:
        if beat.chunk is not None:
            chunks.append(beat.chunk)
        if beat.message is not None:
            assert beat.message == fold_message(chunks).message
            stored += 1
    assert stored >= read_script(prompt).steps
