"""Help a person to resolve a job in doubt: which chats may hold its run, and adopting one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import NotAllowed, NotFound, StoreUnavailable
from orchestrator.harvest import Folded, harvest
from orchestrator.job import Job
from orchestrator.recoup.answers import ChatListing, Trouble
from orchestrator.states import State
from orchestrator.store.store import Store
from orchestrator.store.verbs import look, people
from orchestrator.verdict import after_adoption

if TYPE_CHECKING:
    from orchestrator.recoup.client import RecoupClient

TITLE = "Scheduled generation"
"""The service's title of a chat that a run made."""

SLACK = timedelta(minutes=2)
"""How far the server's clock and ours may be apart."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chat that may hold the run. `active_run_id` is the run's id while it goes on."""

    chat_id: str
    session_id: str
    title: str | None
    updated_at: str | None
    active_run_id: str | None
    text: str
    """The start of what the chat's first assistant message says."""


async def candidates(store: Store, client: RecoupClient, job: Job) -> list[Candidate]:
    """Return the chats of no known job that were updated since the job's request went out.

    The prompt is not stored, so this is a guess that a person must make; a chat shows up only
    after its first model call. Raises NotAllowed and StoreUnavailable (the API is out of reach).
    """
    if job.state is not State.IN_DOUBT or job.sent_at is None:
        raise NotAllowed(f"job {job.id} is {job.state.value}, not in doubt")
    listed = await client.chats()
    if isinstance(listed, Trouble):
        raise StoreUnavailable(f"the list of chats cannot be had now: {listed.error}")
    known = await store.read(look.known_chats, [chat.chat_id for chat in listed])
    since = job.sent_at - SLACK
    fitting = [
        chat for chat in listed if chat.chat_id not in known and _fits(chat, since, job.artist_id)
    ]
    return [found for chat in fitting if (found := await _look_into(client, chat)) is not None]


def _fits(chat: ChatListing, since: datetime, artist_id: str | None) -> bool:
    if chat.session_id is None or chat.title != TITLE:
        return False
    if artist_id is not None and chat.artist_id not in (None, artist_id):
        return False
    try:
        updated = datetime.fromisoformat(chat.updated_at or "")
    except ValueError:
        return True  # no readable time: a person can still judge by the text
    return updated.tzinfo is None or updated >= since


async def _look_into(client: RecoupClient, listing: ChatListing) -> Candidate | None:
    chat = await client.session_chat(listing.session_id or "", listing.chat_id)
    if isinstance(chat, Trouble):
        return None
    first = harvest(chat, None, Folded()).kept
    return Candidate(
        chat_id=chat.chat_id,
        session_id=chat.session_id,
        title=listing.title,
        updated_at=listing.updated_at,
        active_run_id=chat.active_stream_id,
        text=first[0].text[:200] if first else "",
    )


async def adopt(
    store: Store, client: RecoupClient, job_id: int, chat_id: str, accept: frozenset[str]
) -> Job:
    """Give a job in doubt the run of a chat.

    A run that goes on is `running` then, for a worker to follow; one that is over is settled at
    once from the chat's messages. Raises NotFound for a chat that the account does not have.
    """
    listed = await client.chats()
    if isinstance(listed, Trouble):
        raise StoreUnavailable(f"the list of chats cannot be had now: {listed.error}")
    session_id = next((chat.session_id for chat in listed if chat.chat_id == chat_id), None)
    if session_id is None:
        raise NotFound(f"the account has no chat {chat_id} with a message yet")
    if await store.read(look.known_chats, [chat_id]):
        raise NotAllowed(f"chat {chat_id} belongs to another job already")
    chat = await client.session_chat(session_id, chat_id)
    if isinstance(chat, Trouble):
        raise StoreUnavailable(f"chat {chat_id} cannot be read now: {chat.error}")
    if chat.active_stream_id is not None:
        verb = partial(
            people.adopt_run,
            job_id=job_id,
            run_id=chat.active_stream_id,
            chat_id=chat_id,
            session_id=session_id,
        )
        return await store.write(verb)
    found = harvest(chat, None, Folded())
    settle = partial(
        people.adopt_ended,
        job_id=job_id,
        outcome=after_adoption(found.collected, accept),
        kept=found.kept,
        chat_id=chat_id,
        session_id=session_id,
    )
    return await store.write(settle)
