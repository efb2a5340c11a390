"""Follow a run's stream over many connections: fold what comes, and checkpoint it.

The stream is a view of the run. It never ends a run; it shows that the run moves, keeps its text
should the stored message be lost, and says when to look at the status.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import anyio
from sqlalchemy import Connection
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from orchestrator.errors import StoreUnavailable
from orchestrator.job import Job
from orchestrator.recoup import BadEvent, EventParser, MessageFold
from orchestrator.recoup.answers import NoStream, Trouble, TroubleKind
from orchestrator.recoup.resume import ResponseReader
from orchestrator.recoup.stream import OpenStream
from orchestrator.store.commit import Joint
from orchestrator.store.verbs import streams
from orchestrator.store.verbs.streams import Place, Saving, Segment
from orchestrator.worker.points import Act
from orchestrator.worker.tools import Tools
from orchestrator.worker.waits import Backoff, retried

AGAIN_S = 0.05
"""The wait before a response that moved is continued: a server that cuts must not make us spin."""

PLACE_AGAIN_S = 15.0
"""How often a run that found all trial places taken asks for one again."""


class Ending(Enum):
    """How one response of the stream ended."""

    FINISHED = "finished"
    """With the run's own `finish`: the turn is complete, there is nothing more to read."""
    CUT = "cut"
    """Clean, and the run goes on: the rest is to be had at once."""
    BROKEN = "broken"
    """The connection was lost."""
    UNREACHED = "unreached"
    """No connection came about, or none that a stream was seen on."""
    NOTHING = "nothing"
    """There is nothing to resume now."""
    REFUSED = "refused"
    """The server did not give a stream; it may later."""
    NO_PLACE = "no_place"
    """All places for trial streams are taken."""
    FOREIGN = "foreign"
    """The chat shows another run: its chunks have other numbers."""
    FORBIDDEN = "forbidden"
    """Leaving a stream cancels runs at this origin: none is opened."""


_LAST = frozenset({Ending.FINISHED, Ending.FOREIGN, Ending.FORBIDDEN})


@dataclass(frozen=True, slots=True)
class Response:
    """One response, read to its end; `moved` tells whether it brought a chunk that counts."""

    ending: Ending
    moved: bool = False
    retry_after: float | None = None


