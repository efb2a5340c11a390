"""Neither the key nor a database password is ever written anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import inspect, text

from orchestrator.config import load_settings
from orchestrator.errors import OrchestratorError
from orchestrator.store.engine import parse_url, pooled_engine, sync_engine
from orchestrator.testing import DevServer, Fault, Kind, Pace, Timing

from ..cli.shell import Shell
from .night import Night

KEY = "an-odd/key+of=ours.7Qx"
"""Not of the service's usual shape, so that no pattern can find it."""
PASSWORD = "pa$$ word/7Zy"


def forms(secret: str) -> Iterator[str]:
    """A secret as it is, and as a URL, JSON or a header would carry it."""
    yield secret
    yield quote(secret)
    yield quote(secret, safe="")
    yield json.dumps(secret)[1:-1]
    yield base64.b64encode(secret.encode()).decode()


SECRETS = sorted({form for secret in (KEY, PASSWORD) for form in forms(secret)})


def with_password(url: str) -> str:
    """The URL with a password that the server does not ask for."""
    if url.startswith("sqlite"):
        return url
    return url.replace("postgres:@", f"postgres:{quote(PASSWORD, safe='')}@")


def tables(url: str) -> str:
    """Every column of every table, as text."""
    engine = sync_engine(parse_url(url))
    with engine.begin() as connection:
        names = inspect(connection).get_table_names()
        rows = [list(connection.execute(text(f'SELECT * FROM "{name}"'))) for name in names]  # noqa: S608 - the tables' own names
    engine.dispose()
    return repr(rows)


def assert_clean(where: str, said: str) -> None:
    found = [secret for secret in SECRETS if secret in said]
    assert not found, f"{where} tells {found}: …{said[max(0, said.find(found[0]) - 300) :][:600]}"


async def said_by(night: Night, *commands: tuple[str, ...]) -> dict[str, str]:
    """What each command says: workers as processes, the others in this one, which is cheap.

    The processes run beside the rest. Commands in threads leave the loop to the dev server.
    """
    said: dict[str, str] = {}
    shell = Shell(night.folder)
    shell.env = night.environ

    async def as_process(command: tuple[str, ...]) -> None:
        done = await night.command(*command)
        said[" ".join(command)] = (done.stdout + done.stderr).decode(errors="replace")

    async with anyio.create_task_group() as tasks:
        for command in commands:
            if command[0] == "worker":
                tasks.start_soon(as_process, command)
                continue
            here = await anyio.to_thread.run_sync(partial(shell, *command, code=None))
            said[" ".join(command)] = here.out + here.err
    assert all(said.values()), said
    return said


ECHO = f"the header x-api-key: {KEY} was refused"

FAULTS = [
    Fault(kind=Kind.ANSWER, route="start", status=401, error=ECHO, times=1),
    Fault(kind=Kind.ANSWER, route="start", status=429, error=ECHO, times=2),
    Fault(kind=Kind.ANSWER, route="start", status=500, error=ECHO, times=1, prompt="doubt"),
    Fault(kind=Kind.ANSWER, route="start", status=400, error=ECHO, times=1, prompt="refused"),
    Fault(
        kind=Kind.ANSWER,
        route="start",
        status=302,
        body=ECHO,
        headers={"Location": f"https://elsewhere.example/?key={quote(KEY)}&k={KEY}"},
        times=1,
    ),
    Fault(kind=Kind.ANSWER, route="status", status=500, body=f"<pre>{ECHO}</pre>", times=3),
    Fault(kind=Kind.ANSWER, route="status", status=401, error=ECHO, times=1),
    Fault(kind=Kind.ANSWER, route="stream", status=403, error=ECHO, times=2),
    Fault(kind=Kind.ANSWER, route="chat", status=502, body=ECHO, times=2),
    Fault(kind=Kind.RESET, route="status", times=2),
    Fault(kind=Kind.BREAK_BODY, route="start", when="after", times=1, prompt="broken"),
]


async def test_no_place_tells_a_secret(database_url: str, tmp_path: Path) -> None:
    url = with_password(database_url)
    proxy = {"ORCHESTRATOR_DATABASE__LISTEN_URL": url} if "postgres" in url else {}
    async with DevServer(keys=(KEY,), timing=Timing(pace=Pace(chunk=0.001))) as dev:
        night = Night(tmp_path, dev, url, LOG__LEVEL="debug", FOLLOW__MODE="stream")
        night.environ |= proxy
        for fault in FAULTS:
            dev.faults.add(fault)
        night.enqueue(
            *(f'[text="Done {number}." first=0.2]' for number in range(6)),
            "[text='doubt']",
            "[text='refused']",
            "[text='broken' first=1]",
        )
        with night.worker("-v"):
            await night.until(
                lambda: not set(night.states()) & {"queued", "submitting", "running"},
                "everything settled or in doubt",
                within=60,
            )
        said = await said_by(
            night,
            ("worker", "--once", "--verbose", "--database", "sqlite:///nowhere/at/all.db"),
            ("status", "--json"),
            ("jobs", "--json"),
            ("show", "7"),
            ("gate",),
            ("doctor",),
        )
        states = night.states()
    refused = "SELECT error FROM jobs WHERE prompt LIKE '%refused%'"
    assert night.sql(refused) == [("HTTP 400: the header x-api-key: [key] was refused",)]
    assert states["completed"] >= 6
    for where, text_of_it in {**said, "logs": night.logs(), "tables": tables(url)}.items():
        assert_clean(where, text_of_it)
    assert len(night.logs()) > 2000


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{quote(PASSWORD, safe='')}@127.0.0.1:1/none",
        f"postgresql://me@127.0.0.1:1/none?password={quote(PASSWORD, safe='')}",
    ],
)
async def test_a_password_is_in_no_repr_and_no_error(url: str, tmp_path: Path) -> None:
    async with DevServer(keys=(KEY,)) as dev:
        night = Night(tmp_path, dev, url)
        said = await said_by(night, ("worker", "--once", "-v"), ("doctor",))
    for command, text_of_it in said.items():
        assert "the database cannot be used now" in text_of_it
        assert_clean(command, text_of_it)


@pytest.mark.parametrize("name", ["DATABASE__URL", "DATABASE__LISTEN_URL"])
def test_settings_and_engines_show_no_password(name: str) -> None:
    secret = f"postgresql://me:{quote(PASSWORD, safe='')}@host/name"
    environ = {"ORCHESTRATOR_DATABASE__URL": "postgresql://me@host/name"}
    settings = load_settings(environ={**environ, f"ORCHESTRATOR_{name}": secret})
    url = parse_url(secret)
    for shown in (settings, settings.database, url, pooled_engine(url), sync_engine(url)):
        assert_clean(type(shown).__name__, f"{shown!r} {shown}")


@pytest.mark.parametrize(
    "value", [f"postgresql://me:{PASSWORD}@host:port/x", f"mysql://u:{PASSWORD}@h/x"]
)
def test_a_url_that_is_refused_is_not_repeated(value: str) -> None:
    with pytest.raises(OrchestratorError) as refused:
        parse_url(load_settings(environ={"ORCHESTRATOR_DATABASE__URL": value}).database.url)
    assert_clean("the error", str(refused.value))
