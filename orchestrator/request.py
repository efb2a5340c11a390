"""What a job asks of the API: validated as the server would, before anything is written or spent.

The rules are those of the API's public pages and of its source; where the server accepts what can
only fail (a message without `parts`), the request is brought into the form that works.
"""

from __future__ import annotations

import difflib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.config import parse_duration
from orchestrator.errors import ConfigError, InvalidJob
from orchestrator.job import Job
from orchestrator.states import RETRYABLE_KINDS, Endpoint, OnInDoubt

MAX_REQUEST_BYTES = 4_500_000
"""The platform answers a larger body with 413 before the API sees it."""

MAX_NAME = 255
"""The longest queue, batch, tag or unique key, in characters."""

MAX_DEPTH = 500
"""The deepest nesting of JSON, well within what Python reads and writes from anywhere."""

_FROM = datetime(1, 1, 2, tzinfo=UTC)
_AFTER = datetime(9999, 12, 31, tzinfo=UTC)
"""What the databases take: a day within what Python has, so that each zone can show it."""

_ROLES = ("user", "assistant", "system")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

Column = str
Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a job gets where the caller names nothing: the `[defaults]` of the configuration."""

    queue: str = "default"
    model: str | None = None
    max_attempts: int = 1


def job_values(options: Options, defaults: Defaults | None = None) -> dict[Column, Any]:
    """Return the columns of a job to insert, checked.

    `options` are column names with values; `messages` stands for `input_messages`. Options that
    are None count as not given. Raises InvalidJob with field, value and remedy; nothing is
    written.
    """
    defaults = defaults or Defaults()
    given = {name: value for name, value in options.items() if value is not None}
    if "messages" in given:
        if "input_messages" in given:
            raise InvalidJob("messages", "…", "give messages or input_messages, not both")
        given["input_messages"] = given.pop("messages")
    if not given.keys() <= _CHECKS.keys():
        name = next(name for name in given if name not in _CHECKS)
        raise InvalidJob(name, given[name], f"there is no such option{_nearest(name)}")
    values = {name: _CHECKS[name](name, value) for name, value in given.items()}
    values.setdefault("queue", defaults.queue)
    values.setdefault("max_attempts", defaults.max_attempts)
    if defaults.model is not None:
        values.setdefault("model", defaults.model)
    _check_together(values)
    return values


def queue_name(value: Any) -> str:
    """Return the name of a queue, checked as a job's own is. Raises InvalidJob."""
    return _name("queue", value)


def request_body(job: Job) -> dict[str, Any]:
    """Return the exact body of the job's request.

    Rows may come from plain SQL, so everything is checked again. Raises InvalidJob.
    """
    options = {name: getattr(job, name) for name in (*_REQUEST_COLUMNS, "retry_on")}
    values = {
        name: _CHECKS[name](name, value) for name, value in options.items() if value is not None
    }
    values["endpoint"] = job.endpoint
    _check_together(values)
    return _body(values)


def _body(values: Mapping[Column, Any]) -> dict[str, Any]:
    body = {
        field: values[column]
        for column, field in _FIELDS[values.get("endpoint", Endpoint.RUNS)].items()
        if values.get(column) is not None
    }
    size = len(json.dumps(body))
    if size > MAX_REQUEST_BYTES:
        raise InvalidJob(
            "prompt" if "prompt" in body else "messages",
            f"{size} bytes",
            f"the platform refuses requests over {MAX_REQUEST_BYTES} bytes; shorten it",
        )
    return body


_COMMON_FIELDS = {
    "prompt": "prompt",
    "input_messages": "messages",
    "artist_id": "artistId",
    "model": "model",
}
_FIELDS: Mapping[str, Mapping[Column, str]] = {
    Endpoint.RUNS: {
        **_COMMON_FIELDS,
        "account_id": "accountId",
        "organization_id": "organizationId",
    },
    Endpoint.GENERATE: {
        **_COMMON_FIELDS,
        "exclude_tools": "excludeTools",
        "room_id": "roomId",
        "topic": "topic",
    },
}
_REQUEST_COLUMNS = tuple(dict.fromkeys(name for fields in _FIELDS.values() for name in fields))
_DROPPED = {
    endpoint: frozenset(_REQUEST_COLUMNS) - fields.keys() for endpoint, fields in _FIELDS.items()
}

