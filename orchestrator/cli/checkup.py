"""What `doctor` looks at: one finding for each thing that must be in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial

import anyio
import httpx
from sqlalchemy.exc import DBAPIError

from orchestrator.cli.failures import CONFIGURATION, TRY_LATER
from orchestrator.config import Settings, fingerprint, safe_url
from orchestrator.errors import ConfigError, NotFound, OrchestratorError
from orchestrator.recoup.answers import Accepted, RunState, RunStatus, Trouble, TroubleKind
from orchestrator.recoup.client import RecoupClient
from orchestrator.recoup.stream import OpenStream
from orchestrator.remote import client_for
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs import crew, gate
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.survey import worker_rows

MOST_SKEW_S = 30.0
"""Clocks farther apart than this make the server's times hard to compare with ours."""

CLOCK_TIMEOUT_S = 10.0

PROBE_PROMPT = "Count from 1 to 200, one number a line, without any tool."
PROBE_READ_S = 120.0
"""How long the trial run may take to its first chunk."""

PROBE_WATCH_S = 15.0
"""How long the trial run is watched after its stream was left; a cancellation takes
milliseconds."""

PROBE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `exit_code` 0 means that it is in order."""

    what: str
    says: str
    remedy: str = ""
    exit_code: int = 0


async def check_all(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Look at key, API, clock and database, and return what was found; raises nothing of ours."""
    found = [_key(settings, environ)]
    if not found[0].exit_code:
        found.append(await _api(settings, environ))
    found.append(await _clock(settings))
    return found + await _database(settings, environ)


def _key(settings: Settings, environ: Mapping[str, str]) -> Finding:
    try:
        key = settings.api.key_source(environ).read_key()
    except ConfigError as error:
        return Finding("key", str(error), "", CONFIGURATION)
    return Finding("key", f"found, fingerprint {fingerprint(key)}")


async def _api(settings: Settings, environ: Mapping[str, str]) -> Finding:
    url = safe_url(settings.api.base_url)
    try:
        async with client_for(settings, environ) as client:
            trouble = await client.check_key()
    except ConfigError as error:
        return Finding("API", f"{url}: {error}", "correct the setting", CONFIGURATION)
    if trouble is None:
        return Finding("API", f"{url} answers and takes the key")
    says = f"{url}: {trouble.error}"
    match trouble.kind:
        case TroubleKind.UNAUTHORIZED:
            return Finding("API", says, "check the key and the address", CONFIGURATION)
        case (
            TroubleKind.FORBIDDEN
            | TroubleKind.FOREIGN
            | TroubleKind.REFUSED
            | TroubleKind.UNREADABLE
        ):
            return Finding("API", says, "check api.base_url and api.proxy", CONFIGURATION)
    return Finding("API", says, "try again; then check the network and api.proxy", TRY_LATER)


