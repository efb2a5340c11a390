"""The parts of the documents that are made from the code.

`python -m tests.docs.generated` writes them into README.md and docs/, between the marks
`<!-- begin: name -->` and `<!-- end: name -->`; the tests compare.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Final

import click

from orchestrator import states
from orchestrator.cli.app import root
from orchestrator.states import TRANSITIONS, ErrorKind, State, kinds_of

ROOT: Final = Path(__file__).parents[2]


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def meanings(words: type[StrEnum]) -> dict[str, str]:
    """The sentence under each member of an enum of `states.py`."""
    tree = ast.parse(inspect.getsource(states))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == words.__name__
    )
    found: dict[str, str] = {}
    for member, text in pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            name = ast.literal_eval(member.value)
            found[name] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def states_table() -> str:
    """Each state, what it means, and where it may leave to."""
    said = meanings(State)
    return table(
        ("state", "meaning", "leaves to"),
        [
            (
                f"`{state}`",
                said[state],
                ", ".join(f"`{to}`" for to in State if to in TRANSITIONS[state]),
            )
            for state in State
        ],
    )


def kinds_table() -> str:
    """Each kind of trouble, the state that it belongs to, and its meaning."""
    said = meanings(ErrorKind)
    return table(
        ("`error_kind`", "state", "meaning"),
        [
            (
                f"`{kind}`",
                ", ".join(f"`{state}`" for state in State if kind in kinds_of(state)),
                said[kind],
            )
            for kind in ErrorKind
        ],
    )


def transitions_table() -> str:
    """The matrix of transitions: rows leave, columns are entered."""
    return table(
        ("from \\ to", *(f"`{to}`" for to in State)),
        [
            (f"`{state}`", *("yes" if to in TRANSITIONS[state] else "" for to in State))
            for state in State
        ],
    )


def cli_reference() -> str:
    """The help of every command, as the command line prints it."""
    sections = [
        f"## {context.command_path}\n\n```text\n{context.get_help().strip()}\n```"
        for context in commands()
    ]
    return "\n\n".join(sections)


def commands() -> Iterator[click.Context]:
    """A context of every command, each group before its commands."""
    yield from _within(root, None, "orchestrator")


def _within(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[click.Context]:
    context = click.Context(
        command,
        parent=parent,
        info_name=name,
        terminal_width=96,
        max_content_width=96,
        **command.context_settings,
    )
    yield context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _within(found, context, child)


PARTS: Final[Mapping[str, tuple[str, Callable[[], str]]]] = {
    "states": ("README.md", states_table),
    "transitions": ("docs/states.md", transitions_table),
    "state-meanings": ("docs/states.md", states_table),
    "kinds": ("docs/states.md", kinds_table),
    "cli": ("docs/cli.md", cli_reference),
}
"""Name of each part, its document, and what makes it."""


def between_marks(name: str) -> re.Pattern[str]:
    """What stands between the marks of a part."""
    return re.compile(rf"(?<=<!-- begin: {name} -->\n)(.*?)(?=\n<!-- end: {name} -->)", re.DOTALL)


def write() -> None:
    """Bring every document up to date."""
    for name, (document, make) in PARTS.items():
        path = ROOT / document
        before, _found, after = re.split(between_marks(name), path.read_text("utf-8"))
        path.write_text(before + make() + after, "utf-8")


if __name__ == "__main__":
    write()
