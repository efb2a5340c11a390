from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from orchestrator.errors import InvalidJob
from orchestrator.request import (
    MAX_NAME,
    MAX_REQUEST_BYTES,
    OPTIONS,
    Defaults,
    job_values,
    request_body,
)
from orchestrator.states import RETRYABLE_KINDS, Endpoint, OnInDoubt
from tests.builders import a_job

UUID = "3c90c3cc-0d44-4b50-8888-8dd25736052a"
PARTS = [{"type": "text", "text": "hi"}]


def refusal(**options: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        job_values(options)
    return caught.value


# --- the rules ----------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "exactly one of prompt and messages"),
    ({"prompt": "a", "messages": [{"content": "b"}]}, "prompt", "drop one of them"),
    ({"messages": [{"content": "a"}], "input_messages": []}, "messages", "not both"),
    ({"prompt": ""}, "prompt", "blank prompt counts as none"),
    ({"prompt": " \n\t "}, "prompt", "blank prompt counts as none"),
    ({"prompt": 5}, "prompt", "must be text, not int"),
    ({"prompt": b"a"}, "prompt", "must be text, not bytes"),
    ({"prompt": "a\x00"}, "prompt", "NUL or half of a surrogate pair"),
    ({"prompt": "a\ud800"}, "prompt", "or send the text as messages"),
    ({"prompt": "a" * MAX_REQUEST_BYTES}, "prompt", "shorten it"),
    ({"messages": []}, "input_messages", "at least one message"),
    ({"messages": "hi"}, "input_messages", "at least one message"),
    ({"messages": ["hi"]}, "input_messages[0]", '{"role": "user"'),
    ({"messages": [{"id": "1"}]}, "input_messages[0].content", "or its parts"),
    ({"messages": [{"content": 5}]}, "input_messages[0].content", "or its parts"),
    ({"messages": [{"content": "a", "role": "tool"}]}, "input_messages[0].role", "assistant"),
    ({"messages": [{"parts": []}]}, "input_messages[0].parts", "must be a list such as"),
    ({"messages": [{"parts": "x"}]}, "input_messages[0].parts", "must be a list such as"),
    ({"messages": [{"parts": [{"text": "x"}]}]}, "input_messages[0].parts", "must be a list"),
    (
        {"messages": [{"content": "a"}, {"parts": [*PARTS, {"type": "text"}]}]},
        "input_messages[1].parts[1].text",
        "must be text",
    ),
    ({"messages": [{"content": float("nan")}]}, "input_messages", "no JSON"),
    ({"messages": [{"content": "a", "x": object()}]}, "input_messages", "no JSON"),
    ({"prompt": "a", "artist_id": "42"}, "artist_id", "must be a UUID"),
    ({"prompt": "a", "artist_id": UUID.replace("-", "")}, "artist_id", "must be a UUID"),
    ({"prompt": "a", "artist_id": f"{{{UUID}}}"}, "artist_id", "must be a UUID"),
    ({"prompt": "a", "account_id": "x"}, "account_id", "must be a UUID"),
    ({"prompt": "a", "organization_id": "x"}, "organization_id", "must be a UUID"),
    ({"prompt": "a", "model": "  "}, "model", f"1 to {MAX_NAME} characters"),
    ({"prompt": "a", "queue": "q" * (MAX_NAME + 1)}, "queue", f"1 to {MAX_NAME}"),
    ({"prompt": "a", "batch": ""}, "batch", "1 to"),
    ({"prompt": "a", "unique_key": "k\x00"}, "unique_key", "NUL"),
    ({"prompt": "a", "tags": "x"}, "tags", "list of texts"),
    ({"prompt": "a", "tags": [1]}, "tags", "must be text"),
    ({"prompt": "a", "metadata": [1]}, "metadata", "JSON object"),
    ({"prompt": "a", "metadata": {1: 2}}, "metadata", "JSON object"),
    ({"prompt": "a", "metadata": {"a": {1, 2}}}, "metadata", "no JSON"),
    ({"prompt": "a", "priority": "high"}, "priority", "whole number"),
    ({"prompt": "a", "priority": True}, "priority", "whole number"),
    ({"prompt": "a", "priority": 2**31}, "priority", "whole number"),
    ({"prompt": "a", "max_attempts": 0}, "max_attempts", "from 1 to 100"),
    ({"prompt": "a", "max_attempts": 1.5}, "max_attempts", "whole number"),
    ({"prompt": "a", "retry_on": "stalled"}, "retry_on", "must be a list of"),
    ({"prompt": "a", "retry_on": ["no_output"]}, "retry_on", "must be one of"),
    ({"prompt": "a", "on_in_doubt": "wait"}, "on_in_doubt", "hold, resubmit, fail"),
    ({"prompt": "a", "endpoint": "stream"}, "endpoint", "runs, generate"),
    ({"prompt": "a", "run_timeout": 0}, "run_timeout", "longer than nothing"),
    ({"prompt": "a", "run_timeout": "soon"}, "run_timeout", "number of seconds"),
    ({"prompt": "a", "stall_timeout": -1}, "stall_timeout", "number of seconds"),
    ({"prompt": "a", "scheduled_at": "tomorrow"}, "scheduled_at", "write a time such as"),
    ({"prompt": "a", "scheduled_at": 5}, "scheduled_at", "must be a datetime"),
    ({"prompt": "a", "scheduled_at": "2026-01-31T08:00"}, "scheduled_at", "no time zone"),
    (
        {
            "prompt": "a",
            "scheduled_at": "2026-01-31T08:00:00Z",
            "expires_at": "2026-01-31T08:00:00Z",
        },
        "expires_at",
        "later than scheduled_at",
    ),
    ({"prompt": "a", "topic": "t"}, "topic", "the runs endpoint drops this field"),
    ({"prompt": "a", "room_id": UUID}, "room_id", "endpoint='generate'"),
    ({"prompt": "a", "exclude_tools": ["x"]}, "exclude_tools", "endpoint='generate'"),
    (
        {"prompt": "a", "endpoint": "generate", "account_id": UUID},
        "account_id",
        "endpoint='runs'",
    ),
    (
        {"prompt": "a", "endpoint": "generate", "retry_on": ["stalled"]},
        "retry_on",
        "no run whose end could be retried",
    ),
    ({"prompt": "a", "promt": "b"}, "promt", "did you mean prompt?"),
    ({"prompt": "a", "zzz": 1}, "zzz", "the options are prompt,"),
    ({"prompt": "a", "state": "completed"}, "state", "there is no such option"),
]


