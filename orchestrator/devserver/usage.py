"""What the model calls of a turn used and cost, as the metadata of its message report it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from orchestrator.devserver.wire import Json

_RAW_REASONS: Final = {"stop": "end_turn", "tool-calls": "tool_use", "length": "max_tokens"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, or of several added up."""

    input: int
    cached: int
    text: int
    reasoning: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.cached + other.cached,
            self.text + other.text,
            self.reasoning + other.reasoning,
        )

    def as_json(self) -> dict[str, Json]:
        """Give the fields in the API's words; counts of nothing are left out, as it does."""
        output = self.text + self.reasoning
        cached = {"cacheReadTokens": self.cached} if self.cached else {}
        reasoning = {"reasoningTokens": self.reasoning} if self.reasoning else {}
        return {
            "inputTokens": self.input,
            "inputTokenDetails": {"noCacheTokens": self.input - self.cached, **cached},
            "outputTokens": output,
            "outputTokenDetails": {"textTokens": self.text, **reasoning},
            "totalTokens": self.input + output,
            **reasoning,
            **({"cachedInputTokens": self.cached} if self.cached else {}),
        }


@dataclass(slots=True)
class Meter:
    """Adds up the model calls of one turn.

    A count that one call reports, every later call reports too: so the metadata that a reader
    merges are the metadata of the last call, which is what the server stores.
    """

    model: str
    cost: float | None
    total: Usage = Usage(0, 0, 0, 0)
    spent: float = 0
    reasons: list[dict[str, Json]] = field(default_factory=list)

    def call(self, usage: Usage, reason: str) -> dict[str, Json]:
        """Count one more call; give the metadata after it."""
        self.total += usage
        raw = _RAW_REASONS.get(reason, reason)
        self.reasons.append({"finishReason": reason, "rawFinishReason": raw})
        costs: dict[str, Json] = {}
        if self.cost is not None:
            self.spent += self.cost
            costs = {"lastStepCost": _number(self.cost), "totalMessageCost": _number(self.spent)}
        return {
            "selectedModelId": self.model,
            "modelId": self.model,
            "lastStepUsage": usage.as_json(),
            "totalMessageUsage": self.total.as_json(),
            **costs,
            "lastStepFinishReason": reason,
            "lastStepRawFinishReason": raw,
            "stepFinishReasons": list(self.reasons),
        }


def _number(value: float) -> float | int:
    """JavaScript has one kind of number and writes 1.0 as 1."""
    return int(value) if value.is_integer() else value
