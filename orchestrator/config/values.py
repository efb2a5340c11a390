"""The kinds of value that settings have: how each is read, checked and safely shown."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from orchestrator.config.key import KEY_VARIABLE
from orchestrator.printable import printable, redacted

MAX_DURATION = 10 * 365 * 86_400.0
"""Seconds. Longer ones are mistakes, and would overflow a date when added to the present."""

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"\s*".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS))
_SECRET_PARAMETER = re.compile(
    r"([?&][^=&#]*(?:pass|pwd|secret|token|key)[^=&#]*=)[^&#]*", re.IGNORECASE
)


def parse_duration(value: object) -> float:
    """Read a duration.

    Args:
        value: seconds as a number, or text: a number of seconds, or numbers with units from long
            to short, as in `90s`, `2h`, `1h30m`, `500ms`, `1d 12h`.

    Returns:
        Seconds, from 0 to `MAX_DURATION`.

    Raises:
        ValueError: the value is no duration; the text says what one looks like.
    """
    seconds = _seconds(value)
    if not 0 <= seconds <= MAX_DURATION:  # false for NaN, too
        raise ValueError(
            'give seconds, or text such as "90s", "1h30m" or "500ms" (10 years at most)'
        )
    return seconds


def _seconds(value: object) -> float:
    if isinstance(value, str):
        text = value.strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            return float(text)
        parts = _DURATION.fullmatch(text) if text.isascii() and text else None
        if parts is None:
            return math.nan
        return math.fsum(
            float(number) * unit
            for number, unit in zip(parts.groups(), _UNITS.values(), strict=True)
            if number is not None
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= MAX_DURATION else math.inf
    return math.nan


def safe_url(url: str) -> str:
    """Show a URL without its password, its secret parameters, and API keys.

    It rather hides too much: of an address that is no URL, all before the last `@` goes.
    """
    scheme, separator, rest = url.rpartition("://") if "://" not in url else url.partition("://")
    before, at, after = rest.rpartition("@")
    if at and scheme.lower() != "sqlite":  # a file's path may hold an @, and never a password
        user, colon, _ = before.partition(":")
        known_user = scheme.lower().startswith("postgres") and "/" not in user
        shown = (f"{user}:***" if colon else user) if known_user else "***"
        rest = f"{shown}@{after}"
    return redacted(_SECRET_PARAMETER.sub(r"\1***", f"{scheme}{separator}{rest}"))


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("give a number")  # noqa: TRY004  # pydantic collects ValueErrors only
    return value


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than zero")
    return seconds


def _listed(value: object) -> object:
    """Read a list from a variable: JSON, or words with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            raise ValueError('give a JSON list such as ["a", "b"], or a, b') from None
    return [word.strip() for word in value.split(",") if word.strip()]


def _word(value: str) -> str:
    if not value.strip() or value != value.strip() or printable(value) != value:
        raise ValueError("give a name without surrounding space or control characters")
    return value


def _unless_empty(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _http_url(value: str) -> str:
    text = value.strip()
    if not (text.isascii() and text.isprintable()) or re.search(r"[\s\\]", text):
        raise ValueError("write the address in plain ASCII, without spaces")
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise ValueError("is no address; write https://host[:port]") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("write the whole address: https://host[:port]")
    return text


def _base_url(value: str) -> str:
    text = _http_url(value)
    url = urlsplit(text)
    if "@" in url.netloc:
        raise ValueError(f"take the credentials out; the API key is read from {KEY_VARIABLE}")
    if "?" in text or "#" in text:
        raise ValueError("take the query or fragment out")
    if url.scheme == "http" and not _is_loopback(url.hostname or ""):
        raise ValueError("use https; plain http would show the key, and is for loopback only")
    return f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _database_url(value: str) -> str:
    scheme, separator, rest = value.strip().partition("://")
    scheme = "postgresql" if scheme == "postgres" else scheme
    if not separator or scheme.partition("+")[0] not in ("sqlite", "postgresql"):
        raise ValueError("write sqlite:///path/to/file.db or postgresql://user@host/name")
    if "+" in scheme:
        raise ValueError(f"leave the driver out: {scheme.partition('+')[0]}://…")
    if scheme == "sqlite":
        if not rest.startswith("/"):
            raise ValueError("a file's path follows three slashes: sqlite:///jobs.db")
        if rest[1:].partition("?")[0] in ("", ":memory:"):
            raise ValueError("name a file; jobs in memory are lost with the process")
    return f"{scheme}://{rest}"


def _key_path(path: Path) -> Path:
    if "recoup_sk_" in path.name:
        raise ValueError(f"name the file that holds the key, or put the key into {KEY_VARIABLE}")
    return path


_UNSET = BeforeValidator(_unless_empty)
"""An empty text means no value, so that a variable can take back what a file says."""

Duration = Annotated[float, BeforeValidator(parse_duration)]
Positive = Annotated[Duration, AfterValidator(_positive)]
Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]
CountFromZero = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
Limit = Annotated[Count | None, _UNSET]
Word = Annotated[str, AfterValidator(_word)]
OptionalWord = Annotated[Word | None, _UNSET]
Words = Annotated[tuple[Word, ...], BeforeValidator(_listed)]
FinishReason = Literal["length", "content-filter", "tool-calls", "other", "unknown"]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
ProxyUrl = Annotated[Annotated[str, AfterValidator(_http_url)] | None, _UNSET]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
OptionalDatabaseUrl = Annotated[DatabaseUrl | None, _UNSET]
KeyPath = Annotated[Annotated[Path, AfterValidator(_key_path)] | None, _UNSET]
FinishReasons = Annotated[tuple[FinishReason, ...], BeforeValidator(_listed)]
Level = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)]
