"""The parts of a reply: its JSON, its sentence, its fields. Pure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from orchestrator.recoup.answers import Json
from orchestrator.recoup.reply import Reply

_SHOWN = 500  # characters of a body that has no sentence of its own


class UnreadableBodyError(Exception):
    """A body is not what the API documents; the text continues "the body of HTTP 200 …"."""


def json_object(reply: Reply) -> dict[str, Json] | None:
    """Return the body when it is whole and a JSON object, else None."""
    if reply.fault is not None:
        return None
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_envelope(body: dict[str, Json] | None) -> bool:
    """Return True for the API's own error envelope."""
    return body is not None and body.get("status") == "error"


def sentence(reply: Reply, body: dict[str, Json] | None) -> str:
    """Return the server's words: `error`, then `message`, then the text, then the status."""
    for name in ("error", "message"):
        words = (body or {}).get(name)
        if isinstance(words, str) and words.strip():
            return words.strip()
    return shown_text(reply)


def shown_text(reply: Reply) -> str:
    """Return the start of the body on one line; the status and its name when it is empty."""
    # A character takes at most four bytes; white space that is joined below may take the rest.
    text = " ".join(reply.body[: 16 * _SHOWN].decode("utf-8", "replace").split())
    if text:
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    names = {status.value: f" {status.phrase}" for status in HTTPStatus}
    return f"HTTP {reply.status}{names.get(reply.status or 0, '')}"


def missing_fields(body: dict[str, Json] | None) -> tuple[str, ...]:
    """Return the paths of a validation error, each as dotted text."""
    fields = (body or {}).get("missing_fields")
    if not isinstance(fields, list):
        return ()
    return tuple(
        ".".join(map(str, field)) if isinstance(field, list) else str(field) for field in fields
    )


def retry_after(reply: Reply) -> float | None:
    """Return the seconds of Retry-After, given as a number or as an HTTP date, else None.

    A date is read against the reply's own Date, so that a wrong clock here does not matter.
    """
    value = reply.headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    then = _http_date(value)
    if then is None:
        return None
    now = _http_date(reply.headers.get("date", "")) or reply.at
    return max(0.0, (then - now).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


# --- typed fields ---------------------------------------------------------------------------


def an_object(value: Json, name: str) -> dict[str, Json]:
    """Return `value` when it is a JSON object. Raises UnreadableBodyError naming it by `name`."""
    if not isinstance(value, dict):
        raise UnreadableBodyError(f"has no object at {name}")
    return value


def a_list(body: dict[str, Json], name: str) -> list[Json]:
    """Return the list `name`. Raises UnreadableBodyError."""
    value = body.get(name)
    if not isinstance(value, list):
        raise UnreadableBodyError(f"has no list {name}")
    return value


def a_bool(body: dict[str, Json], name: str) -> bool:
    """Return the truth value `name`. Raises UnreadableBodyError."""
    value = body.get(name)
    if not isinstance(value, bool):
        raise UnreadableBodyError(f"has no true or false at {name}")
    return value


def a_string(body: dict[str, Json], name: str) -> str:
    """Return the string `name`. Raises UnreadableBodyError."""
    value = optional_string(body, name)
    if value is None:
        raise UnreadableBodyError(f"has no {name}")
    return value


def optional_string(body: dict[str, Json], name: str) -> str | None:
    """Return the string `name`, or None when it is null or absent. Raises UnreadableBodyError."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise UnreadableBodyError(f"has no string at {name}")
    return value
