"""One job's life at the API, with the client that the worker uses and without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.harvest import ours
from orchestrator.recoup import EventParser, MessageFold
from orchestrator.recoup.answers import Accepted, RunState, RunStatus, SessionChat
from orchestrator.recoup.client import RecoupClient
from orchestrator.recoup.resume import ResponseReader
from orchestrator.recoup.stream import OpenStream

AGAIN_S = 1.0
"""The wait before another look at a run that is not over: the worker's `poll_min`."""

_CALL_S = 60.0


class LifeFailedError(Exception):
    """The API answered what no run of this benchmark should see."""


@dataclass(frozen=True, slots=True)
class Life:
    """What one job came to: its ids and its message."""

    run_id: str
    chat_id: str
    session_id: str
    message: Mapping[str, Any]


def prompt(number: int) -> str:
    """The prompt of a job, the same in every benchmark."""
    return f"Benchmark prompt {number}"


async def sent_at_once() -> bool:
    """A mark that costs nothing."""
    return True


async def saved_nowhere(_accepted: Accepted) -> None:
    """Ids that nobody keeps."""


@asynccontextmanager
async def client_of(base_url: str, concurrency: int) -> AsyncIterator[RecoupClient]:
    """Open the worker's client, with connections for `concurrency` jobs."""
    async with RecoupClient(
        base_url=base_url,
        key=lambda: "recoup_sk_benchmark",
        submit_timeout=_CALL_S,
        call_timeout=_CALL_S,
        stream_idle_timeout=_CALL_S,
        max_calls=max(64, concurrency),
        max_streams=4 * concurrency,
    ) as client:
        yield client


async def live(
    client: RecoupClient,
    text: str,
    save_ids: Callable[[Accepted], Awaitable[None]] = saved_nowhere,
) -> Life:
    """Submit, save the ids, read the stream to its end, look at the status, collect.

    Raises LifeFailedError if the run does not complete or the stored message is not the fold.
    """
    accepted = await client.start_run({"prompt": text}, mark=sent_at_once)
    if not isinstance(accepted, Accepted) or not accepted.chat_id or not accepted.session_id:
        raise LifeFailedError(f"not accepted: {accepted}")
    await save_ids(accepted)
    fold = await _folded(client, accepted.chat_id, accepted.run_id)
    await _completed(client, accepted.run_id)
    chat = await client.session_chat(accepted.session_id, accepted.chat_id)
    if not isinstance(chat, SessionChat):
        raise LifeFailedError(f"not collected: {chat}")
    message = ours(chat.messages, fold.message_id)
    if message is None or message != fold.message:
        raise LifeFailedError(f"stored is {message}, folded {fold.message}")
    return Life(accepted.run_id, accepted.chat_id, accepted.session_id, message)


async def _folded(client: RecoupClient, chat_id: str, run_id: str) -> MessageFold:
    fold = MessageFold()
    async with client.stream(chat_id, 0) as opened:
        if not isinstance(opened, OpenStream):
            raise LifeFailedError(f"no stream: {opened}")
        reader = ResponseReader(own_run=opened.head.run_id == run_id, turn_open=False)
        parser = EventParser()
        async for data in opened.reads():
            for chunk in reader.feed(parser.feed(data)):
                fold.feed(chunk)
        if opened.broken is not None or not fold.finished:
            raise LifeFailedError(f"the stream ended early: {opened.broken}")
    return fold


async def _completed(client: RecoupClient, run_id: str) -> None:
    while True:
        state = await client.run_status(run_id)
        if not isinstance(state, RunState):
            raise LifeFailedError(f"no status: {state}")
        if state.status.terminal:
            break
        await asyncio.sleep(AGAIN_S)
    if state.status is not RunStatus.COMPLETED:
        raise LifeFailedError(f"the run is {state.status}")
