from __future__ import annotations

import io
import json
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import structlog

from orchestrator.log import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "recoup_sk_aB3-secret"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Put logging back as it was, since configuring it is for the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {
        name: logging.getLogger(name).level for name in ("httpx", "httpcore", "alembic", "aiohttp")
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_line_is_one_json_object() -> None:
    out = io.StringIO()
    configure("info", "auto", out)
    structlog.get_logger("orchestrator.worker").info("job.submitted", job_id=7, run_id="wrun_1")
    (line,) = lines(out)
    at = line.pop("timestamp")
    assert datetime.fromisoformat(at).utcoffset() is not None
    assert at.endswith("Z")
    assert line == {
        "event": "job.submitted",
        "level": "info",
        "logger": "orchestrator.worker",
        "job_id": 7,
        "run_id": "wrun_1",
    }


def test_on_a_terminal_lines_are_for_people() -> None:
    out = Terminal()
    configure("info", "auto", out, environ={})
    structlog.get_logger().warning("gate.closed", reason="outage")
    assert "gate.closed" in out.getvalue()
    assert "\x1b[" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_no_color_is_honoured() -> None:
    out = Terminal()
    configure("info", "auto", out, environ={"NO_COLOR": "1"})
    structlog.get_logger().warning("gate.closed", reason="outage")
    assert "reason=outage" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_json_may_be_asked_for_on_a_terminal() -> None:
    out = Terminal()
    configure("info", "json", out)
    structlog.get_logger().info("x")
    assert lines(out)[0]["event"] == "x"


def test_lines_below_the_level_do_not_appear() -> None:
    out = io.StringIO()
    configure("warning", "json", out)
    structlog.get_logger().info("quiet")
    logging.getLogger("other").info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(out)] == ["loud"]


def test_configuring_again_replaces_what_stood() -> None:
    first, second = io.StringIO(), io.StringIO()
    log = structlog.get_logger("kept")
    configure("info", "json", first)
    log.info("one")
    configure("debug", "json", second)
    log.debug("two")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["two"]


def test_handlers_of_others_stay() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    configure("info", "json", io.StringIO())
    assert other in logging.getLogger().handlers


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(KeyError):
        configure("loud", "json", io.StringIO())


def test_the_standard_library_is_bridged_with_its_extra_fields() -> None:
    out = io.StringIO()
    configure("info", "json", out)
    structlog.contextvars.bind_contextvars(worker_id="w1")
    logging.getLogger("someone").info("got %s", KEY, extra={"answer": 42, "prompt": "mine"})
    (line,) = lines(out)
    assert (line["event"], line["logger"], line["level"]) == ("got ***", "someone", "info")
    assert (line["answer"], line["worker_id"]) == (42, "w1")
    assert "prompt" not in line


@pytest.mark.parametrize(
    "name", ["httpx", "httpcore.http11", "aiohttp.access", "alembic.runtime", "aiosqlite"]
)
def test_libraries_that_log_urls_and_values_speak_only_to_warn(name: str) -> None:
    out = io.StringIO()
    configure("debug", "json", out)
    logging.getLogger(name).info("HTTP Request: GET https://example.com/secret")
    logging.getLogger(name).warning("trouble")
    assert [line["event"] for line in lines(out)] == ["trouble"]


def test_private_fields_are_dropped_from_info_on() -> None:
    out = io.StringIO()
    configure("debug", "json", out)
    private = {
        "prompt": "p", "messages": ["m"], "api_key": "k", "key": "k", "authorization": "a",
        "password": "p", "text": "t", "Authorization": "a", "x-api-key": "k",
    }  # fmt: skip
    log = structlog.get_logger()
    log.info("x", **private, request={"prompt": "p", "model": "m"}, parts=[{"text": "t"}])
    log.error("x", **private)
    log.debug("x", prompt="p")
    info, error, debug = lines(out)
    standing = {"event", "level", "logger", "timestamp"}
    assert set(info) == standing | {"request", "parts"}
    assert info["request"] == {"model": "m"}
    assert info["parts"] == [{}]
    assert set(error) == standing
    assert debug["prompt"] == "p"


class Holder:
    def __repr__(self) -> str:
        return f"Holder({KEY})"


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [KEY, [KEY], {"a": (KEY,)}, {KEY: 1}, KEY.encode(), Holder(), ValueError(KEY), Path(KEY)],
)
def test_keys_are_masked_in_every_field(form: Any, value: object) -> None:
    out = io.StringIO()
    configure("debug", form, out)
    structlog.get_logger().debug(f"sent {KEY}", field=value)
    assert out.getvalue().count("***") == 2
    assert "secret" not in out.getvalue()


def fail() -> None:
    raise ExceptionGroup("many", [RuntimeError(f"bad {KEY}"), OSError("\x1b[2J")])


@pytest.mark.parametrize("form", ["json", "console"])
def test_keys_are_masked_in_tracebacks(form: Any) -> None:
    out = io.StringIO()
    configure("info", form, out)
    try:
        fail()
    except ExceptionGroup:
        structlog.get_logger().exception("job.broken")
        logging.getLogger("other").exception("broken too")
    shown = out.getvalue()
    assert shown.count("RuntimeError: bad ***") == 2
    assert "secret" not in shown
    assert "\x1b" not in shown


def test_control_characters_are_visible_on_a_console() -> None:
    out = io.StringIO()
    configure("info", "console", out)
    structlog.get_logger().info("a\nb\x1b[31m", field="\u202eevil\r\n", nested=["\x9b"], n=3)
    (line,) = out.getvalue().splitlines()
    assert r"a\nb\x1b[31m" in line
    assert r"field=\u202eevil\r\n" in line
    assert "n=3" in line
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", line)


def test_a_console_with_a_small_encoding_never_loses_a_line() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    configure("info", "console", out)
    structlog.get_logger().info("日本")
    out.flush()
    assert rb"\u65e5\u672c" in raw.getvalue()


def test_any_value_can_be_written_as_json() -> None:
    out = io.StringIO()
    configure("info", "json", out)
    structlog.get_logger().info(
        "x", nan=float("nan"), id=UUID(int=1), half="\ud800", none=None, yes=True, path=Path("/a")
    )
    (line,) = lines(out)
    assert (line["nan"], line["half"], line["none"]) == ("nan", "\ud800", None)
    assert (line["id"], line["path"]) == ("00000000-0000-0000-0000-000000000001", "/a")
    assert line["yes"] is True
    assert out.getvalue().isascii()