@pytest.mark.parametrize(
    ("options", "field", "remedy"), REFUSED, ids=[f"{n}-{row[1]}" for n, row in enumerate(REFUSED)]
)
def test_a_refusal_names_field_value_and_remedy(
    options: dict[str, Any], field: str, remedy: str
) -> None:
    error = refusal(**options)
    assert error.field == field
    assert remedy in error.remedy
    shown = str(error)
    assert shown.startswith(f"{field}: ")
    assert shown.endswith(error.remedy)
    assert len(shown) < 600


# --- what is made of it -------------------------------------------------------------------------


def test_none_counts_as_not_given() -> None:
    assert job_values({"prompt": "a", "messages": None, "model": None, "tags": None}) == {
        "prompt": "a",
        "queue": "default",
        "max_attempts": 1,
    }


def test_defaults_fill_what_is_not_given() -> None:
    defaults = Defaults("q", "m", 3)
    assert job_values({"prompt": "a"}, defaults) == {
        "prompt": "a",
        "queue": "q",
        "model": "m",
        "max_attempts": 3,
    }
    given = {"prompt": "a", "queue": "r", "model": "n", "max_attempts": 1}
    assert job_values(given, defaults) == given


def test_a_prompt_is_kept_as_it_is() -> None:
    assert job_values({"prompt": "  a \n"})["prompt"] == "  a \n"


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"id": "1", "content": "hi"}, {"id": "1", "role": "user", "parts": PARTS}),
        ({"role": "assistant", "content": "hi"}, {"role": "assistant", "parts": PARTS}),
        ({"role": "user", "parts": PARTS}, {"role": "user", "parts": PARTS}),
        ({"role": "user", "parts": PARTS, "content": "old"}, {"role": "user", "parts": PARTS}),
        ({"content": PARTS}, {"role": "user", "parts": PARTS}),
        (
            {"content": "\x00\ud800"},
            {"role": "user", "parts": [{"type": "text", "text": "\x00\ud800"}]},
        ),
    ],
)
def test_messages_get_the_form_that_the_server_needs(
    given: dict[str, Any], made: dict[str, Any]
) -> None:
    assert job_values({"messages": [given]})["input_messages"] == [made]


def test_times_are_brought_to_utc() -> None:
    local = datetime(2026, 1, 31, 9, tzinfo=timezone(timedelta(hours=1)))
    for value in (local, "2026-01-31T09:00:00+01:00", "2026-01-31T08:00:00Z"):
        made = job_values({"prompt": "a", "scheduled_at": value})["scheduled_at"]
        assert made == datetime(2026, 1, 31, 8, tzinfo=UTC)
        assert made.tzinfo is UTC


def test_durations_and_uuids_have_more_than_one_form() -> None:
    ids = {"artist_id": uuid.UUID(UUID), "account_id": UUID.upper()}
    made = job_values({"prompt": "a", "run_timeout": "1h30m", **ids})
    assert made["run_timeout"] == 5400.0
    assert made["artist_id"] == UUID
    assert made["account_id"].lower() == UUID


def test_the_body_has_the_apis_names_and_nothing_else() -> None:
    job = a_job(
        prompt="p",
        model="m",
        artist_id=UUID,
        account_id=UUID,
        organization_id=UUID,
        queue="q",
        tags=["t"],
        metadata={"a": 1},
    )
    assert request_body(job) == {
        "prompt": "p",
        "model": "m",
        "artistId": UUID,
        "accountId": UUID,
        "organizationId": UUID,
    }


