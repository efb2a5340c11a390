"""Where commands print: tables and sentences for people, JSON and CSV for programs.

Everything passes through `printable` on its way to a terminal, ours or not, so that no command
can forget it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.cli.text import console, foreign
from orchestrator.job import Job
from orchestrator.printable import never_raise, printable

_SURROGATES = re.compile("[\ud800-\udfff]")
_STYLES = {
    "completed": "green",
    "failed": "red",
    "in_doubt": "yellow",
    "running": "cyan",
    "submitting": "cyan",
    "cancelled": "dim",
    "ok": "green",
    "problem": "red",
}

JOB_COLUMNS = tuple(field.name for field in fields(Job))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `whole` is never cut or broken, as an id must not be."""

    name: str
    whole: bool = True
    right: bool = False


_SHORTENED = 12
"""The least width of a column that may be shortened, in cells."""


class Output:
    """One command's standard output."""

    def __init__(self, *, stream: TextIO) -> None:
        never_raise(stream)
        self._stream = stream
        self._console: Console | None = None

    @property
    def terminal(self) -> bool:
        """True where a person reads along."""
        return self._stream.isatty()

    @property
    def console(self) -> Console:
        """The rich console, made when it is first needed."""
        if self._console is None:
            self._console = console(stderr=self._stream is sys.stderr)
        return self._console

    def line(self, text: str = "", *, style: str = "") -> None:
        """Print one line; what would break it is made visible."""
        self._print(foreign(text, style=style))

    def heading(self, text: str) -> None:
        """Print the title of a part, set off from what stands before it."""
        self.line()
        self.line(text, style="bold")

    def flush(self) -> None:
        """Hand everything over now."""
        self._stream.flush()

    def text(self, text: str) -> None:
        """Print a text of several lines."""
        self._print(foreign(text, multiline=True))

    def raw(self, text: str) -> None:
        """Print a text as it is to a file or pipe, in UTF-8; on a terminal made visible."""
        if self.terminal:
            self.text(text)
            return
        self._bytes(f"{text}\n" if not text.endswith("\n") else text)

    def grow(self, text: str) -> None:
        """Append to the present line, on a terminal as elsewhere."""
        self._stream.write(printable(text, multiline=True))
        self._stream.flush()

    def table(
        self,
        columns: Sequence[Column],
        rows: Iterable[Sequence[object]],
        *,
        header: bool = True,
    ) -> None:
        """Print a table; where nobody watches, plain lines with tabs between the cells.

        `header` False leaves the columns' names out, as where one table is printed in pieces.
        """
        cells = [[_cell(value) for value in row] for row in rows]
        if not self.terminal:
            names = [[column.name for column in columns]] if header else []
            for row in [*names, *cells]:
                self._stream.write("\t".join(printable(cell) for cell in row) + "\n")
            return
        widths = self._widths(columns, cells)
        # On a terminal too narrow for ids and figures, its own line breaks are better than cut ids.
        least = sum(widths) + 2 * len(widths)
        table = Table(
            box=None,
            pad_edge=False,
            header_style="bold",
            show_header=header,
            width=least if least > self.console.width else None,
        )
        for column, width in zip(columns, widths, strict=True):
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                width=width,
            )
        for row in cells:
            table.add_row(*(foreign(cell, style=_STYLES.get(cell, "")) for cell in row))
        self.console.print(table, crop=False)

    def _widths(self, columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[int]:
        """Give each whole column what it needs, in cells, and the others an equal share."""
        wanted = [
            max(
                Text(printable(text)).cell_len for text in (column.name, *(row[n] for row in cells))
            )
            for n, column in enumerate(columns)
        ]
        shared = [n for n, column in enumerate(columns) if not column.whole]
        room = self.console.width - 2 * len(columns)
        room -= sum(width for n, width in enumerate(wanted) if n not in shared)
        for done, n in enumerate(sorted(shared, key=wanted.__getitem__)):
            wanted[n] = min(wanted[n], max(_SHORTENED, room // (len(shared) - done)))
            room -= wanted[n]
        return wanted

    def pairs(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print names with values, one a line; empty values and zeros are left out."""
        shown = [
            (name, _cell(value)) for name, value in pairs if value not in (None, "", 0, [], {})
        ]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"{name:<{width}}  {value}")

    def json(self, value: object, *, indent: int | None = 2) -> None:
        """Print one JSON document in ASCII; `indent` None makes it one line."""
        text = json.dumps(plain(value), indent=indent)
        self._stream.write(text.replace("\x7f", "\\u007f") + "\n")

    def csv(self, rows: Iterable[Sequence[object]]) -> None:
        """Print rows as RFC 4180 has it; on a terminal what is in them is made visible."""
        end = "\n" if self.terminal else "\r\n"
        for row in rows:
            line = io.StringIO()
            cells = [_csv_cell(value) for value in row]
            shown = [printable(cell) for cell in cells] if self.terminal else cells
            csv.writer(line, lineterminator=end).writerow(shown)
            self._bytes(line.getvalue())

    def _print(self, text: Text) -> None:
        if self.terminal:
            self.console.print(text, soft_wrap=True)
        else:
            self._stream.write(f"{text.plain}\n")

    def _bytes(self, text: str) -> None:
        """Write UTF-8 whatever the locale, with no change to the ends of lines."""
        buffer = getattr(self._stream, "buffer", None)
        clean = _SURROGATES.sub("\ufffd", text)
        if buffer is None:
            self._stream.write(clean)
            return
        self._stream.flush()
        buffer.write(clean.encode())
        buffer.flush()


def plain(value: object) -> Any:
    """Return a value as JSON can hold it: times in ISO 8601 and UTC, dataclasses as objects."""
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case Mapping():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(inner) for inner in value]
        case Path():
            return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return value


def job_row(job: Job) -> list[object]:
    """Return a job's values in the order of `JOB_COLUMNS`."""
    return [getattr(job, name) for name in JOB_COLUMNS]


def _csv_cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool() | dict() | list() | tuple():
            return json.dumps(plain(value))
    return str(plain(value))


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return moment(value)
        case dict() | list() | tuple():
            return json.dumps(plain(value), ensure_ascii=False)
        case float():
            return f"{value:g}"
    return str(value)


def moment(at: datetime) -> str:
    """Show a time in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def span(seconds: float) -> str:
    """Show a span of time by its two largest units."""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{max(seconds, 0):.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02}h"


def money(usd: float | None) -> str:
    """Show an amount of US dollars, to the hundredth of a cent."""
    return "" if usd is None else f"${usd:.4f}"


def start_of(text: str | None, length: int = 60) -> str:
    """Show the start of a text on one line."""
    if text is None:
        return ""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
