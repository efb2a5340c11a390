"""The worker as a process: start, signals, systemd, exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskStatus

from orchestrator.clock import Clock, SystemClock
from orchestrator.config import Settings, fingerprint
from orchestrator.remote import client_for
from orchestrator.states import State
from orchestrator.store import migrations
from orchestrator.store.engine import parse_url
from orchestrator.store.store import Store
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.version import __version__
from orchestrator.worker.garbage import seldom_collected
from orchestrator.worker.notify import Notifier
from orchestrator.worker.points import Reach, pass_by
from orchestrator.worker.process import identify
from orchestrator.worker.tools import Tools
from orchestrator.worker.worker import Ended, Worker

EXIT_OK = 0
EXIT_SOME_NOT_COMPLETED = 3
EXIT_TRY_LATER = 75


@dataclass(frozen=True, slots=True)
class Run:
    """How a daemon runs: until signalled, or `once`; `max_jobs` bounds what it takes."""

    once: bool = False
    max_jobs: int | None = None


async def run_daemon(
    settings: Settings,
    run: Run,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Clock | None = None,
    reach: Reach = pass_by,
) -> int:
    """Run a worker in this process until it ends, and return the exit code.

    Raises ConfigError, SchemaMismatch and StoreUnavailable before any work is begun.
    """
    log = structlog.get_logger("orchestrator.worker")
    notifier = Notifier(environ)
    url = parse_url(settings.database.url)
    listen_url = parse_url(settings.database.listen_url) if settings.database.listen_url else None
    await anyio.to_thread.run_sync(migrations.upgrade_sqlite, url)
    identity = identify(__version__)
    key = settings.api.key_source(environ).read_key()
    who = Claimant(
        identity.worker_id, settings.api.base_url, fingerprint(key), settings.worker.queues
    )
    async with (
        # Where the operator names a way past a pooler, there is one.
        Store.open(url, listen_url=listen_url, prepared=listen_url is None) as store,
        client_for(settings, environ) as client,
    ):
        tools = Tools(
            store=store,
            client=client,
            settings=settings,
            clock=clock or SystemClock(),
            who=who,
            log=log,
            reach=reach,
        )
        worker = Worker(
            tools=tools,
            identity=identity,
            once=run.once,
            max_jobs=run.max_jobs,
            on_tick=lambda worker: _tell(notifier, worker),
            abort=_leave_at_once,
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(_obey_signals, worker, notifier, log)
            notifier.ready()
            with seldom_collected():
                ended = await worker.run()
            tasks.cancel_scope.cancel()
    return exit_code(ended, worker)


def exit_code(ended: Ended, worker: Worker) -> int:
    """0 after a drain; with `once`, 3 if a handled job did not complete, 75 at a closed gate."""
    if ended is Ended.GATE_SHUT:
        return EXIT_TRY_LATER
    if ended is Ended.NOTHING_DUE and not worker.tally.all_completed:
        return EXIT_SOME_NOT_COMPLETED
    return EXIT_OK


def _tell(notifier: Notifier, worker: Worker) -> None:
    """Feed the watchdog from the loop whose death must be noticed, and say how it goes."""
    notifier.watchdog()
    notifier.status(
        f"{len(worker.holdings.live)} runs live, {len(worker.holdings.submitting)} submitting, "
        f"{worker.tally.number(State.COMPLETED)} completed, "
        f"{worker.tally.number(State.FAILED)} failed, "
        f"{worker.tally.number(State.IN_DOUBT)} in doubt"
    )


async def _obey_signals(
    worker: Worker,
    notifier: Notifier,
    log: structlog.typing.FilteringBoundLogger,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Drain at the first SIGTERM or SIGINT; leave at once at the second, with 128 + n."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        count = 0
        async for number in signals:
            count += 1
            if count > 1:
                log.error("worker.killed", signal=number.name)
                _leave_at_once(128 + number)
            log.info("worker.asked_to_stop", signal=number.name)
            notifier.stopping()
            worker.drain()


def _leave_at_once(code: int = EXIT_OK) -> None:
    """End the process without cleaning up: the database is as safe as after a crash."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
