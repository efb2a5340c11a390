"""Save what streams bring, for all runs of a worker: one write for many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, islice

from orchestrator.errors import StoreUnavailable
from orchestrator.store.verbs import streams
from orchestrator.store.verbs.streams import Saving
from orchestrator.worker.points import Act
from orchestrator.worker.stream import StreamFollower
from orchestrator.worker.tools import Tools

SHARES = 5
"""In how many turns of `checkpoint_every` the streams are saved: a share of them each time."""

AT_ONCE = 200
"""Streams whose chunks are saved by one write at most: other writes get their turn between two."""


class Saver:
    """Checkpoints every stream that is read once in `checkpoint_every`."""

    def __init__(self, *, tools: Tools) -> None:
        self._tools = tools
        self._streams: dict[StreamFollower, Callable[[Exception], None]] = {}

    @contextmanager
    def saving(
        self, stream: StreamFollower, *, on_failure: Callable[[Exception], None]
    ) -> Iterator[None]:
        """Save the chunks of a stream while the block runs.

        `on_failure` is told of a LeaseLost, and of chunks that the database refuses. What comes
        last is the follower's own to save.
        """
        self._streams[stream] = on_failure
        try:
            yield
        finally:
            del self._streams[stream]

    async def run(self) -> None:
        """Save share after share, until cancelled. A database that is away is tried again."""
        for turn in count():
            await self._tools.clock.sleep(self._tools.settings.follow.checkpoint_every / SHARES)
            await self._save(turn % SHARES)

    async def _save(self, share: int) -> None:
        due = (
            (stream, saving)
            for stream in tuple(self._streams)
            if stream.job.id % SHARES == share
            and not stream.saving.locked()
            and (saving := stream.unsaved()) is not None
        )
        while some := dict(islice(due, AT_ONCE)):
            if await self._save_together(some):
                continue
            for stream in some:
                if stream in self._streams:  # or its follower has saved it, or let go
                    await self._save_alone(stream)

    async def _save_together(self, some: Mapping[StreamFollower, Saving]) -> bool:
        """Save these at once; False if that was refused, so that each must be tried alone."""
        verb = partial(streams.checkpoint_each, savings=tuple(some.values()))
        with ExitStack() as held:
            for stream in some:
                stream.saving.acquire_nowait()
                held.callback(stream.saving.release)
            try:
                await self._tools.write(Act.CHECKPOINT, verb, job_id=min(s.job.id for s in some))
            except StoreUnavailable as error:
                self._tools.log.warning("stream.unsaved", streams=len(some), error=str(error))
            except Exception as error:  # noqa: BLE001 - it is raised where it belongs, one stream's
                self._tools.log.debug("stream.saved_alone", streams=len(some), error=str(error))
                return False
            else:
                for stream, saving in some.items():
                    stream.saved(saving)
        return True

    async def _save_alone(self, stream: StreamFollower) -> None:
        try:
            await stream.save()
        except Exception as error:  # noqa: BLE001 - its follower raises it
            self._tools.log.debug("stream.refused", job_id=stream.job.id, error=str(error))
            if (on_failure := self._streams.get(stream)) is not None:
                on_failure(error)
