"""From an exception to a sentence on standard error and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback as tracebacks
from collections.abc import Iterator

import click
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError

from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.printable import never_raise, printable, redacted

UNEXPECTED, USAGE, SOME_NOT_COMPLETED = 1, 2, 3
TRY_LATER, CONFIGURATION, INTERRUPTED = 75, 78, 130

_DRIVERS = frozenset({"psycopg"})


class BadInput(OrchestratorError):
    """What the caller gave cannot be read; the text may have a line for each mistake."""

    exit_code = USAGE


def told(error: Exception, *, traceback: bool) -> int:
    """Say on standard error what went wrong, and return the exit code.

    An error that nobody foresaw is named by its class and place only, since its text may quote
    what is private; `traceback` shows it in full.
    """
    leaf = next(_leaves(error))
    if isinstance(leaf, BrokenPipeError):
        _let_go_of_stdout()
        return UNEXPECTED
    code, sentence = _judged(leaf)
    if traceback:
        _say("".join(tracebacks.format_exception(error)).rstrip(), multiline=True)
    if sentence:
        _say(sentence, multiline=isinstance(leaf, ConfigError | BadInput | click.UsageError))
    return code


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Give what a task group collected, the unforeseen first."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    found = [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    yield from sorted(found, key=lambda leaf: isinstance(leaf, OrchestratorError))


def _judged(error: BaseException) -> tuple[int, str]:
    match error:
        case OrchestratorError():
            return error.exit_code, f"error: {error}"
        case click.exceptions.NoArgsIsHelpError():
            return USAGE, error.format_message()
        case click.UsageError():
            usage = f"{error.ctx.get_usage()}\n" if error.ctx is not None else ""
            hint = f"Try '{error.ctx.command_path} --help'.\n" if error.ctx is not None else ""
            return USAGE, f"{usage}{hint}error: {error.format_message()}"
        case click.ClickException():
            return USAGE, f"error: {error.format_message()}"
        case click.Abort():
            interrupted = isinstance(error.__cause__, KeyboardInterrupt)
            return (INTERRUPTED, "") if interrupted else (UNEXPECTED, "error: nothing was done")
        case OperationalError() | InterfaceError():
            return TRY_LATER, f"error: the database cannot be used now: {_words(error)}"
        case DatabaseError():
            return CONFIGURATION, f"error: the database refuses: {_words(error)}"
        case ModuleNotFoundError() if error.name in _DRIVERS:
            return CONFIGURATION, f"error: the database's driver is missing; install {error.name}"
        case OSError():
            return UNEXPECTED, f"error: {_of_the_system(error)}"
    return (
        UNEXPECTED,
        f"error: unexpected {type(error).__name__}{_place(error)}; --verbose says more",
    )


def _words(error: DBAPIError) -> str:
    """The driver's own first line: SQLAlchemy's text has the statement and its values."""
    return str(error.orig).splitlines()[0] if str(error.orig) else type(error).__name__


def _of_the_system(error: OSError) -> str:
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or type(error).__name__}"


def _place(error: BaseException) -> str:
    frames = tracebacks.extract_tb(error.__traceback__)
    return f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""  # noqa: PTH119 - a name, no file


def _say(text: str, *, multiline: bool) -> None:
    never_raise(sys.stderr)
    with contextlib.suppress(OSError):  # nobody is left to be told
        sys.stderr.write(printable(redacted(text), multiline=multiline) + "\n")
        sys.stderr.flush()


def _let_go_of_stdout() -> None:
    """Keep the interpreter from complaining, at its end, of what it cannot flush."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