def test_the_body_of_the_older_endpoint() -> None:
    job = a_job(
        endpoint=Endpoint.GENERATE,
        input_messages=[{"content": "hi"}],
        exclude_tools=["x"],
        room_id=UUID,
        topic="t",
    )
    assert request_body(job) == {
        "messages": [{"role": "user", "parts": PARTS}],
        "excludeTools": ["x"],
        "roomId": UUID,
        "topic": "t",
    }


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "a", "artist_id": "42"}, "artist_id"),
        ({"input_messages": ["hi"]}, "input_messages[0]"),
        ({"prompt": "a", "topic": "t"}, "topic"),
        ({"prompt": "a", "exclude_tools": "x", "endpoint": Endpoint.GENERATE}, "exclude_tools"),
    ],
)
def test_a_row_from_plain_sql_is_checked_again(columns: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        request_body(a_job(**columns))
    assert caught.value.field == field


# --- properties ---------------------------------------------------------------------------------

text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=30)
name = text.filter(lambda value: value.strip() != "")
uuids = st.uuids().map(str)
anything_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {"content": st.text(max_size=20)},
    optional={"id": st.text(max_size=9), "role": st.sampled_from(["user", "assistant", "system"])},
) | st.fixed_dictionaries({"parts": st.just(PARTS)}, optional={"metadata": anything_json})
asked = st.fixed_dictionaries({"prompt": name}) | st.fixed_dictionaries(
    {"messages": st.lists(message, min_size=1, max_size=3)}
)
shared: dict[str, st.SearchStrategy[Any]] = {
    "model": name,
    "artist_id": uuids,
    "queue": name,
    "priority": st.integers(-(2**31) + 1, 2**31 - 1),
    "tags": st.lists(name, max_size=3),
    "metadata": st.dictionaries(st.text(max_size=5), anything_json, max_size=3),
    "unique_key": name,
    "scheduled_at": st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    "max_attempts": st.integers(1, 100),
    "on_in_doubt": st.sampled_from([word.value for word in OnInDoubt]),
    "run_timeout": st.floats(0.001, 1e6),
}
runs = st.fixed_dictionaries(
    {},
    optional={
        **shared,
        "account_id": uuids,
        "organization_id": uuids,
        "retry_on": st.lists(st.sampled_from(sorted(RETRYABLE_KINDS)), max_size=3),
    },
)
generate = st.fixed_dictionaries(
    {"endpoint": st.just("generate")},
    optional={
        **shared,
        "exclude_tools": st.lists(name, max_size=3),
        "room_id": uuids,
        "topic": name,
    },
)
options = st.builds(lambda one, other: {**one, **other}, asked, runs | generate)


def accepted_by_the_documented_rules(body: dict[str, Any]) -> bool:
    """The rules of the API's public pages and source, written down once more on their own."""
    assert json.loads(json.dumps(body)) == body
    prompt, messages = body.get("prompt"), body.get("messages")
    given = [isinstance(prompt, str) and prompt.strip() != "", bool(messages)]
    one = sum(given) == 1 and ("prompt" in body) + ("messages" in body) == 1
    well_formed = all(
        isinstance(item.get("role"), str)
        and all(part["type"] != "text" or isinstance(part["text"], str) for part in item["parts"])
        for item in messages or []
    )
    ids = [
        body[key] for key in ("artistId", "accountId", "organizationId", "roomId") if key in body
    ]
    known = {"prompt", "messages", "artistId", "model", "accountId", "organizationId"}
    older = {"prompt", "messages", "artistId", "model", "excludeTools", "roomId", "topic"}
    return (
        one
        and well_formed
        and all(str(uuid.UUID(value)) == value for value in ids)
        and (body.keys() <= known or body.keys() <= older)
        and isinstance(body.get("model", ""), str)
    )


@given(options)
def test_what_is_accepted_here_is_accepted_there(chosen: dict[str, Any]) -> None:
    values = job_values(chosen)
    body = request_body(a_job(**values | {"endpoint": Endpoint(values.get("endpoint", "runs"))}))
    assert accepted_by_the_documented_rules(body)


@given(options)
def test_a_rows_body_is_the_one_that_was_checked(chosen: dict[str, Any]) -> None:
    """A row that is checked again, as a worker does, stays as it is."""
    values = job_values(chosen)
    again = job_values(values)
    assert again == values
    job = a_job(**values | {"endpoint": Endpoint(values.get("endpoint", "runs"))})
    body = request_body(job)
    columns = {"artistId": "artist_id", "accountId": "account_id", "roomId": "room_id"}
    columns |= {"organizationId": "organization_id", "excludeTools": "exclude_tools"}
    columns |= {"messages": "input_messages"}
    for key, value in body.items():
        assert value == values[columns.get(key, key)]
    assert set(OPTIONS) >= values.keys()


@given(st.dictionaries(st.sampled_from(OPTIONS), anything_json, max_size=4))
def test_nonsense_is_refused_or_makes_sense(chosen: dict[str, Any]) -> None:
    try:
        values = job_values(chosen)
    except InvalidJob:
        return
    body = request_body(a_job(**values | {"endpoint": Endpoint(values.get("endpoint", "runs"))}))
    assert accepted_by_the_documented_rules(body)
