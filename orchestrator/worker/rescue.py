"""Find dead workers and mend what they left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from orchestrator import decide
from orchestrator.job import Job
from orchestrator.outcome import Outcome
from orchestrator.store.verbs import crew
from orchestrator.store.verbs.crew import Identity, Peer
from orchestrator.worker.lease import Heartbeat
from orchestrator.worker.points import Act
from orchestrator.worker.process import Life, life_of
from orchestrator.worker.tools import Tools


class Rescuer:
    """Declares workers dead and adopts their runs."""

    def __init__(self, *, tools: Tools, heartbeat: Heartbeat, identity: Identity) -> None:
        self._tools = tools
        self._heartbeat = heartbeat
        self._identity = identity
        self._watch = Watch(now=tools.clock.boottime)

    async def is_needed(self) -> bool:
        """Tell in one cheap look whether somebody died, or left jobs that nobody holds."""

        def look(connection: Connection) -> tuple[list[Peer], bool]:
            return crew.peers(connection), crew.anything_abandoned(connection)

        peers, abandoned = await self._tools.store.read(look)
        self._watch.look(peers)
        return abandoned or any(self._is_dead(peer) for peer in peers)

    async def rescue(self) -> tuple[list[Job], list[Job]]:
        """Mend what dead workers left; return the runs that this worker adopted, and the mended.

        Idempotent: every write names lease and state, so two rescuers share the work.
        """
        tools = self._tools
        peers = await tools.store.read(crew.peers)
        self._watch.look(peers)
        dead = [peer for peer in peers if self._is_dead(peer)]
        verb = partial(crew.rescue, who=tools.who, dead=dead, decide=self._decide)
        adopted, mended = await tools.write_alone(Act.RESCUE, verb)
        for job in mended:
            tools.log.warning("job.rescued", job_id=job.id, state=job.state.value, error=job.error)
        for job in adopted:
            tools.log.info("run.adopted", job_id=job.id, run_id=job.run_id)
        return adopted, mended

    def _is_dead(self, peer: Peer) -> bool:
        if peer.identity.worker_id == self._identity.worker_id:
            return False
        match life_of(peer.identity, self._identity):
            case Life.DEAD:
                return True
            case Life.ALIVE:
                # A process that lives but does not beat may be stopped or cut off for good.
                return self._silent_too_long(peer)
            case Life.UNKNOWN:
                return self._silent_too_long(peer)

    def _silent_too_long(self, peer: Peer) -> bool:
        dead_after = self._tools.settings.worker.dead_after
        return self._watch.silent_s(peer) > dead_after and self._heartbeat.may_judge

    def _decide(self, job: Job) -> Outcome | None:
        return decide.after_death(job, self._tools.policy.of(job))


class Watch:
    """How long other workers have been silent, by our own clock.

    The times that they write are the database's, and that clock may be set: an hour forward, and
    all look dead; an hour back, and a dead one looks alive for an hour. So a heartbeat counts
    from when we first saw it, and the value itself is only compared.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._seen: dict[str, tuple[datetime, float]] = {}

    def look(self, peers: Sequence[Peer]) -> None:
        """Take note of the heartbeats as they stand now."""
        seen = {}
        for peer in peers:
            name, beat = peer.identity.worker_id, peer.last_heartbeat_at
            before = self._seen.get(name)
            stands = before is not None and before[0] == beat
            seen[name] = before if before is not None and stands else (beat, self._now())
        self._seen = seen

    def silent_s(self, peer: Peer) -> float:
        """Seconds that we have seen the worker's last heartbeat stand."""
        return self._now() - self._seen[peer.identity.worker_id][1]
