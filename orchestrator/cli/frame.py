"""What every command shares: the options that stand before or after it, and the settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from orchestrator.cli.render import Output
    from orchestrator.config import Settings


@dataclass(slots=True)
class Frame:
    """What the shared options said. `verbosity` is above 0 for --verbose, below for --quiet."""

    config: Path | None = None
    database: str | None = None
    verbosity: int = 0

    def settings(self, **overrides: dict[str, object]) -> Settings:
        """Read the settings, with the flags over them, and set the log up. Raises ConfigError."""
        from orchestrator import log
        from orchestrator.config import load_settings

        database = {"url": self.database}
        settings = load_settings(self.config, overrides={"database": database, **overrides})
        log.configure(self.level("warning"), settings.log.format)
        return settings

    def level(self, normal: str) -> str:
        """Return the lowest log level to show."""
        return {1: "debug", 0: normal, -1: "error"}[self.verbosity]

    def output(self) -> Output:
        """Return where the command prints."""
        from orchestrator.cli.render import Output

        return Output(stream=sys.stdout)

    def warn(self, text: str) -> None:
        """Print one line on standard error."""
        from orchestrator.cli.render import Output

        Output(stream=sys.stderr).line(text)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Frame), param.name, value)


def _louder(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value:
        ctx.ensure_object(Frame).verbosity = 1 if param.name == "verbose" else -1


def _shared_options() -> list[click.Parameter]:
    shared: dict[str, Any] = {"expose_value": False, "callback": _keep}
    flag: dict[str, Any] = {"expose_value": False, "callback": _louder, "is_flag": True}
    return [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="The configuration file; else ORCHESTRATOR_CONFIG, else ./orchestrator.toml.",
            **shared,
        ),
        click.Option(
            ["--database"],
            metavar="URL",
            help="The database, over the configuration: sqlite:///jobs.db.",
            **shared,
        ),
        click.Option(["-v", "--verbose"], help="Log everything; show tracebacks.", **flag),
        click.Option(["-q", "--quiet"], help="Log errors only.", **flag),
    ]


class GlobalOptions(click.Command):
    """A command that takes the shared options too, wherever they stand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = {name for param in self.params for name in param.opts}
        self.params.extend(shared for shared in _shared_options() if not own & {*shared.opts})


class Group(GlobalOptions, click.Group):
    """A group of subcommands that takes the shared options."""


def command(function: Callable[..., Any]) -> click.Command:
    """Declare a command of ours; its docstring is its help.

    A decorator made once would keep the first command's docstring for all the others.
    """
    return click.command(cls=GlobalOptions)(function)


pass_frame = click.make_pass_decorator(Frame)
"""Give the command the `Frame` as its first argument."""
