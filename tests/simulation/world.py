"""The simulated world of one seed: it is set up, lived through, and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from sqlalchemy import Connection

from orchestrator.config import Settings, load_settings
from orchestrator.recoup.transport import tls_context
from orchestrator.request import job_values
from orchestrator.store.verbs import people
from orchestrator.store.verbs.claimant import Claimant
from orchestrator.store.verbs.enqueue import enqueue_many
from orchestrator.worker.tools import Tools

from .acts import Acts
from .database import Database, Reach, SimStore
from .judge import Judge
from .network import Network
from .plan import Plan
from .process import ORIGIN, Client, Process, SimClock, SimLog
from .server import SimServer
from .timeline import Loop, Stuck, Timeline, repeatable
from .trace import Trace
from .watch import PERSON, Watch

LINGER_S = 5.0
"""How long the world goes on when all is settled: late writers have their chance."""

SUPERVISED_EVERY_S = 5.0
"""How often a worker's process that has ended is started again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a seed showed; `broken` is empty when every promise held."""

    seed: int
    broken: tuple[str, ...]
    virtual_s: float
    counts: Counter[str]
    states: Counter[str]
    trace: Trace


class Laboratory:
    """What all simulations of a process share, for it is slow to make."""

    def __init__(self) -> None:
        self.database = Database()
        self.tls = tls_context()
        self._settings: dict[str, Settings] = {}

    def settings(self, sections: dict[str, dict[str, Any]]) -> Settings:
        """Settings of a plan."""
        name = repr(sections)
        if name not in self._settings:
            self._settings[name] = load_settings(environ={}, overrides=sections)
        return self._settings[name]

    def run(self, plan: Plan) -> Verdict:
        """Live through a plan and judge it."""
        with repeatable():
            world = World(plan, self)
            try:
                broken = world.live()
            finally:
                world.bury()
        return Verdict(
            seed=plan.seed,
            broken=tuple(broken),
            virtual_s=world.timeline.now,
            counts=world.trace.counts,
            states=Counter(world.watch.states.values()),
            trace=world.trace,
        )