_UNBOUNDED = frozenset({"input_messages", "exclude_tools"})
_SURELY_FITS = 350_000
"""A prompt of so many characters stays below the limit: JSON takes at most 12 bytes for one, and
what else a request says in bounded fields is short."""


def _check_together(values: Mapping[Column, Any]) -> None:
    """Check what single fields cannot say."""
    endpoint = values.get("endpoint", Endpoint.RUNS)
    if ("prompt" in values) == ("input_messages" in values):
        both = "prompt" in values
        raise InvalidJob(
            "prompt",
            values.get("prompt"),
            "exactly one of prompt and messages must be given"
            + ("; drop one of them" if both else ""),
        )
    if not _DROPPED[endpoint].isdisjoint(values):
        name = next(name for name in _REQUEST_COLUMNS if name in values.keys() & _DROPPED[endpoint])
        other = Endpoint.GENERATE if endpoint == Endpoint.RUNS else Endpoint.RUNS
        raise InvalidJob(
            name,
            values[name],
            f"the {endpoint} endpoint drops this field; leave it out or set "
            f"endpoint={other.value!r}",
        )
    expires, scheduled = values.get("expires_at"), values.get("scheduled_at")
    if expires is not None and scheduled is not None and expires <= scheduled:
        raise InvalidJob("expires_at", expires.isoformat(), "it must be later than scheduled_at")
    if endpoint == Endpoint.GENERATE and values.get("retry_on"):
        raise InvalidJob(
            "retry_on", values["retry_on"], "a generate job has no run whose end could be retried"
        )
    if not _UNBOUNDED.isdisjoint(values) or len(values["prompt"]) > _SURELY_FITS:
        _body(values)


# --- one check for each column -------------------------------------------------------------


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, _CHECKS, n=1)
    return f"; did you mean {close[0]}?" if close else f"; the options are {', '.join(_CHECKS)}"


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidJob(name, value, f"it must be text, not {type(value).__name__}")
    found = _UNSTORABLE.search(value)
    if found:
        raise InvalidJob(
            name,
            found.group(),
            f"character {found.start()} is NUL or half of a surrogate pair, which databases "
            "refuse in text; remove it"
            + (", or send the text as messages" if name == "prompt" else ""),
        )
    return value


def _prompt(name: str, value: Any) -> str:
    text = _string(name, value)
    if not text.strip():
        raise InvalidJob(name, value, "a blank prompt counts as none; write one")
    return text


def _name(name: str, value: Any) -> str:
    text = _string(name, value).strip()
    if not text or len(text) > MAX_NAME:
        raise InvalidJob(name, value, f"it must have 1 to {MAX_NAME} characters")
    return text


def _uuid(name: str, value: Any) -> str:
    text = str(value) if isinstance(value, uuid.UUID) else _string(name, value).strip()
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text.lower():
        raise InvalidJob(
            name, value, "it must be a UUID such as 3c90c3cc-0d44-4b50-8888-8dd25736052a"
        )
    return text


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not low <= value <= high:
            raise InvalidJob(name, value, f"it must be a whole number from {low} to {high}")
        return int(value)

    return check


def _time(name: str, value: Any) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidJob(name, value, "write a time such as 2026-01-31T08:00:00Z") from None
    if not isinstance(value, datetime):
        raise InvalidJob(name, value, "it must be a datetime, or text such as 2026-01-31T08:00:00Z")
    if value.tzinfo is None:
        raise InvalidJob(
            name, value.isoformat(), "it has no time zone; add one, for example Z for UTC"
        )
    try:
        at = value.astimezone(UTC)
    except OverflowError:
        at = _AFTER
    if not _FROM <= at < _AFTER:
        raise InvalidJob(name, value.isoformat(), "write a time in the years 1 to 9999")
    return at


