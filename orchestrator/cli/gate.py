"""The gate of an API and key: show, open, close; and jobs whose key was replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import click
from sqlalchemy import Connection

from orchestrator.cli.frame import Frame, GlobalOptions, Group, pass_frame
from orchestrator.cli.options import as_json
from orchestrator.cli.render import Column, Output
from orchestrator.cli.report import next_probe, why_closed
from orchestrator.config import Settings, fingerprint
from orchestrator.errors import ConfigError
from orchestrator.job import Job
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import crew, people
from orchestrator.store.verbs import gate as gates
from orchestrator.store.verbs.claimant import Claimant


@click.group(cls=Group)
def gate() -> None:
    """Show, open or close the gate of an API and key.

    A closed gate holds back every submission; runs that go on are followed all the same.
    """


@gate.command("show", cls=GlobalOptions)
@as_json
@pass_frame
def show_gate(frame: Frame, *, as_json: bool) -> None:
    """List the gates, one for each API and key that a worker has used."""
    rows = anyio.run(_gates, frame.settings())
    out = frame.output()
    if as_json:
        out.json(rows)
        return
    columns = [
        *(Column(name) for name in ("api", "key", "gate", "leaving a stream is")),
        Column("why", whole=False),
    ]
    out.table(
        columns,
        [
            (
                row.api_origin,
                row.key_fingerprint,
                "open" if row.open else "closed",
                row.leaving,
                "" if row.open else f"{why_closed(row)}; {next_probe(row)}",
            )
            for row in rows
        ],
    )


@gate.command("open", cls=GlobalOptions)
@pass_frame
def open_gate(frame: Frame) -> None:
    """Open the gate of the configured API and key (without a key: of all keys)."""
    changed = anyio.run(_set_gates, frame.settings(), partial(gates.open_gate, by_person=True))
    _told_gates(frame.output(), changed, "open")


@gate.command("close", cls=GlobalOptions)
@click.option("--reason", help="Why; status shows it.")
@pass_frame
def close_gate(frame: Frame, *, reason: str | None) -> None:
    """Close the gate of the configured API and key (without a key: of all keys).

    It stays closed until `gate open`.
    """
    verb = partial(gates.close_by_person, detail=reason)
    changed = anyio.run(_set_gates, frame.settings(), verb)
    _told_gates(frame.output(), changed, "closed")


@gate.command("rekey", cls=GlobalOptions)
@click.argument("old")
@pass_frame
def rekey(frame: Frame, *, old: str) -> None:
    """Give the live and doubtful jobs of a replaced key to the configured key.

    OLD is the old key's fingerprint, as `status` shows it. A worker follows only the runs of its
    own key: after a key was replaced, those of the old one wait for this.
    """
    settings = frame.settings()
    new = fingerprint(settings.api.key_source(os.environ).read_key())
    verb = partial(people.rekey, api_origin=settings.api.base_url, old=old, new=new)
    moved: list[Job] = anyio.run(write_once, settings, verb)
    out = frame.output()
    for job in moved:
        out.line(f"{job.id} {job.state.value}: key {new}")
    if not moved:
        out.line(f"no live or doubtful job belongs to key {old}")


def _told_gates(out: Output, changed: list[Claimant], word: str) -> None:
    for who in changed:
        out.line(f"{word}: {who.api_origin}, key {who.key_fingerprint}")
    if not changed:
        out.line("there is no gate of this API yet; a worker makes it, or set the key")


async def _gates(settings: Settings) -> list[gates.Gate]:
    async with Store.open(parse_url(settings.database.url)) as store:
        return await store.read(gates.all_gates)


async def _set_gates(settings: Settings, verb: Callable[..., object]) -> list[Claimant]:
    """Apply a verb to the gate of the configured key, or to all of the configured origin."""
    origin = settings.api.base_url
    try:
        keys = [fingerprint(settings.api.key_source(os.environ).read_key())]
    except ConfigError:
        keys = [row.key_fingerprint for row in await _gates(settings) if row.api_origin == origin]
    chosen = [Claimant("operator", origin, key) for key in keys]

    def apply(connection: Connection) -> None:
        for who in chosen:
            crew.ensure_gate(connection, who)
            verb(connection, who)

    await write_once(settings, apply)
    return chosen


async def write_once(settings: Settings, verb: Callable[[Connection], Any]) -> Any:
    """Run one verb in a transaction of its own."""
    async with Store.open(parse_url(settings.database.url)) as store:
        return await store.write(verb)
