"""What a plan does to its world: each fault's beginning and end, and a person's deeds."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.errors import NotAllowed, NotFound
from orchestrator.store.verbs import people

from .database import Reach
from .judge import EVERYONE
from .network import Conditions
from .plan import Act, Ambush

if TYPE_CHECKING:
    from .process import Process
    from .world import World


class Acts:
    """Does what a plan says. An act's name is the method's, with spaces."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._paused: list[str] = []
        self._calmed = False
        self.decided: Counter[int] = Counter()
        """How often a person sent each job in doubt again."""

    def do(self, act: Act) -> None:
        """Do one act."""
        world = self._world
        if not act.what.endswith(" ends"):
            world.trace.count(act.what)
        world.trace.add("plan", act.what, **act.detail)
        getattr(self, act.what.replace(" ", "_"))(**act.detail)

    def strike(self, ambush: Ambush, process: Process) -> None:
        """Let an ambush strike a worker."""
        slot = int(process.name.partition(".")[0][1:]) - 1
        if self._calmed or not process.alive:
            return
        self.do(Act(self._world.timeline.now, ambush.what, {"slot": slot}))
        end = "start again" if ambush.what == "crash" else f"{ambush.what} ends"
        act = Act(self._world.timeline.now, end, {"slot": slot})
        self._world.timeline.after(ambush.lasts, partial(self.do, act))

    def calm(self) -> None:
        """End every fault, and want every worker."""
        world = self._world
        self._calmed = True
        for process in world.processes.values():
            self._thaw(process)
            self._reconnect(process)
        world.wanted.update(world.slots)
        self.bad_network_ends()
        world.network.server_up()
        self.slow_database_ends()
        self.database_down_ends()
        world.server.faults.clear()
        for queue in self._paused:
            world.person(partial(people.resume, queue=queue))

    # --- processes ----------------------------------------------------------------------------

    def crash(self, slot: int) -> None:
        self._world.wanted.discard(slot)
        process = self._world.slots[slot]
        if process.alive:
            self._world.kill(process)

    def drain(self, slot: int) -> None:
        self._world.wanted.discard(slot)
        self._world.slots[slot].drain()

    def start_again(self, slot: int) -> None:
        self._world.wanted.add(slot)

    def freeze(self, slot: int) -> None:
        process = self._world.slots[slot]
        process.loop.frozen = True
        self._world.troubled.add(process.name)

    def freeze_ends(self, slot: int) -> None:
        for process in self._of(slot):
            self._thaw(process)

    def _thaw(self, process: Process) -> None:
        process.loop.frozen = False

    def _of(self, slot: int) -> list[Process]:
        prefix = f"w{slot + 1}."
        return [one for name, one in self._world.processes.items() if name.startswith(prefix)]

    # --- the network --------------------------------------------------------------------------

    def api_partition(self, slot: int) -> None:
        process = self._world.slots[slot]
        self._world.troubled.add(process.name)
        self._world.network.cut(process.name)

    def api_partition_ends(self, slot: int) -> None:
        for process in self._of(slot):
            self._world.network.heal(process.name)

    def bad_network(self, **conditions: Any) -> None:
        now = self._world.network.conditions
        for name, value in conditions.items():
            setattr(now, name, value)

    def bad_network_ends(self, **_: Any) -> None:
        up = self._world.network.conditions.up
        self._world.network.conditions = Conditions(up=up)

    # --- the database -------------------------------------------------------------------------

    def database_partition(self, slot: int) -> None:
        process = self._world.slots[slot]
        self._world.troubled.add(process.name)
        self._world.cut.add(process.name)

    def database_partition_ends(self, slot: int) -> None:
        for process in self._of(slot):
            self._world.cut.discard(process.name)

    def _reconnect(self, process: Process) -> None:
        self._world.cut.discard(process.name)
        if self._world.network.is_cut(process.name):
            self._world.network.heal(process.name)

    def database_down(self) -> None:
        self._all_troubled()
        self._world.reach.down = True

    def database_down_ends(self) -> None:
        self._world.reach.down = False

    def shaky_database(self, **chances: float) -> None:
        self._all_troubled()
        for name, chance in chances.items():
            setattr(self._world.reach, name, chance)

    def shaky_database_ends(self, **_: float) -> None:
        self.shaky_database(lost_before=0.0, undone=0.0, lost_after=0.0)

    def slow_database(self) -> None:
        self._world.reach.delay = (0.05, 3.0)

    def slow_database_ends(self) -> None:
        self._world.reach.delay = Reach().delay
        self.shaky_database_ends()

    def clock_jump(self, seconds: float) -> None:
        self._world.database.offset += seconds

    def _all_troubled(self) -> None:
        self._world.troubled.add(EVERYONE)

    # --- the API ------------------------------------------------------------------------------

    def api_down(self) -> None:
        self._all_troubled()
        self._world.network.server_down()

    def api_down_ends(self) -> None:
        self._world.network.server_up()

    def api_fault(self, fault: str, **fields: Any) -> None:
        if fields["seconds"] <= 0:
            return
        if fault not in ("cut", "drop", "no-messages", "missing-step", "lone-finish", "no-stream"):
            self._all_troubled()
        self._world.server.faults.add(fault, **fields)

    # --- people -------------------------------------------------------------------------------

    def cancel(self, job: int) -> None:
        # It may not be enqueued yet, or settled already: then the person is told so.
        with suppress(NotAllowed, NotFound):
            self._world.person(partial(people.cancel, job_id=job))

    def retry(self, job: int) -> None:
        with suppress(NotAllowed, NotFound):
            self._world.person(partial(people.retry, job_id=job))

    def resolve(self, job: int, how: str) -> None:
        """Decide about a job in doubt, knowing the truth where there is one to adopt."""
        orders = [run.order for run in self._world.server.runs]
        started = [order for order in orders if order.prompt.startswith(f"job {job}.")]
        verb = partial(people.give_up, job_id=job)
        if how == "resubmit":
            verb = partial(people.resubmit, job_id=job)
        elif how == "adopt" and started:
            verb = partial(
                people.adopt_run,
                job_id=job,
                run_id=started[-1].run_id,
                chat_id=started[-1].chat_id,
                session_id=started[-1].session_id,
            )
        with suppress(NotAllowed, NotFound):
            self._world.person(verb)
            self.decided[job] += how == "resubmit"

    def pause(self, queue: str) -> None:
        self._paused.append(queue)
        self._world.person(partial(people.pause, queue=queue))