class StreamFollower:
    """Reads one run's stream until its turn is complete.

    `placed` says that the job's row tells of this stream already, with the ids of its run.
    `on_news` is called when a chunk came, `on_ended` at each end of a response. Holds the fold,
    which survives every reconnect; `count` is the index of the next chunk to ask for.
    """

    def __init__(
        self,
        *,
        tools: Tools,
        job: Job,
        placed: bool,
        on_news: Callable[[], None],
        on_ended: Callable[[Ending], None],
    ) -> None:
        self._tools = tools
        self._on_news = on_news
        self._on_ended = on_ended
        self.job = job
        self.fold = MessageFold()
        self.count = 0
        self.attached = False
        """True while a response is open: leaving now may cancel the run."""
        self.draining = False
        """Set from outside: no response is opened any more."""
        self.clocks: Callable[[], dict[str, float]] = _no_clocks
        """Gives the run's clocks, to save with each checkpoint."""
        self.left = False
        """True once a response was lost or left before its end: that may cancel the run."""
        self._placed = placed
        self._opened_once = False
        self.saving = anyio.Lock()
        """Held while chunks are written: of two writes at once, the older could come last and
        undo the newer."""
        self._held: tuple[Any, ...] = ()
        self._unsaved: list[Any] = []
        self._empty = 0
        self._backoff = Backoff(first=0.5, most=30.0, rand=tools.rand)

    async def load(self) -> None:
        """Fold the saved chunks of an earlier follower, so that this one goes on behind them."""
        verb = partial(streams.segments, job_id=self.job.id, attempt=self.job.attempt)
        saved = await self._tools.read(verb, job_id=self.job.id)
        for segment in saved:
            for chunk in segment.chunks:
                self.fold.feed(chunk)
            self.count += len(segment.chunks)
            await anyio.lowlevel.checkpoint()
        if saved:
            self._tools.log.info("stream.resumed", job_id=self.job.id, start_index=self.count)

    async def run(self) -> None:
        """Read response after response until there is nothing more to read.

        Ends also when the job's worker drains. Raises LeaseLost if the job is not ours any more.
        The caller's poll bounds it: a run that is over ends it. The row goes on saying that the
        stream is open until the place is given back, or the job settled.
        """
        await retried(self._retrying, self._respond, over=lambda response: response.ending in _LAST)

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_result(lambda response: response.ending not in _LAST),
            wait=self._wait,
            stop=lambda _state: self.draining,
            sleep=self._tools.clock.sleep,
            retry_error_callback=lambda _state: None,
        )

    def finish(self) -> None:
        """Fold what was held back: the run is over, and nothing more can be had.

        The tool ends that a server makes up for a cancelled run are then the best account.
        """
        for chunk in self._held:
            self.fold.feed(chunk)
        self._held = ()

    def forget_callers(self) -> None:
        """Call nobody any more: who made this and holds it is let go of, with all that was read.

        They would hold each other until the collector of cycles looks, which is seldom.
        """
        self._on_news = self._on_ended = _call_nobody
        self.clocks = _no_clocks

    @property
    def whole(self) -> bool:
        """True if the fold saw the turn from its first chunk to its `finish`, without a fault."""
        return self.fold.finished and self.fold.fatal is None

    # --- one response ---------------------------------------------------------------------

    async def _respond(self) -> Response:
        response = await self._one_response()
        self._on_ended(response.ending)
        return response

    async def _one_response(self) -> Response:
        try:
            refused = await self._take_place()
        except StoreUnavailable as error:
            self._tools.log.warning("stream.no_place", job_id=self.job.id, error=str(error))
            return Response(Ending.NO_PLACE)
        if refused is not None:
            return Response(refused)
        response = await self._read()
        self._empty = 0 if response.moved else self._empty + 1
        self._tools.log.debug(
            "stream.ended", job_id=self.job.id, how=response.ending.value, count=self.count
        )
        return response

    async def _read(self) -> Response:
        self.attached = self.left = self._opened_once = True
        try:
            async with self._opened() as opened:
                match opened:
                    case NoStream():
                        response = Response(Ending.NOTHING)
                    case Trouble():
                        response = _refused(opened)
                    case OpenStream():
                        response = await self._read_body(opened)
                # Not reached when a cancellation ends the reading: then we leave it.
                self.left = response.ending is Ending.BROKEN
        finally:
            self.attached = False
        return response

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[OpenStream | NoStream | Trouble]:
        opening = self._tools.client.stream(self.job.chat_id or "", self.count)
        async with AsyncExitStack() as leaving:
            with self._tools.passing(Act.STREAM):
                opened = await leaving.enter_async_context(opening)
            yield opened

    async def _read_body(self, stream: OpenStream) -> Response:
        run_id = stream.head.run_id
        if run_id is not None and run_id != self.job.run_id:
            self._tools.log.warning("stream.foreign_run", job_id=self.job.id, run_id=run_id)
            async for _ in stream.reads():
                pass  # hanging up could cancel the run of somebody else
            return Response(Ending.FOREIGN)
        reader = ResponseReader(
            own_run=run_id == self.job.run_id,
            turn_open=self.fold.turn_open,
            finished=self.fold.finished,
        )
        parser = EventParser()
        before = self.count
        async for data in stream.reads():
            with self._tools.passing(Act.CHUNKS):
                self._take(reader.feed(parser.feed(data)))
        self._take(reader.feed(parser.close()))
        remainder = reader.close()
        self._held = remainder.held
        moved = self.count > before
        if stream.broken is not None:
            return Response(Ending.BROKEN, moved)
        if remainder.lone_finish:
            return Response(Ending.NOTHING, moved)
        return Response(Ending.FINISHED if self.fold.finished else Ending.CUT, moved)

    def _take(self, chunks: Sequence[Any]) -> None:
        if not chunks:
            return
        fatal_before = self.fold.fatal
        self._held = ()
        for chunk in chunks:
            self.fold.feed(chunk)
            self._unsaved.append(_saveable(chunk))
            self.count += 1
        if self.fold.fatal is not None and fatal_before is None:
            self._tools.log.warning("stream.fold_failed", job_id=self.job.id, index=self.fold.fatal)
        self._on_news()

    def _wait(self, retry_state: RetryCallState) -> float:
        response = retry_state.outcome.result() if retry_state.outcome else None
        if not isinstance(response, Response):
            return AGAIN_S
        if response.ending is Ending.NO_PLACE:
            return PLACE_AGAIN_S * (0.5 + self._tools.rand())
        if response.ending is Ending.CUT and response.moved:
            return AGAIN_S
        return self._backoff.seconds(max(1, self._empty), response.retry_after)

    # --- the place, and what is saved ---------------------------------------------------------

    async def _take_place(self) -> Ending | None:
        """Take a place for the stream; return what stands against it, or None."""
        follow = self._tools.settings.follow
        asks = follow.mode == "auto"
        verb: Callable[[Connection], Place] = Joint(streams.open_each, self.job)
        if self._placed and not (asks and self._opened_once):
            return None
        if asks:
            verb = partial(
                streams.open_if_safe,
                job=self.job,
                api_origin=self._tools.who.api_origin,
                trials=follow.trial_streams,
            )
        had_one, self._placed = self._placed, True  # also if we are cancelled in the middle
        match await self._tools.write(Act.OPEN_STREAM, verb, job_id=self.job.id):
            case Place.FORBIDDEN:
                self._placed = had_one
                return Ending.FORBIDDEN
            case Place.FULL:
                self._placed = had_one
                return Ending.NO_PLACE
            case Place.TAKEN:
                return None

    async def give_place_back(self) -> None:
        """Write down that no stream of the run is open any more. Raises LeaseLost."""
        if not self._placed:
            return
        verb = Joint(streams.close_each, streams.Closing(job=self.job, left=self.left))
        try:
            await self._tools.write(Act.CLOSE_STREAM, verb, job_id=self.job.id)
        except StoreUnavailable as error:
            # The row keeps the place until the job is settled or adopted.
            self._tools.log.warning("stream.place_kept", job_id=self.job.id, error=str(error))
        self._placed = False

    async def save(self) -> None:
        """Append the chunks that are not saved yet. Raises LeaseLost.

        If we crash before this, a successor reads those chunks again from the server.
        """
        async with self.saving:
            saving = self.unsaved()
            if saving is None:
                return
            verb = Joint(streams.checkpoint_each, saving)
            try:
                await self._tools.write(Act.CHECKPOINT, verb, job_id=self.job.id)
            except StoreUnavailable as error:
                self._tools.log.warning("stream.unsaved", job_id=self.job.id, error=str(error))
                return
            self.saved(saving)

    def unsaved(self) -> Saving | None:
        """The chunks that came and are not saved yet, with the run's clocks; None without any."""
        if not self._unsaved:
            return None
        segment = Segment(self.count - len(self._unsaved), tuple(self._unsaved))
        return Saving(job=self.job, segment=segment, **self.clocks())

    def saved(self, saving: Saving) -> None:
        """Forget what was saved."""
        del self._unsaved[: len(saving.segment.chunks)]


def _call_nobody(*_told: object) -> None:
    """What a follower that is done calls."""


def _no_clocks() -> dict[str, float]:
    return {"followed_s": 0.0, "quiet_s": 0.0}


def _refused(trouble: Trouble) -> Response:
    if trouble.kind is TroubleKind.UNREACHABLE:
        return Response(Ending.UNREACHED, retry_after=trouble.retry_after)
    return Response(Ending.REFUSED, retry_after=trouble.retry_after)


def _saveable(chunk: Any) -> Any:
    """A chunk as JSON: an event that was none keeps its place under a type that nobody folds."""
    if isinstance(chunk, BadEvent):
        return {"type": "bad-event", "data": chunk.data, "reason": chunk.reason}
    return chunk
