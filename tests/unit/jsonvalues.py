"""How tests compare JSON values."""

from __future__ import annotations

import json
from typing import Any


def canonical(value: Any) -> str:
    """Equal exactly for equal JSON values: 1 is 1.0, True is not 1, null is not absence."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)
