"""The commands by group. A command's module is imported when the command is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

from orchestrator.cli.frame import GlobalOptions
from orchestrator.version import __version__

GROUPS: Mapping[str, Mapping[str, str]] = {
    "start": {
        "demo": "Show it at work, on a dev server of its own.",
        "init": "Create the database and a configuration file.",
        "doctor": "Check configuration, database, key, API and workers.",
    },
    "work": {
        "enqueue": "Enqueue a prompt, or a file of them.",
        "worker": "Run a worker.",
        "wait": "Wait until jobs are at rest.",
    },
    "look": {
        "status": "Say what ran, what failed and why, and what waits.",
        "jobs": "List or export jobs.",
        "show": "Show one job with its events and its text.",
        "watch": "Show the text of jobs as it grows.",
        "queues": "List the queues.",
        "workers": "List the workers.",
    },
    "act": {
        "cancel": "Call jobs off.",
        "retry": "Queue settled jobs again, as new attempts.",
        "resolve": "Decide what becomes of jobs in doubt.",
        "pause": "Stop claims from a queue.",
        "resume": "Let a queue's jobs be claimed again.",
        "limit": "Bound how many jobs of a queue are live at once.",
        "weigh": "Set a queue's share of free slots.",
        "gate": "Show, open or close the gate of an API and key.",
    },
    "maintain": {
        "migrate": "Upgrade or check the database's schema.",
    },
    "debug": {
        "devserver": "Serve the API on loopback, with a scripted model.",
        "fold": "Print the message of a recorded stream.",
    },
}
"""Heading, then command with the first line of its help: the same words, so that the overview
needs no module. The heading is also the module's name, but for `_HOMES`."""

_HOMES: Mapping[str, str] = {"gate": "gate"}
"""Commands with a module of their own."""


class Root(GlobalOptions, click.Group):
    """The command `orchestrator`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return all names, by group."""
        return [name for commands in GROUPS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module and return the command."""
        for heading, commands in GROUPS.items():
            if cmd_name in commands:
                home = _HOMES.get(cmd_name, heading)
                found = getattr(import_module(f"orchestrator.cli.{home}"), cmd_name)
                assert isinstance(found, click.Command)  # noqa: S101 - the table above says so
                return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the overview, one section a group."""
        for heading, commands in GROUPS.items():
            with formatter.section(heading.capitalize()):
                formatter.write_dl(list(commands.items()))


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 unexpected, 2 usage, 3 some jobs did not complete, "
    "75 try later, 78 configuration.",
)
@click.version_option(__version__, prog_name="orchestrator", help="Show the version and exit.")
def root() -> None:
    """Run a table of prompts as durable Recoup chat runs."""