async def _clock(settings: Settings) -> Finding:
    """Compare our clock with the `Date` of any answer of the server; no key is sent."""
    try:
        async with httpx.AsyncClient(
            proxy=settings.api.proxy, trust_env=False, timeout=CLOCK_TIMEOUT_S
        ) as client:
            answer = await client.head(settings.api.base_url)
        theirs = parsedate_to_datetime(answer.headers["date"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("clock", f"not compared: no answer ({type(error).__name__})")
    except (KeyError, ValueError):
        return Finding("clock", "not compared: the server's answer gave no date")
    apart = (datetime.now(UTC) - theirs.astimezone(UTC)).total_seconds()
    if abs(apart) <= MOST_SKEW_S:
        return Finding("clock", "agrees with the server's")
    word = "ahead of" if apart > 0 else "behind"
    says = f"{abs(apart):.0f} s {word} the server's"
    return Finding("clock", says, "set this machine's clock, for example by NTP", CONFIGURATION)


async def _database(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    url = safe_url(settings.database.url)
    try:
        async with Store.open(parse_url(settings.database.url)) as store:
            return [
                Finding("database", f"{url} is there, with the schema of this program"),
                *(await _gates(store, settings, environ)),
                await _workers(store, settings),
            ]
    except NotFound as error:
        return [Finding("database", str(error), "", CONFIGURATION)]
    except OrchestratorError as error:
        return [Finding("database", f"{url}: {error}", "", error.exit_code)]
    except (DBAPIError, ModuleNotFoundError) as error:
        words = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        return [Finding("database", f"{url}: {words}", "name another", CONFIGURATION)]


async def _gates(store: Store, settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    try:
        key = fingerprint(settings.api.key_source(environ).read_key())
    except ConfigError:
        key = None  # the finding about the key says so
    ours = [
        row
        for row in await store.read(gate.all_gates)
        if row.api_origin == settings.api.base_url
        and not row.open
        and key in (None, row.key_fingerprint)
    ]
    if not ours:
        return [Finding("gate", "open")]
    return [
        Finding(
            "gate",
            f"closed for key {row.key_fingerprint}: {row.reason or 'a 401'} ({row.detail or '-'})",
            "a worker opens it when the cause is gone; or: orchestrator gate open",
            TRY_LATER,
        )
        for row in ours
    ]


async def _workers(store: Store, settings: Settings) -> Finding:
    rows = await store.read(worker_rows)
    alive = [row for row in rows if row["silent_s"] <= settings.worker.dead_after]
    if not alive:
        silent = f"; {len(rows)} fell silent" if rows else ""
        return Finding("workers", f"none is running{silent}", "start one: orchestrator worker")
    return Finding("workers", f"{len(alive)} alive, {len(rows) - len(alive)} silent")


async def probe_streams(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Start one small run, leave its stream, watch the run, and write down what became of it.

    The run is stopped at the end. What is learnt goes into the gates of the API's origin, whose
    row is made if there is none.
    """
    try:
        async with client_for(settings, environ) as client:
            verdict = await _left_stream(client)
        if isinstance(verdict, Finding):
            return verdict
        async with Store.open(parse_url(settings.database.url)) as store:
            key = settings.api.key_source(environ).read_key()
            who = Claimant("doctor", settings.api.base_url, fingerprint(key))
            await store.write(partial(crew.ensure_gate, who=who))
            await store.write(partial(gate.set_leaving, api_origin=who.api_origin, leaving=verdict))
    except OrchestratorError as error:
        return Finding("streams", str(error), "", error.exit_code)
    if verdict == "safe":
        return Finding("streams", "the run went on after its stream was left: streams are safe")
    return Finding("streams", "leaving its stream cancelled the run: runs are polled from now on")


async def _left_stream(client: RecoupClient) -> str | Finding:
    """Return `safe` or `unsafe`, or why the trial showed nothing."""

    async def send() -> bool:
        return True

    started = await client.start_run({"prompt": PROBE_PROMPT}, mark=send)
    if not isinstance(started, Accepted) or started.chat_id is None:
        error = getattr(started, "error", "the answer did not name its chat")
        return Finding("streams", f"the trial run was not started: {error}", "", TRY_LATER)
    try:
        if not await _leave_early(client, started):
            says = "the trial showed nothing: the run was over before its stream could be left"
            return Finding("streams", says, "try again later", TRY_LATER)
        return await _watched(client, started.run_id)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(PROBE_WATCH_S):
            await client.stop(started.chat_id or "")


async def _leave_early(client: RecoupClient, started: Accepted) -> bool:
    """Open the run's stream and leave it; True if the run was going on until then."""
    with anyio.move_on_after(PROBE_READ_S):
        async with client.stream(started.chat_id or "", 0) as opened:
            if not isinstance(opened, OpenStream):
                return False
            await anext(aiter(opened.reads()), None)
            seen = await client.run_status(started.run_id)
            return isinstance(seen, RunState) and not seen.status.terminal
    return False


async def _watched(client: RecoupClient, run_id: str) -> str | Finding:
    seen: RunState | Trouble | None = None
    for _ in range(int(PROBE_WATCH_S / PROBE_EVERY_S)):
        await anyio.sleep(PROBE_EVERY_S)
        seen = await client.run_status(run_id)
        if isinstance(seen, RunState) and seen.status.terminal:
            break
    if isinstance(seen, RunState):
        if seen.status is RunStatus.CANCELLED:
            return "unsafe"
        if seen.status is not RunStatus.FAILED:
            return "safe"
    says = f"the trial showed nothing: {getattr(seen, 'error', 'the run failed')}"
    return Finding("streams", says, "try again later", TRY_LATER)
