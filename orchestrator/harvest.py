"""The best account of a run's message: the stored one, or what the stream gave. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.job import Message
from orchestrator.message import parts_of, whole_text
from orchestrator.recoup.answers import SessionChat, Trouble
from orchestrator.verdict import Collected


@dataclass(frozen=True, slots=True)
class Folded:
    """What the stream gave: the message, or None, and whether it saw the turn to its end."""

    message: Mapping[str, Any] | None = None
    message_id: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Harvest:
    """What collecting came to: our message, the rows to keep, and how the two accounts differ."""

    collected: Collected
    kept: tuple[Message, ...] = ()
    difference: dict[str, Any] | None = None


def ours(messages: Sequence[Mapping[str, Any]], message_id: str) -> Mapping[str, Any] | None:
    """Find our message: the one that the stream named, else the chat's first assistant message.

    Each run has a chat of its own and the user's message is not stored there; what comes after
    the first assistant message was written by somebody else.
    """
    assistant = [message for message in messages if message.get("role") == "assistant"]
    named = [message for message in assistant if message_id and message.get("id") == message_id]
    return next(iter(named or assistant), None)


def is_earlier(stored: Mapping[str, Any], folded: Folded) -> bool:
    """True if the stored message is visibly an earlier state of the folded one.

    The server writes the message after each model call: an earlier state has fewer parts, and
    each is the fold's. Data parts come and go around the end and say nothing. A fold that saw the
    turn to its end has the metadata of its last call: where the stored ones are the same, no call
    is missing, and what the fold has more is a step that was run again.
    """
    message = folded.message
    if message is None or stored.get("id") != message.get("id"):
        return False
    metadata = stored.get("metadata")
    if folded.whole and metadata and metadata == message.get("metadata"):
        return False
    have, want = _solid_parts(stored), _solid_parts(message)
    return len(have) < len(want) and want[: len(have)] == have


def _solid_parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parts = [
        part for part in parts_of(message) if not str(part.get("type", "")).startswith("data-")
    ]
    while parts and parts[-1].get("type") == "step-start":
        parts.pop()
    return parts


def harvest(chat: SessionChat | None, trouble: Trouble | None, folded: Folded) -> Harvest:
    """Choose between the stored message and the fold, and say how they differ."""
    stored = ours(chat.messages, folded.message_id) if chat is not None else None
    if stored is None:
        words = trouble.error if trouble is not None else None
        collected = Collected(folded.message, stored=False, whole=folded.whole, trouble=words)
        if folded.message is None:
            return Harvest(collected)
        difference = {"kept": "stream", "why": words or "the chat holds no message"}
        return Harvest(collected, (_row(0, folded.message, "stream"),), difference)
    messages = list(chat.messages) if chat is not None else []
    if is_earlier(stored, folded) and folded.message is not None:
        kept = tuple(
            _row(index, folded.message, "stream")
            if message is stored
            else _row(index, message, "server")
            for index, message in enumerate(messages)
        )
        difference = {"kept": "stream", "why": "the stored message is an earlier state"}
        return Harvest(Collected(folded.message), kept, difference)
    kept = tuple(_row(index, message, "server") for index, message in enumerate(messages))
    return Harvest(Collected(stored), kept, _difference(stored, folded))


def _difference(stored: Mapping[str, Any], folded: Folded) -> dict[str, Any] | None:
    """How the stored message differs from a fold that saw the whole turn."""
    if folded.message is None or not folded.whole or stored == folded.message:
        return None
    same_parts = _solid_parts(stored) == _solid_parts(folded.message)
    if same_parts and stored.get("metadata") == folded.message.get("metadata"):
        return None
    return {
        "kept": "server",
        "why": "metadata differs" if same_parts else "parts differ",
        "stored_parts": len(parts_of(stored)),
        "folded_parts": len(parts_of(folded.message)),
    }


def _row(position: int, message: Mapping[str, Any], source: str) -> Message:
    return Message(
        position=position,
        message_id=message.get("id") if isinstance(message.get("id"), str) else None,
        role=str(message.get("role") or "assistant"),
        text=whole_text(message),
        message=dict(message),
        source=source,
    )
