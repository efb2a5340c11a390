"""Debug: `devserver` and `fold`."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import click

from orchestrator.cli.failures import BadInput
from orchestrator.cli.frame import Frame, command, pass_frame
from orchestrator.cli.options import content_of
from orchestrator.cli.recorded import read_body
from orchestrator.cli.render import Output
from orchestrator.devserver import DEV_KEY, PRESETS, DevServer
from orchestrator.message import answer_text
from orchestrator.recoup import BadEvent, fold_message

EXIT_FATAL = 3


@command
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option(
    "--key", "keys", multiple=True, help=f"A valid key; may be given again. Default: {DEV_KEY}."
)
@click.option(
    "--database",
    "runs",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A SQLite file in which its runs outlive it; by default they are kept in memory.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="PRESET[,FIELD=VALUE]...",
    help=f"Switch a fault on; may be given again. Presets: {', '.join(sorted(PRESETS))}.",
)
@pass_frame
def devserver(
    frame: Frame,
    *,
    host: str,
    port: int,
    keys: tuple[str, ...],
    runs: Path | None,
    faults: tuple[str, ...],
) -> None:
    """Serve the API on loopback, with a scripted model.

    It prints its address and a key, and runs until Ctrl-C. A prompt may say how its run goes,
    as in [steps=3 tool=search fail=2].
    """
    chosen = [_fault(words) for words in faults]
    anyio.run(_serve, frame.output(), host, port, keys or (DEV_KEY,), runs, chosen)


def _fault(words: str) -> tuple[str, dict[str, Any]]:
    """Read `preset,field=value,…`; a value is JSON, or else text."""
    preset, *fields = words.split(",")
    if preset not in PRESETS:
        raise click.BadParameter(f"{preset!r}: one of {', '.join(sorted(PRESETS))}")
    changes: dict[str, Any] = {}
    for field in fields:
        name, _, value = field.partition("=")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return preset, changes


@asynccontextmanager
async def _listening(server: DevServer) -> AsyncIterator[DevServer]:
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise BadInput(
                "--port: another program listens there; stop it, or take a free port with --port 0"
            ) from None
        yield server


async def _serve(
    out: Output,
    host: str,
    port: int,
    keys: Sequence[str],
    runs: Path | None,
    faults: Sequence[tuple[str, dict[str, Any]]],
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with _listening(DevServer(host=host, port=port, keys=keys, database=runs)) as server:
            for preset, changes in faults:
                try:
                    server.faults.add(preset, **changes)
                except (TypeError, ValueError) as error:
                    raise BadInput(f"--fault {preset}: {error}") from None
            out.line(f"listening at {server.url}, key {server.key}")
            out.line(f"export ORCHESTRATOR_API__BASE_URL={server.url} RECOUP_API_KEY={server.key}")
            out.flush()
            await anext(aiter(signals))


@command
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--text", "text_only", is_flag=True, help="Print only the answer's text.")
@pass_frame
def fold(frame: Frame, *, file: Path, text_only: bool) -> int:
    """Print the message of a recorded stream.

    FILE (- is standard input) is the body of a stream response, a JSON array of chunks, or an
    object that has them under "chunks". Bad events, reported errors and the chunk at which a
    reader would stop for good go to standard error; the exit code is 3 if there is one.
    """
    body = read_body(content_of(file))
    folded = fold_message(body.chunks, body.initial)
    for index, chunk in enumerate(body.chunks):
        if isinstance(chunk, BadEvent):
            frame.warn(f"event {index} is no JSON: {chunk.reason}")
    for error in folded.errors:
        frame.warn(f"reported: {error}")
    if folded.fatal is not None:
        frame.warn(f"chunk {folded.fatal} contradicts the ones before it; nothing after it counts")
    out = frame.output()
    if not text_only:
        out.json(folded.message)
    else:
        out.raw(answer_text(folded.message) if isinstance(folded.message, dict) else "")
    return 0 if folded.fatal is None else EXIT_FATAL
