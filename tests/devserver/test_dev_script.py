from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.devserver.plan import Pace, plan_run
from orchestrator.devserver.script import Script, read_script
from orchestrator.devserver.wire import stringify

if TYPE_CHECKING:
    from .client import Client


def chunks(prompt: str) -> list[dict[str, Any]]:
    plan = plan_run(read_script(prompt), message_id="msg_1", model="m", pace=Pace())
    return list(plan.chunks)


def types(prompt: str) -> list[str]:
    return [chunk["type"] for chunk in chunks(prompt)]


@pytest.mark.parametrize(
    ("prompt", "script"),
    [
        ("hi", Script(subject="hi")),
        ("hi [1] and [a link](x)", Script(subject="hi [1] and [a link](x)")),
        ("hi [steps=2 unknown]", Script(subject="hi [steps=2 unknown]")),
        ("hi [steps=many]", Script(subject="hi [steps=many]")),
        ("[x] hi [steps=2]", Script(subject="[x] hi", steps=2)),
        ("hi [steps=3 hang]", Script(subject="hi", steps=3, hang=3)),
        ("hi [hang=2 steps=3]", Script(subject="hi", steps=3, hang=2)),
        ("hi [tool=search]", Script(subject="hi", steps=2, tool="search")),
        ("hi [cost=none fail]", Script(subject="hi", cost=None, fail=1)),
        (r'hi [text="a ] b\n\ud83d\ude00"]', Script(subject="hi", text="a ] b\n😀")),
        ('hi [input={"a":[1]} steps=2]', Script(subject="hi", steps=2, input={"a": [1]})),
        ("hi [commit sources=3]", Script(subject="hi", commit="success", sources=3)),
    ],
)
def test_directives_are_read(prompt: str, script: Script) -> None:
    assert read_script(prompt) == script


def test_a_plain_prompt_gives_one_step_that_mentions_it() -> None:
    given = chunks("the moon")
    assert [chunk["type"] for chunk in given][:3] == ["start", "start-step", "text-start"]
    assert [chunk["type"] for chunk in given][-4:] == [
        "text-end",
        "finish-step",
        "message-metadata",
        "finish",
    ]
    assert "the moon" in "".join(chunk.get("delta", "") for chunk in given)


def test_deltas_join_to_the_text_whatever_it_holds() -> None:
    text = "a  b\n\u2028\x00\x1b[31m‮ 😀 \ud83d"
    for split in (0, 1, 2, 7):
        given = chunks(f"x [split={split} text={json.dumps(text)}]")
        deltas = [chunk["delta"] for chunk in given if chunk["type"] == "text-delta"]
        joined = "".join(deltas).encode("utf-16-le", "surrogatepass")
        assert joined == text.encode("utf-16-le", "surrogatepass")
        assert len(deltas) > 1


def test_json_is_written_as_javascript_writes_it() -> None:
    assert stringify({"a": "\u2028\x85é😀\x7f"}) == '{"a":"\u2028\x85é😀\x7f"}'
    assert stringify('\x00\n"\\\ud83d') == r'"\u0000\n\"\\\ud83d"'


def test_tokens_make_as_many_words() -> None:
    given = chunks("x [tokens=40]")
    text = "".join(chunk.get("delta", "") for chunk in given)
    assert len(text.split()) == 40


def test_each_iteration_reports_usage_and_cost_after_its_step() -> None:
    given = chunks("x [steps=3 cost=0.1 reasoning finish=length]")
    reported = [
        (given[index - 1]["type"], chunk["messageMetadata"])
        for index, chunk in enumerate(given)
        if chunk["type"] == "message-metadata"
    ]
    assert [before for before, _ in reported] == ["finish-step"] * 3
    last = reported[-1][1]
    assert last["lastStepFinishReason"] == "length"
    assert [step["finishReason"] for step in last["stepFinishReasons"]] == [
        "tool-calls",
        "tool-calls",
        "length",
    ]
    assert last["totalMessageCost"] == 0.1 + 0.1 + 0.1
    totals = last["totalMessageUsage"]
    for name in ("inputTokens", "outputTokens", "totalTokens", "reasoningTokens"):
        assert totals[name] == sum(metadata["lastStepUsage"][name] for _, metadata in reported)


def test_a_retried_step_stands_twice_in_the_stream_and_once_in_the_message() -> None:
    plan = plan_run(
        read_script("x [steps=2 retry_step=2]"), message_id="msg_1", model="m", pace=Pace()
    )
    kinds = [chunk["type"] for chunk in plan.chunks]
    assert kinds.count("start-step") == 3
    assert kinds.count("finish-step") == 2
    assert "error" in kinds
    (*_, message) = [beat.message for beat in plan.beats if beat.message]
    assert [part["type"] for part in message["parts"]].count("step-start") == 2


def test_failing_steps_are_tried_and_end_with_finish() -> None:
    given = types("x [steps=3 fail=2]")
    assert given.count("start-step") == 1 + 4
    assert given.count("finish-step") == 1
    assert given[-1] == "finish"
    assert types("x [fail=0]") == []
    assert types("x [skipped]") == []


def test_a_commit_follows_finish() -> None:
    given = chunks("x [commit=error]")
    after = given[[chunk["type"] for chunk in given].index("finish") + 1 :]
    assert [chunk["data"]["status"] for chunk in after] == ["pending", "error"]
    assert len({chunk["id"] for chunk in after}) == 1


async def test_queued_and_skipped_runs(client: Client) -> None:
    queued = await client.start("x [queued=60]")
    assert await client.status(queued) == "queued"
    skipped = await client.start("x [skipped]")
    assert await client.ended(skipped) == "completed"
    assert (await client.chat(skipped))["messages"] == []


async def test_a_failed_run_keeps_what_earlier_steps_left(client: Client) -> None:
    ids = await client.start("x [steps=3 fail=3]")
    assert await client.ended(ids) == "failed"
    kinds = [part["type"] for part in (await client.message(ids))["parts"]]
    assert kinds == ["step-start", "text", "tool-bash"] * 2
    early = await client.start("x [fail]")
    assert await client.ended(early) == "failed"
    assert (await client.chat(early))["messages"] == []


async def test_an_unknown_model_is_found_out_in_the_run(client: Client) -> None:
    ids = await client.start("x", model="unknown/model")
    assert await client.ended(ids) == "failed"
    named = await client.start("x", model="  openai/gpt-5-mini ")
    await client.ended(named)
    assert (await client.message(named))["metadata"]["modelId"] == "openai/gpt-5-mini"
