"""The dev server as an object to open and close, and as a process to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio
from aiohttp import web

from orchestrator.devserver.api import Api
from orchestrator.devserver.control import Control
from orchestrator.devserver.faults import Faults, Kind
from orchestrator.devserver.front import Front, platform
from orchestrator.devserver.keys import Keys
from orchestrator.devserver.record import Record
from orchestrator.devserver.runs import Runs
from orchestrator.devserver.shelf import SqliteShelf
from orchestrator.devserver.streams import Streams
from orchestrator.devserver.surroundings import Surroundings
from orchestrator.devserver.timing import Timing

DEV_KEY: Final = "recoup_sk_dev"
"""The key that is valid where no other is named."""

_BODY_LIMIT: Final = 4_500_000
"""Bytes of a request; the platform answers 413 above it."""


class DevServer:
    """The Recoup API on loopback, with a scripted model; an async context manager.

    `port` 0 takes a free one. `keys` are the valid keys (or map each to its account id).
    `database` is a SQLite file in which runs outlive the server; None keeps them in memory.
    `seed` makes the faults with a probability repeatable; `surroundings` are its clocks and its
    chance. It runs on timers of the loop that
    it is opened in and starts no task of its own, so it may be opened and closed from
    different tasks, as test fixtures do.

    While it is open: `url`, `key`, `faults`, `stats` (the `Record`), `runs`, `keys`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        keys: Iterable[str] | Mapping[str, str] = (DEV_KEY,),
        database: Path | str | None = None,
        timing: Timing | None = None,
        seed: int = 0,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._database = None if database is None else Path(database)
        self._timing = timing or Timing()
        self.keys = Keys(keys)
        self.key = next(iter(self.keys), DEV_KEY)
        self._surroundings = surroundings or Surroundings()
        self.faults = Faults(clock=self._surroundings.monotonic, seed=seed)
        self._refusing: int | None = None
        self._site: web.TCPSite | None = None

    @property
    def url(self) -> str:
        """Where the server listens, e.g. `http://127.0.0.1:49152`."""
        return f"http://{self._host}:{self._port}"

    async def __aenter__(self) -> Self:
        self._shelf = SqliteShelf(self._database)
        self.runs = Runs(
            shelf=self._shelf,
            faults=self.faults,
            pace=self._timing.pace,
            surroundings=self._surroundings,
        )
        self._shelf.load(self.runs)
        self.stats = Record(
            posts=self._shelf.posts(),
            runs=Counter(run.order.prompt for run in self.runs),
            on_post=self._shelf.add_post,
            now=self._surroundings.now,
        )
        self._streams = Streams(
            runs=self.runs,
            faults=self.faults,
            record=self.stats,
            keys=self.keys,
            timing=self._timing,
            surroundings=self._surroundings,
        )
        self._runner = web.AppRunner(
            self._app(), access_log=None, shutdown_timeout=0.1, handle_signals=False
        )
        await self._runner.setup()
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runs.close()
        await self._runner.cleanup()
        self._shelf.close()

    async def refuse(self) -> None:
        """Refuse connections from now on and break those that stand, open streams too."""
        if self._site is None:
            return
        site, self._site = self._site, None
        self._refusing = self.faults.add("not-started", kind=Kind.RESET, route="*", when="before")
        await site.stop()
        self._streams.drop_all()

    async def accept(self) -> None:
        """Let connections in, at first and again after `refuse`, on the same port."""
        if self._site is not None:
            return
        if self._refusing is not None:
            self.faults.remove(self._refusing)
        self._site = web.TCPSite(self._runner, self._host, self._port)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    def _app(self) -> web.Application:
        front = Front(
            runs=self.runs, faults=self.faults, record=self.stats, now=self._surroundings.now
        )
        api = Api(
            runs=self.runs,
            faults=self.faults,
            record=self.stats,
            keys=self.keys,
            timing=self._timing,
            find_run=self._streams.chat_run,
            surroundings=self._surroundings,
        )
        app = web.Application(middlewares=[platform], client_max_size=_BODY_LIMIT)
        get, post = "GET", "POST"
        for method, path, name, handler in (
            (post, "/api/chat/runs", "start", api.start),
            (get, "/api/chat/runs/{runId}", "status", api.status),
            (get, "/api/chat/{chatId}/stream", "stream", self._streams.stream),
            (post, "/api/chat/{chatId}/stop", "stop", api.stop),
            (get, "/api/sessions/{sessionId}/chats/{chatId}", "chat", api.chat),
            (get, "/api/chats", "chats", api.chats),
            (get, "/api/chats/{roomId}/messages", "room", api.room),
            (post, "/api/chat/generate", "generate", api.generate),
        ):
            app.router.add_route(method, path, front.route(name, handler))
        control = Control(
            runs=self.runs, faults=self.faults, record=self.stats, keys=self.keys, door=self
        )
        control.add_to(app)
        return app


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    keys: Iterable[str] | Mapping[str, str] = (DEV_KEY,),
    database: Path | str | None = None,
    timing: Timing | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until cancelled; `on_ready` is called with the URL once connections are let in.

    The arguments are those of `DevServer`. Prints nothing. Raises OSError if the port is taken.
    """
    async with DevServer(host=host, port=port, keys=keys, database=database, timing=timing) as dev:
        if on_ready is not None:
            on_ready(dev.url)
        await anyio.sleep_forever()
