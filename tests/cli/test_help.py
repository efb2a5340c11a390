from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from orchestrator.cli.app import GROUPS, root

from .shell import Shell


def every_command(
    command: click.Command, path: str = "orchestrator"
) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_command(inner, f"{path} {name}")


COMMANDS = dict(every_command(root))


def test_there_are_all_commands() -> None:
    named = {path.split()[1] for path in COMMANDS if " " in path}
    assert named == {
        *("demo", "init", "doctor"),
        *("enqueue", "worker", "wait"),
        *("status", "jobs", "show", "watch", "queues", "workers"),
        *("cancel", "retry", "resolve", "pause", "resume", "limit", "weigh", "gate"),
        *("migrate", "devserver", "fold"),
    }


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_every_option_has_help(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_overview_says_what_the_commands_say() -> None:
    for commands in GROUPS.values():
        for name, words in commands.items():
            command = root.get_command(click.Context(root), name)
            assert command is not None
            assert (command.help or "").split("\n\n")[0].replace("\n", " ") == words


def test_the_overview_groups_the_commands(shell: Shell) -> None:
    out = shell("--help").out
    for heading, commands in GROUPS.items():
        assert f"\n{heading.capitalize()}:\n" in out
        assert all(f"\n  {name} " in out for name in commands)


def test_the_overview_imports_no_command() -> None:
    script = (
        "import sys; from orchestrator.cli import main; main(['--help']);"
        "print([m for m in sys.modules if m.startswith('orchestrator.cli.')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "['orchestrator.cli.frame', 'orchestrator.cli.app']"


def test_shared_options_stand_before_and_after_the_command(shell: Shell) -> None:
    shell("--database", "sqlite:///a.db", "migrate", "upgrade")
    shell("migrate", "upgrade", "--database", "sqlite:///b.db")
    shell("migrate", "--database", "sqlite:///c.db", "upgrade")
    assert sorted(path.name for path in shell.folder.glob("*.db")) == ["a.db", "b.db", "c.db"]
    (shell.folder / "my.toml").write_text('[database]\nurl = "sqlite:///a.db"\n')
    assert shell("--config", "my.toml", "status").out.startswith("sqlite:///a.db")
    assert shell("status", "--config", "my.toml").out.startswith("sqlite:///a.db")


def test_the_version(shell: Shell) -> None:
    from orchestrator import __version__

    assert __version__ in shell("--version").out


def test_python_dash_m_is_the_command(shell: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == shell("--version").out