class World:
    """One plan's world."""

    def __init__(self, plan: Plan, laboratory: Laboratory) -> None:
        seed = plan.seed
        self.timeline = Timeline(Random(f"timeline {seed}"))
        self.trace = Trace(lambda: self.timeline.now)
        self.processes: dict[str, Process] = {}
        self.slots: dict[int, Process] = {}
        self.wanted: set[int] = set()
        self.troubled: set[str] = set()
        self.reach = Reach()
        self.cut: set[str] = set()
        self.database = laboratory.database
        self._plan = plan
        self._settings = laboratory.settings(plan.settings)
        self._tls = laboratory.tls
        self.database.empty(lambda: self.timeline.now)
        self._done = False
        self._moments: Counter[str] = Counter()
        self.watch = Watch(
            database=self.database,
            timeline=self.timeline,
            trace=self.trace,
            dead_after=self._settings.worker.dead_after,
            on_moment=self._moment,
        )
        self.network = Network(
            timeline=self.timeline,
            random=Random(f"network {seed}"),
            trace=self.trace,
            observer=self.watch,
        )
        self._server_loop = Loop(self.timeline, "api")
        self.server = SimServer(timeline=self.timeline, seed=seed)
        self.acts = Acts(self)

    # --- from the beginning to the end --------------------------------------------------------

    def live(self) -> list[str]:
        """Live through the plan, and return what was wrong."""
        started = self._server_loop.begin(self.server.start())
        self.timeline.run(started.done, bound=1.0)
        self.network.serve(self._server_loop, self.server.protocols)
        for queue, most in self._plan.limits.items():
            self.person(partial(people.limit_queue, queue=queue, concurrency=most))
        self.watch.limits = dict(self._plan.limits)
        for job in self._plan.jobs:
            self.timeline.after(job.at, partial(self._enqueue, job.options))
        for act in self._plan.acts:
            self.timeline.after(act.at, partial(self.acts.do, act))
        self.timeline.after(self._plan.calm_at, self._calm)
        self.wanted = set(range(self._plan.workers))
        self._supervise()
        try:
            self.timeline.run(self._ended, bound=self._plan.calm_at + self._plan.settled_by_s)
        except Stuck as stuck:
            return [*self.watch.found, str(stuck)]
        return [*self.watch.found, *self._faults(), *self._judged()]

    def _ended(self) -> bool:
        return self._done or bool(self.watch.found)

    def _judged(self) -> list[str]:
        if self.watch.found:
            return []
        judge = Judge(
            plan=self._plan,
            database=self.database,
            server=self.server,
            watch=self.watch,
            troubled=self.troubled,
            decided=self.acts.decided,
            killed={name for name, process in self.processes.items() if process.loop.dead},
        )
        return list(judge.findings())

    def _faults(self) -> list[str]:
        found = [
            f"{process.name} ended by {process.fault}"
            for process in self.processes.values()
            if process.fault is not None
        ]
        for loop in self.timeline.loops:
            found += [f"in {loop.name}: {fault}" for fault in loop.faults]
        return found

    def bury(self) -> None:
        """Let go of all that the world held; nothing of it can change anything any more."""
        self.reach.down = True
        self.network.observer = _Blind()
        for loop in self.timeline.loops:
            loop.bury()
        self.server.stop()

    # --- processes ----------------------------------------------------------------------------

    def _supervise(self) -> None:
        """Start every process that should run and does not, now and from now on."""
        for slot in sorted(self.wanted):
            process = self.slots.get(slot)
            if process is None or not process.alive:
                self._start(slot)
        self._check_end()
        self.timeline.after(SUPERVISED_EVERY_S, self._supervise)

    def _start(self, slot: int) -> None:
        name = f"w{slot + 1}.{sum(name.startswith(f'w{slot + 1}.') for name in self.processes) + 1}"
        process = self._make(name)
        self.processes[name] = self.slots[slot] = process
        self.trace.add(name, "starts")
        self.watch.begins(name)
        process.loop.begin(process.main())

    def _make(self, name: str) -> Process:
        loop = Loop(self.timeline, name)
        random = Random(f"process {name} {self._plan.seed}")
        client = Client(network=self.network, process=loop, settings=self._settings, tls=self._tls)
        store = SimStore(
            database=self.database,
            reach=self.reach,
            cut=self.cut,
            process=loop,
            apart=self._plan.apart,
            random=Random(f"store {name} {self._plan.seed}"),
            trace=self.trace,
            on_commit=self._committed,
        )
        tools = Tools(
            store=store,
            client=client,
            settings=self._settings,
            clock=SimClock(self.timeline, random.uniform(10.0, 1e6)),
            who=Claimant(name, ORIGIN, "key"),
            log=SimLog(self.trace, name, self.watch),  # type: ignore[arg-type] # what of it the worker uses
            rand=random.random,
        )
        return Process(name=name, loop=loop, tools=tools, client=client, on_abort=self._abort)

    def _abort(self, name: str) -> None:
        self.trace.count("abort")
        self.kill(self.processes[name])

    def kill(self, process: Process) -> None:
        self.trace.add(process.name, "dies")
        self.troubled.add(process.name)
        process.loop.dead = True
        self.network.crash(process.name)

    # --- the database -------------------------------------------------------------------------

    def _committed(self, who: str) -> None:
        self.watch.committed(who)
        self._check_end()

    def _check_end(self) -> None:
        if self.timeline.now < self._plan.calm_at or not self.watch.settled():
            return
        if not any(process.submitting for process in self.processes.values()):
            self.timeline.after(LINGER_S, self._end)

    def _end(self) -> None:
        self._done = self.watch.settled()

    def person(self, verb: Callable[[Connection], Any]) -> Any:
        result = self.database.write(verb)
        self.watch.committed(PERSON)
        return result

    def _enqueue(self, options: dict[str, Any]) -> None:
        (made,) = self.person(partial(enqueue_many, rows=[job_values(options)]))
        self.watch.states[made.id] = "queued"
        self.trace.add(PERSON, "enqueues", id=made.id, **options)

    # --- what the plan says -------------------------------------------------------------------

    def _moment(self, what: str, who: str) -> None:
        """Let the ambushes strike that waited for what a worker has just done."""
        process = self.processes.get(who)
        if process is None or self.timeline.now >= self._plan.calm_at:
            return
        self._moments[what] += 1
        for ambush in self._plan.ambushes:
            if (ambush.moment, ambush.number) == (what, self._moments[what]):
                self.timeline.after(ambush.delay, partial(self.acts.strike, ambush, process))

    def _calm(self) -> None:
        """End every fault, and want every worker."""
        self.trace.add("plan", "calm")
        self.acts.calm()
        self._check_end()


class _Blind:
    """Looks at nothing: the world is over."""

    def sends(self, process: str, connection: int, data: bytes) -> None:
        """Nothing."""

    def broke(self, connection: int, how: str) -> None:
        """Nothing."""
