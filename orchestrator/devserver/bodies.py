"""The bodies of the two endpoints that generate, read and checked as the API checks them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.devserver.answers import Refused
from orchestrator.devserver.wire import Json

DEFAULT_MODEL: Final = "moonshotai/kimi-k3"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Body:
    """A valid request. `prompt` is the prompt, or the text of the last user message."""

    prompt: str
    model: str
    artist_id: str | None
    account_id: str | None
    organization_id: str | None
    room_id: str | None
    acceptable: bool
    """False when `messages` holds an item that no model accepts; it is accepted all the same."""


def is_uuid(text: str) -> bool:
    """Tell whether `text` has the form of a UUID."""
    return _UUID.fullmatch(text) is not None


def read_body(raw: bytes, *, room: bool = False) -> Body:
    """Check a request; `room` reads the fields of the older endpoint too.

    Raises `Refused` with 400: for what is not JSON, for a field of the wrong type, and unless
    exactly one of prompt and messages is there.
    """
    try:
        given = json.loads(raw)
    except ValueError:
        raise Refused(400, "Invalid JSON body") from None
    if not isinstance(given, dict):
        raise _invalid("Invalid input: expected object", [])
    _check_types(given, room=room)
    prompt = given.get("prompt", "").strip()
    messages = given.get("messages", [])
    if bool(prompt) == bool(messages):
        raise _invalid("Exactly one of prompt or messages must be provided", [])
    return Body(
        prompt=prompt or last_text(messages),
        model=given.get("model", "").strip() or DEFAULT_MODEL,
        artist_id=given.get("artistId"),
        account_id=given.get("accountId"),
        organization_id=given.get("organizationId"),
        room_id=given.get("roomId") if room else None,
        acceptable=bool(prompt) or all(map(_is_message, messages)),
    )


def submitted_text(raw: bytes) -> str:
    """Give the prompt of a request for the record, however bad the request is."""
    try:
        given = json.loads(raw)
    except ValueError:
        return ""
    if not isinstance(given, dict):
        return ""
    prompt, messages = given.get("prompt"), given.get("messages")
    if isinstance(prompt, str) and prompt.strip():
        return prompt.strip()
    return last_text(messages) if isinstance(messages, list) else ""


def last_text(messages: Sequence[Json]) -> str:
    """Give the text of the last message of the user's, in either form of its content."""
    said = [item for item in messages if isinstance(item, dict)]
    users = [item for item in said if item.get("role") == "user"] or said
    if not users:
        return ""
    parts = users[-1].get("parts")
    if isinstance(parts, list):
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str)).strip()
    content = users[-1].get("content")
    return content.strip() if isinstance(content, str) else ""


def _check_types(given: dict[str, Json], *, room: bool) -> None:
    texts = ["prompt", "model", "artistId", "accountId", "organizationId"]
    uuids = ["artistId", "accountId", "organizationId"]
    if room:
        texts += ["roomId", "topic"]
        uuids += ["roomId"]
    for name in texts:
        if name in given and not isinstance(given[name], str):
            raise _invalid("Invalid input: expected string", [name])
    for name in uuids:
        if name in given and not is_uuid(given[name]):
            raise _invalid(f"{name} must be a valid UUID", [name])
    if "messages" in given and not isinstance(given["messages"], list):
        raise _invalid("Invalid input: expected array", ["messages"])
    if room and not isinstance(given.get("excludeTools", []), list):
        raise _invalid("Invalid input: expected array", ["excludeTools"])


def _is_message(item: Json) -> bool:
    return (
        isinstance(item, dict)
        and item.get("role") in {"system", "user", "assistant"}
        and isinstance(item.get("parts"), list)
        and all(isinstance(part, dict) and "type" in part for part in item["parts"])
    )


def _invalid(sentence: str, path: list[str]) -> Refused:
    return Refused(400, sentence, missing_fields=path)
