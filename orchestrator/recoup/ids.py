"""Checks ids before they enter a URL or are believed."""

from __future__ import annotations

import re
from typing import TypeGuard

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RUN_PATH = re.compile(r"(?:[a-z]+://[^/?#]+)?/(?:[^?#]*/)?api/chat/runs/([^/?#]+)/?(?:[?#].*)?")


def is_id(value: object) -> TypeGuard[str]:
    """Return True for a run, chat or session id: 1 to 128 letters, digits, `_` and `-`."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def run_id_of_location(location: str | None) -> str | None:
    """Return the run id that a `Location` of `/api/chat/runs/{runId}` names, else None.

    Both the relative form, which the API sends, and an absolute URL are read.
    """
    found = _RUN_PATH.fullmatch(location.strip()) if location else None
    return found[1] if found and is_id(found[1]) else None
