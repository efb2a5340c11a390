"""How the command line prints: one function for text that is not ours, one console."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from orchestrator.printable import never_raise, printable

_UNWRAPPED = 1_000_000
"""Columns of an output that is no terminal: wide enough that no table is cut."""


def foreign(text: str, *, multiline: bool = False, style: str = "") -> Text:
    r"""Make text that is not ours (model output, server words, titles) safe to print.

    Args:
        text: any string; it is never read as markup, and nothing in it is highlighted.
        multiline: keep its newlines and tabs, which are otherwise shown as `\n` and `\t`.
        style: a rich style for the whole.

    Returns:
        A rich `Text`, in which whatever a terminal would obey or hide is visible.
    """
    return Text(printable(text, multiline=multiline), style=style)


def console(*, stderr: bool = False) -> Console:
    """Make a console on the present standard output (or error) that never raises on encoding.

    A plain `str` given to it is printed as it stands: no markup, no highlighting, no emoji codes.
    `NO_COLOR` is honoured. Where the output is no terminal nothing is wrapped or cut.
    """
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    never_raise(made.file)  # type: ignore[arg-type]  # IO[str] here is a TextIO in the typeshed
    if not made.is_terminal:
        made.width = _UNWRAPPED
        made.soft_wrap = True
    return made
