"""Logging of the daemon: structlog in front, the standard library behind, secrets in neither."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from orchestrator.printable import never_raise, printable, redacted

_HANDLER = "orchestrator"

_PRIVATE = frozenset({"prompt", "messages", "api_key", "key", "authorization", "password", "text"})
"""Fields that hold what a user wrote or a secret; only a debug line may show them."""

_CHATTY = ("aiohttp", "aiosqlite", "alembic", "asyncio", "httpcore", "httpx", "sqlalchemy")
"""Libraries that log URLs, headers or SQL with its values below WARNING."""


def configure(
    level: str = "info",
    format: Literal["auto", "console", "json"] = "auto",  # noqa: A002  # the setting's own name
    stream: TextIO | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Send structlog and the standard library's log, as one kind of line, to one stream.

    Calling it again replaces what it set up before; handlers of others stay.

    Args:
        level: the lowest level shown: debug, info, warning, error or critical.
        format: `json` (one ASCII object a line), `console`, or `auto`: console on a terminal.
        stream: where the lines go; by default the present standard error.
        environ: where `NO_COLOR` is looked up; by default the process's own.

    Raises:
        KeyError: the level is unknown.
    """
    out = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    colors = out.isatty() and not (os.environ if environ is None else environ).get("NO_COLOR")
    as_json = format == "json" or (format == "auto" and not out.isatty())
    never_raise(out)

    arrival: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(out)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*arrival, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                withhold,
                *_rendering(as_json=as_json, colors=colors),
            ],
        )
    )
    _replace_handler(handler, threshold)
    structlog.configure(
        processors=[*arrival, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # so that configuring again reaches every logger
    )


def withhold(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drop private fields at INFO and above, and mask API keys in every text at every level.

    A structlog processor. It looks into mappings and sequences too; a value of any other type is
    replaced by its masked text, so that nothing reaches the renderer unseen.
    """
    dropped = frozenset[str]() if event.get("level") == "debug" else _PRIVATE
    return {
        name: _masked(value, dropped) for name, value in event.items() if not _is(name, dropped)
    }


def show_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make control characters in all fields visible; a traceback keeps its lines."""
    return {
        printable(name): printable(
            value if isinstance(value, str) else repr(value),
            multiline=name in ("exception", "stack"),
        )
        if not isinstance(value, int | float | None)
        else value
        for name, value in event.items()
    }


def _rendering(*, as_json: bool, colors: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.JSONRenderer()]  # its ASCII escapes show controls as well
    plain = structlog.dev.plain_traceback
    return [show_controls, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _replace_handler(handler: logging.Handler, threshold: int) -> None:
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def _masked(value: object, dropped: frozenset[str]) -> object:
    if isinstance(value, str):
        return redacted(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has no word for infinity
    if isinstance(value, dict):
        return {
            redacted(str(name)): _masked(inner, dropped)
            for name, inner in value.items()
            if not _is(str(name), dropped)
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(inner, dropped) for inner in value]
    return redacted(repr(value) if isinstance(value, BaseException) else str(value))


def _is(name: str, dropped: frozenset[str]) -> bool:
    plain = name.lower().replace("-", "_").removeprefix("x_")
    return plain in dropped
