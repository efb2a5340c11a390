"""Find the chat of a run whose 202 broke, so that only the run's id is known.

While a run goes on its chat's `activeStreamId` is the run's id: the match is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from tenacity import AsyncRetrying, retry_if_result, stop_never

from orchestrator.job import Job
from orchestrator.recoup.answers import ChatListing, SessionChat, Trouble
from orchestrator.store.verbs import look
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff

LOOK_AT_MOST = 20
"""Chats that one round looks into: the newest that belong to no job."""


async def find_chat(tools: Tools, job: Job) -> SessionChat:
    """Look for the run's chat until it is found.

    A chat shows up after its first model call, so this may take minutes; the caller's poll of the
    run's status bounds it.
    """
    retrying = AsyncRetrying(
        retry=retry_if_result(lambda chat: chat is None),
        wait=Backoff(first=0.5, most=30.0, rand=tools.rand),
        stop=stop_never,
        sleep=tools.clock.sleep,
    )
    return cast(SessionChat, await retrying(_look_once, tools, job))


async def _look_once(tools: Tools, job: Job) -> SessionChat | None:
    for listing in await _unknown_chats(tools, job.id):
        if listing.session_id is None:
            continue
        with tools.passing(Act.FIND_CHAT):
            chat = await tools.client.session_chat(listing.session_id, listing.chat_id)
        if isinstance(chat, SessionChat) and chat.active_stream_id == job.run_id:
            return chat
    return None


async def _unknown_chats(tools: Tools, job_id: int) -> Sequence[ChatListing]:
    """The account's newest chats that belong to no job; none where the list cannot be had."""
    listed = await tools.client.chats()
    if isinstance(listed, Trouble):
        tools.log.warning("chats.unlisted", error=listed.error)
        return ()
    verb = partial(look.known_chats, chat_ids=[chat.chat_id for chat in listed])
    known = await tools.read(verb, job_id=job_id)
    return [chat for chat in listed if chat.chat_id not in known][:LOOK_AT_MOST]