def _duration(name: str, value: Any) -> float:
    try:
        seconds = parse_duration(value)
    except (ConfigError, ValueError, TypeError):
        raise InvalidJob(
            name, value, 'it must be a number of seconds, or text such as "90s" or "2h"'
        ) from None
    if seconds <= 0:
        raise InvalidJob(name, value, "it must be longer than nothing")
    return seconds


def _names(name: str, value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidJob(name, value, "it must be a list of texts")
    return [_name(name, item) for item in value]


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidJob(name, value, "it must be a JSON object")
    return dict(_json(name, dict(value)))


def _json(name: str, value: Any) -> Any:
    """Return the value as JSON would give it back."""
    try:
        read = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob(name, value, f"it is no JSON: {error}") from None
    level = [read]
    for _ in range(MAX_DEPTH):
        level = [inner for item in level for inner in _containers(item)]
    if level:
        raise InvalidJob(name, value, f"it is nested deeper than {MAX_DEPTH} levels")
    return read


def _containers(value: Any) -> Iterable[Any]:
    """The lists and objects right inside of a value."""
    if not isinstance(value, dict | list):
        return ()
    inside = value.values() if isinstance(value, dict) else value
    return (inner for inner in inside if isinstance(inner, dict | list))


def _choice(words: Iterable[str]) -> Callable[[str, Any], str]:
    allowed = tuple(words)

    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise InvalidJob(name, value, f"it must be one of {', '.join(allowed)}")
        return str(value)

    return check


def _kinds(name: str, value: Any) -> list[str]:
    allowed = _choice(sorted(RETRYABLE_KINDS))
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidJob(name, value, f"it must be a list of {', '.join(sorted(RETRYABLE_KINDS))}")
    return [allowed(name, item) for item in value]


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Bring messages into the form that the server needs: `role` and `parts`."""
    value = _json(name, value)
    if not isinstance(value, list) or not value:
        raise InvalidJob(name, value, "it must be a list with at least one message")
    return [_message(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _message(name: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidJob(name, item, 'it must be an object such as {"role": "user", "content": …}')
    message = dict(item)
    role = message.setdefault("role", "user")
    if role not in _ROLES:
        raise InvalidJob(f"{name}.role", role, f"it must be one of {', '.join(_ROLES)}")
    content = message.pop("content", None)
    if "parts" not in message:
        message["parts"] = _parts_of(f"{name}.content", content)
    parts = message["parts"]
    well_formed = isinstance(parts, list) and all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts
    )
    if not well_formed or not parts:
        raise InvalidJob(
            f"{name}.parts", parts, 'it must be a list such as [{"type": "text", "text": …}]'
        )
    for position, part in enumerate(parts):
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise InvalidJob(f"{name}.parts[{position}].text", part.get("text"), "it must be text")
    return message


def _parts_of(name: str, content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise InvalidJob(name, content, "give the message's text as content, or its parts")


_LARGEST = 2**31 - 1

_CHECKS: Mapping[Column, Callable[[str, Any], Any]] = {
    "prompt": _prompt,
    "input_messages": _messages,
    "endpoint": _choice(Endpoint),
    "model": _name,
    "artist_id": _uuid,
    "account_id": _uuid,
    "organization_id": _uuid,
    "room_id": _uuid,
    "topic": _name,
    "exclude_tools": _names,
    "queue": _name,
    "priority": _integer(-_LARGEST, _LARGEST),
    "batch": _name,
    "tags": _names,
    "metadata": _object,
    "unique_key": _name,
    "scheduled_at": _time,
    "expires_at": _time,
    "max_attempts": _integer(1, 100),
    "retry_on": _kinds,
    "on_in_doubt": _choice(OnInDoubt),
    "run_timeout": _duration,
    "stall_timeout": _duration,
}

OPTIONS = ("messages", *_CHECKS)
"""The options of `enqueue`."""
