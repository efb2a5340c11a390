"""JSON and stream frames as a JavaScript server writes them."""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeAlias

Json: TypeAlias = Any
"""A JSON value as `json.loads` gives it."""

Chunk: TypeAlias = dict[str, Any]
"""One chunk of the UI message stream; always has a `type`."""

DONE: Final = b"data: [DONE]\n\n"
"""The last event of every response that the server ends itself."""

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def stringify(value: Json) -> str:
    """Write `value` as `JSON.stringify` does.

    Only quotes, backslashes, control characters below U+0020 and lone surrogates are escaped;
    U+2028, U+0085 and the like go out as they are.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def whole_characters(text: str) -> str:
    """Join surrogates that stand side by side into the character they mean."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def frame(chunk: Chunk) -> bytes:
    """Give the server-sent event that carries `chunk`."""
    return b"data: " + stringify(chunk).encode() + b"\n\n"
