"""What the fold does because version 6.0.190 of the `ai` package does it.

The server pins that version. Others differ in exactly these tables (and in how a tool part is
looked up, which is `ToolParts.find`): later ones look in the current step first and give a
reused call id a part of its own, keep the `id` of reasoning parts, and put the input of a
failed static call into `input`.
"""

from __future__ import annotations

AI_VERSION = "6.0.190"

PLAIN_PARTS = {
    "file": (("mediaType", "url"), ("providerMetadata",)),
    "source-url": (("sourceId", "url"), ("title", "providerMetadata")),
    "source-document": (
        ("sourceId", "mediaType", "title"),
        ("filename", "providerMetadata"),
    ),
}
"""Chunk type -> required and optional fields that the part keeps; others are dropped."""

FINISH_STEP_CLOSES_TEXT = True
"""Whether `finish-step` forgets the open text and reasoning parts; they stay streaming."""

STATIC_ERROR_INPUT = "rawInput"
"""Where the input of a static call goes that failed before it could run."""

RESULT_STATES = frozenset({"output-available", "output-error"})
"""States in which provider metadata is that of the result, not of the call."""
