"""Start: `demo`, `init`, `doctor`."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import anyio
import click

from orchestrator.cli.checkup import Finding, check_all, probe_streams
from orchestrator.cli.frame import Frame, command, pass_frame
from orchestrator.cli.options import as_json
from orchestrator.cli.text import console
from orchestrator.config import FILE_VARIABLE, KEY_VARIABLE, Settings, safe_url
from orchestrator.errors import ConfigError
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url

_DEFAULT_FILE = Path("orchestrator.toml")
_DEFAULT_URL = "sqlite:///orchestrator.db"


@command
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Work in this folder and leave the database there.",
)
@pass_frame
def demo(frame: Frame, *, keep: Path | None) -> int:  # noqa: ARG001 - it has settings of its own
    """Show it at work, on a dev server of its own."""
    from functools import partial

    from orchestrator.demo import run

    return anyio.run(partial(run, console=console(), keep=keep))


@command
@pass_frame
def init(frame: Frame) -> None:
    """Create the database and a configuration file.

    Writes orchestrator.toml (or the file that --config names) with every setting and its
    default, if there is none, and brings the database to the present schema. Nothing that
    exists is overwritten.
    """
    out = frame.output()
    named = frame.config or (
        Path(os.environ[FILE_VARIABLE]) if FILE_VARIABLE in os.environ else None
    )
    file = named or _DEFAULT_FILE
    if _write_new(file, _example(frame.database)):
        out.line(f"wrote {file}, with every setting and its default")
    else:
        out.line(f"kept {file} as it is")
    settings = frame.settings()
    revision = migrations.upgrade(parse_url(settings.database.url))
    out.line(f"the database {safe_url(settings.database.url)} is ready, schema {revision}")
    out.line()
    if not os.environ.get(KEY_VARIABLE) and settings.api.api_key_file is None:
        out.line(f"next: export {KEY_VARIABLE}=…   (or name a file in api.api_key_file)")
    for words in ("doctor", 'enqueue "Write a haiku about queues."', "worker --once", "status"):
        out.line(f"then: orchestrator {words}")


def _example(database: str | None) -> str:
    """Return the text of the example configuration, with the database that a flag names.

    A checkout's own file comes first: the copy beside the package may be older.
    """
    package = Path(str(files("orchestrator")))
    places = (package.parent / "config.example.toml", package / "_config.example.toml")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(f"config.example.toml is missing beside {str(package)!r}; install again")
    text = found.read_text("utf-8")
    # A URL with a password is not written into a file that nobody asked to hold one.
    if database is None or safe_url(database) != database:
        return text
    quoted = database.replace("\\", "\\\\").replace('"', '\\"')
    return text.replace(f'url = "{_DEFAULT_URL}"', f'url = "{quoted}"')


def _write_new(file: Path, text: str) -> bool:
    """Write the file and return True, or False where there is one."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"the configuration file {file}: {error.strerror}") from None
    return True


@command
@click.option(
    "--probe-streams",
    is_flag=True,
    help="Find out, with one small run that costs a little, whether leaving a stream cancels it.",
)
@as_json
@pass_frame
def doctor(frame: Frame, *, probe_streams: bool, as_json: bool) -> int:
    """Check configuration, database, key, API and workers.

    Each line says ok, or a problem and its remedy. Exit code 78 if something must be
    corrected, 75 if it may pass by itself.
    """
    return anyio.run(_doctor, frame, probe_streams, as_json)


async def _doctor(frame: Frame, probe: bool, as_json: bool) -> int:
    out = frame.output()
    findings: list[Finding] = []
    settings: Settings | None = None
    try:
        settings = frame.settings()
    except ConfigError as error:
        findings.append(Finding("configuration", str(error), "correct it", ConfigError.exit_code))
    if settings is not None:
        findings.append(Finding("configuration", "every value can be used"))
        findings += await check_all(settings, os.environ)
        if probe:
            findings.append(await probe_streams(settings, os.environ))
    if as_json:
        out.json(findings)
    else:
        for finding in findings:
            mark = "problem" if finding.exit_code else "ok"
            style = "red" if finding.exit_code else ""
            first, *more = finding.says.split("\n")
            out.line(f"{mark:<8} {finding.what}: {first}", style=style)
            for line in more:
                out.line(f"{'':<8} {line}", style=style)
            if finding.remedy:
                out.line(f"{'':<8} {finding.remedy}")
    return max((finding.exit_code for finding in findings), default=0)
