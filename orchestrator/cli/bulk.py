"""Jobs from a file: JSON lines, CSV, or a prompt a line. All mistakes are found at once."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.cli.failures import BadInput
from orchestrator.cli.options import shifted
from orchestrator.errors import InvalidJob
from orchestrator.request import OPTIONS, job_values

MOST_TOLD = 20
"""Bad lines that one message names."""

_LISTS = frozenset({"tags", "exclude_tools", "retry_on"})
_JSON = frozenset({"metadata", "messages", "input_messages"})
_INTEGERS = frozenset({"priority", "max_attempts"})
_TIMES = frozenset({"scheduled_at", "expires_at"})

Options = dict[str, Any]
Record = tuple[int, Options | str]
"""A line's number, and its options or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One job of a file: where it stands, and its options."""

    number: int
    options: Options


def read_jobs(
    content: bytes, *, name: str, form: str, given: Mapping[str, Any], now: datetime
) -> list[Line]:
    """Return the jobs of a file, each with the options that were given for all of them.

    `form` is a key of `FORMS`; what a line says goes before what is `given`. Times such as
    `+2h` count from `now`. Raises BadInput with the number of each bad line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{name}:{line}: it is not UTF-8") from None
    lines: list[Line] = []
    problems: list[str] = []
    for number, found in FORMS[form](text):
        if isinstance(found, str):
            problems.append(f"{name}:{number}: {found}")
            continue
        options = with_times({**given, **found}, now)
        try:
            job_values(options)
        except InvalidJob as error:
            problems.append(f"{name}:{number}: {error}")
        lines.append(Line(number, options))
    if problems:
        more = len(problems) - MOST_TOLD
        told = problems[:MOST_TOLD] + ([f"… and {more} more"] if more > 0 else [])
        raise BadInput("\n  ".join([f"nothing was enqueued; {len(problems)} bad lines:", *told]))
    return lines


def with_times(options: Mapping[str, Any], now: datetime) -> Options:
    """Replace spans such as `+2h` by the time that they mean; the rest is checked elsewhere."""
    values = dict(options)
    for name in _TIMES & values.keys():
        value = values[name]
        if isinstance(value, str) and value.strip().startswith("+"):
            try:
                values[name] = shifted(value, now=now)
            except ValueError:
                continue  # the check of the option says what a time looks like
    return values


def form_of(path: Path) -> str | None:
    """Tell the form of a file by its name, or None."""
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "text"}
    return known.get(path.suffix.lower())


def _json_lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_without_twins)
        except _Twins as error:
            yield number, str(error)
            continue
        except (ValueError, RecursionError) as error:
            yield number, f"it is no JSON: {error}"
            continue
        yield number, value if isinstance(value, dict) else "it must be a JSON object"


class _Twins(ValueError):
    """An object has a name twice, of which JSON would keep the last."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise _Twins(f"the name {twin!r} stands there twice in one object; drop one of the two")
    return value


def _text_lines(text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if _is_an_object(line):
            yield number, "it looks like JSON; add --format jsonl, or write the prompt as JSON"
        elif line.strip():
            yield number, {"prompt": line.rstrip("\r")}


def _is_an_object(line: str) -> bool:
    """True for a line of JSONL: in a file of plain prompts it is a mistake that costs runs."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not value.keys().isdisjoint({"prompt", "messages"})


def _csv_records(text: str) -> Iterator[Record]:
    # The library's own limit refuses long prompts. It is the whole process's, so it is put back.
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        yield from _csv_rows(text)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(text: str) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            start, number = number, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                wrong = _wrong_header(header)
                if wrong is not None:
                    yield start, wrong
                    return
            elif len(cells) != len(header):
                yield start, f"{len(cells)} cells, and the header names {len(header)} columns"
            else:
                yield start, _options_of(header, cells)
    except csv.Error as error:
        yield number, f"it is no CSV: {error}"


def _wrong_header(header: list[str]) -> str | None:
    for name in header:
        if name not in OPTIONS:
            return _unknown(name)
        if header.count(name) > 1:
            return f"the column {name} stands there twice"
    return None


def _unknown(name: str) -> str:
    try:
        job_values({name: "any"})
    except InvalidJob as error:
        return f"column {name!r}: {error.remedy}"
    raise AssertionError(f"{name!r} is an option after all")


def _options_of(header: list[str], cells: list[str]) -> Options | str:
    options: Options = {}
    for name, cell in zip(header, cells, strict=True):
        if not cell.strip():
            continue
        if name in _LISTS:
            options[name] = _list_of(cell)
        elif name in _JSON:
            try:
                options[name] = json.loads(cell)
            except ValueError as error:
                return f"{name}: it is no JSON: {error}"
        elif name in _INTEGERS:
            try:
                options[name] = int(cell)
            except ValueError:
                return f"{name}: {cell!r}: it must be a whole number"
        else:
            options[name] = cell
    return options


def _list_of(cell: str) -> list[str]:
    """Words with `;` between them, or the JSON list that `jobs --csv` writes."""
    try:
        value = json.loads(cell)
    except ValueError:
        value = None
    if isinstance(value, list):
        return value
    return [word.strip() for word in cell.split(";") if word.strip()]


FORMS: Mapping[str, Callable[[str], Iterator[Record]]] = {
    "jsonl": _json_lines,
    "csv": _csv_records,
    "text": _text_lines,
}
"""The forms of a file: a JSON object a line, CSV with a header, or a prompt a line."""
