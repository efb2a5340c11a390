"""Options that several commands share, and the kinds of value that they take."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.failures import BadInput
from orchestrator.config import parse_duration
from orchestrator.states import ErrorKind, State
from orchestrator.store.verbs.look import Filter

F = Callable[..., Any]


def shifted(text: str, *, now: datetime, past: bool = False) -> datetime:
    """Read a time: ISO 8601, or a span such as `+2h` or `90m` from `now`.

    With `past` a span without a sign goes back. A date or a time without a zone is in UTC.
    Raises ValueError.
    """
    written = text.strip()
    if written.startswith(("+", "-")) or not _is_date(written):
        back = written.startswith("-") or (past and not written.startswith("+"))
        span = timedelta(seconds=parse_duration(written.lstrip("+-")))
        return now - span if back else now + span
    at = datetime.fromisoformat(written)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    # "20260131" is a date to Python, and a number of seconds to nobody.
    return "-" in text or len(text) >= 8


def past_time(value: str) -> datetime:
    """Read an option's time in the past: ISO 8601, or how long ago, such as `12h`."""
    try:
        return shifted(value, now=datetime.now(UTC), past=True)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r}: write 2026-01-31, 2026-01-31T08:00Z, or 12h (ago)"
        ) from None


def duration(value: str) -> float:
    """Read an option's duration, in seconds."""
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


def json_value(value: str) -> Any:
    """Read an option's JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"it is no JSON: {error}") from None


def json_file(name: str) -> Any:
    """Read the JSON in the file that an option names; `-` is standard input."""
    try:
        return json.loads(content_of(name))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{name}: it is no JSON: {error}") from None


def content_of(name: str | Path) -> bytes:
    """Return the bytes of a file, or of standard input for `-`. Raises BadInput."""
    if str(name) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from None


_MANY: dict[str, Any] = {"multiple": True}
_FILTERS: dict[str, F] = {
    "states": click.option(
        "--state",
        "states",
        type=click.Choice([state.value for state in State]),
        help="Only jobs in this state; may be given again.",
        **_MANY,
    ),
    "queues": click.option(
        "--queue", "queues", help="Only jobs of this queue; may be given again.", **_MANY
    ),
    "batch": click.option("--batch", help="Only jobs of this batch."),
    "error_kinds": click.option(
        "--error-kind",
        "error_kinds",
        type=click.Choice([kind.value for kind in ErrorKind]),
        metavar="KIND",
        help="Only jobs with this kind of error; may be given again.",
        **_MANY,
    ),
    "tag": click.option("--tag", help="Only jobs with this tag."),
    "search": click.option("--search", metavar="TEXT", help="Only jobs whose prompt has TEXT."),
    "since": click.option(
        "--since",
        type=past_time,
        metavar="TIME",
        help="Only jobs enqueued at or after: a time, or 12h for ago.",
    ),
    "until": click.option(
        "--until",
        type=past_time,
        metavar="TIME",
        help="Only jobs enqueued before: a time, or 12h for ago.",
    ),
}


def filters(*names: str) -> Callable[[F], F]:
    """Add filter options (by default all) and give the command one `wanted: Filter`."""
    chosen = names or tuple(_FILTERS)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def gathered(*args: Any, **given: Any) -> Any:
            wanted = Filter(**{name: given.pop(name) for name in chosen})
            return command(*args, wanted=wanted, **given)

        for name in reversed(chosen):
            gathered = _FILTERS[name](gathered)
        return gathered

    return decorate


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""The option of commands that can print for programs."""

_ID = click.IntRange(1, 2**63 - 1)  # what an id's column holds
job_id = click.argument("job_id", type=_ID, metavar="ID")
job_ids = click.argument("job_ids", type=_ID, metavar="[ID]...", nargs=-1)
