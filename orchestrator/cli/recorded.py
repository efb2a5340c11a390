"""A recorded stream, in any of the forms in which people keep one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.cli.failures import BadInput
from orchestrator.recoup import BadEvent, EventParser
from orchestrator.recoup.fold.values import parse_json


@dataclass(frozen=True, slots=True)
class Body:
    """The chunks in order, and the message that they go on with, if there is one."""

    chunks: list[Any | BadEvent]
    initial: Any = None


def read_body(content: bytes) -> Body:
    """Read raw events, a JSON array of chunks, or an object with `chunks` (and `initialMessage`).

    Raises BadInput for JSON that is neither.
    """
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start not in (b"[", b"{"):
        parser = EventParser()
        return Body([*parser.feed(content), *parser.close()])
    try:
        value = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise BadInput(f"it begins like JSON and is none: {error}") from None
    if isinstance(value, list):
        return Body(value)
    if isinstance(value, dict) and isinstance(value.get("chunks"), list):
        return Body(value["chunks"], value.get("initialMessage"))
    raise BadInput('it is neither a list of chunks nor an object with a list "chunks"')
