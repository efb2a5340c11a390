"""From file, variables and flags to `Settings`, or to one error that lists every mistake."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config.settings import URL_KEYS, Settings
from orchestrator.config.values import safe_url
from orchestrator.errors import ConfigError
from orchestrator.printable import printable, redacted

FILE_VARIABLE = "ORCHESTRATOR_CONFIG"

_DEFAULT_FILE = Path("orchestrator.toml")
_PREFIX = "ORCHESTRATOR_"
_LONGEST_VALUE = 80


def load_settings(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> Settings:
    """Read the settings from a file, the variables and the caller, each over the one before.

    Args:
        path: the TOML file; by default the one that `ORCHESTRATOR_CONFIG` names, or else
            `./orchestrator.toml`, which alone may be absent.
        environ: the variables; by default the process's own.
        overrides: section, then key, then value, as from flags. None means not given.

    Returns:
        The settings, complete and checked.

    Raises:
        ConfigError: the file cannot be read, or values or names are wrong. The text lists all
            mistakes, each with key, source, value (never a password) and remedy.
    """
    variables = os.environ if environ is None else environ
    found = _Found()
    _add_file(found, path, variables)
    _add_variables(found, variables)
    _add_overrides(found, overrides or {})
    settings = _validated(found)
    if settings is None or found.problems:
        raise ConfigError("the configuration is wrong:\n  " + "\n  ".join(found.problems))
    return settings


@dataclass(slots=True)
class _Found:
    """Values by section and key as the sources are read, where each is from, and mistakes."""

    values: dict[str, dict[str, object]] = field(default_factory=dict)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, section: str, key: str, value: object, origin: str) -> None:
        self.values.setdefault(section, {})[key] = value
        self.origins[section, key] = origin


def _known() -> dict[str, tuple[str, ...]]:
    """Map each section to its keys."""
    return {
        section: tuple(info.annotation.model_fields)
        for section, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }


def _add_file(found: _Found, path: Path | None, environ: Mapping[str, str]) -> None:
    named = path or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    file = named or _DEFAULT_FILE
    origin = printable(redacted(str(file)))
    try:
        # Editors on Windows put a byte order mark in front, which TOML does not allow.
        tables = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        if named is None:
            return
        by = "" if path else f", which {FILE_VARIABLE} names,"
        raise ConfigError(f"the configuration file {origin}{by} does not exist") from None
    except OSError as error:
        raise ConfigError(f"the configuration file {origin}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration file {origin} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration file {origin}: {printable(str(error))}") from None
    for section, table in tables.items():
        if isinstance(table, dict):
            _add_section(found, section, table, origin)
        elif section in _known():
            found.problems.append(f"{section} ({origin}): write it as a table, [{section}]")
        else:
            found.problems.append(_unknown(section, section, origin))


def _add_section(found: _Found, section: str, table: Mapping[str, object], origin: str) -> None:
    if section not in _known():
        found.problems.append(_unknown(section, section, origin))
        return
    for key, value in table.items():
        if key in _known()[section]:
            found.add(section, key, value, origin)
        else:
            found.problems.append(_unknown(f"{section}.{key}", key, origin))


def _add_variables(found: _Found, environ: Mapping[str, str]) -> None:
    names = {
        f"{_PREFIX}{section}__{key}".upper(): (section, key)
        for section, keys in _known().items()
        for key in keys
    }
    one_underscore = {name.replace("__", "_"): name for name in names}
    for name, value in environ.items():
        if name in names:
            found.add(*names[name], value, f"variable {name}")
        elif name in one_underscore:
            found.problems.append(f"variable {name}: did you mean {one_underscore[name]}?")
        elif name.upper().startswith(_PREFIX) and "__" in name:
            near = difflib.get_close_matches(name.upper(), names, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"write {_PREFIX}<SECTION>__<KEY>"
            found.problems.append(f"variable {_cut(name)}: no such setting; {remedy}")


def _add_overrides(found: _Found, overrides: Mapping[str, Mapping[str, object]]) -> None:
    for section, table in overrides.items():
        given = {key: value for key, value in table.items() if value is not None}
        _add_section(found, section, given, "given explicitly")


def _validated(found: _Found) -> Settings | None:
    """Build the settings; what pydantic finds wrong goes to the problems, and None comes back."""
    try:
        return Settings.model_validate(found.values)
    except ValidationError as error:
        # Nothing is raised from here: the library's own error shows values, passwords included.
        details = error.errors(include_url=False)
    found.problems.extend(_described(found, detail) for detail in details)
    return None


def _described(found: _Found, detail: ErrorDetails) -> str:
    section, key = (str(part) for part in detail["loc"][:2])
    origin = found.origins.get((section, key), "the default")
    value = detail["input"]
    shown = safe_url(value) if key in URL_KEYS and isinstance(value, str) else value
    cause = detail.get("ctx", {}).get("error")
    remedy = str(cause) if isinstance(cause, ValueError) else detail["msg"]
    return f"{section}.{key} ({origin}): {_shown(shown)}: {remedy}"


def _unknown(name: str, key: str, origin: str) -> str:
    """Say that a section or key does not exist, and which one may be meant."""
    section = name.partition(".")[0]
    near = " or ".join(_nearest(section, key, is_section=section == name))
    every = ", ".join(_known().get(section, _known()))
    remedy = f"did you mean {near}?" if near else f"there are {every}"
    return f"{_cut(name)} ({origin}): no such setting; {remedy}"


def _nearest(section: str, key: str, *, is_section: bool) -> list[str]:
    known = _known()
    elsewhere = [f"{other}.{key}" for other, keys in known.items() if key in keys]
    if elsewhere:
        return elsewhere
    if is_section:
        return [f"[{near}]" for near in difflib.get_close_matches(section, known, 1, 0.5)]
    close = difflib.get_close_matches(key, known[section], 1, 0.5)
    return [f"{section}.{near}" for near in close]


def _shown(value: object) -> str:
    return f'"{_cut(value)}"' if isinstance(value, str) else _cut(repr(value))


def _cut(text: str) -> str:
    text = printable(redacted(text))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
