"""What a UIMessage says: its answer, its cost, its usage. Pure; missing figures are None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def answer_text(message: Mapping[str, Any]) -> str:
    """The answer: the text parts after the last `step-start` that has a part after it, joined."""
    parts = parts_of(message)
    while parts and parts[-1].get("type") == "step-start":
        parts.pop()
    starts = [index for index, part in enumerate(parts) if part.get("type") == "step-start"]
    last = parts[starts[-1] + 1 :] if starts else parts
    return "".join(texts(last))


def whole_text(message: Mapping[str, Any]) -> str:
    """All text parts of a message, joined by blank lines."""
    return "\n\n".join(texts(parts_of(message)))


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a message that are objects; none where `parts` is no list."""
    parts = message.get("parts")
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []


def texts(parts: list[Mapping[str, Any]]) -> list[str]:
    """The texts of the text parts."""
    return [
        part["text"]
        for part in parts
        if part.get("type") == "text" and isinstance(part.get("text"), str)
    ]


def message_columns(message: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `jobs` that a stored or folded message gives. Missing figures are None."""
    metadata = a_mapping(message.get("metadata"))
    return {
        "result_text": answer_text(message),
        "finish_reason": a_text(metadata.get("lastStepFinishReason")),
        "model_used": a_text(metadata.get("modelId")) or a_text(metadata.get("selectedModelId")),
        **usage_columns(metadata.get("totalMessageUsage")),
        "cost_usd": _number(metadata.get("totalMessageCost")),
    }


def usage_columns(usage: Any) -> dict[str, int | None]:
    """The token columns of a usage object; details stand in for the flat figures."""
    usage = a_mapping(usage)
    output_details = a_mapping(usage.get("outputTokenDetails"))
    input_details = a_mapping(usage.get("inputTokenDetails"))
    reasoning = usage.get("reasoningTokens", output_details.get("reasoningTokens"))
    cached = usage.get("cachedInputTokens", input_details.get("cacheReadTokens"))
    return {
        "input_tokens": _count(usage.get("inputTokens")),
        "output_tokens": _count(usage.get("outputTokens")),
        "reasoning_tokens": _count(reasoning),
        "cached_tokens": _count(cached),
        "total_tokens": _count(usage.get("totalTokens")),
    }


def a_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def a_text(value: Any) -> str | None:
    """The value if it is text that is not empty, else None."""
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if ok and abs(value) < 1e15 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
