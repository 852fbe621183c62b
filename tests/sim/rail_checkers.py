"""What must hold of a node's memory at every step. Written from docs/memory.md, not from the rail's code."""

from __future__ import annotations

from node.io.hosted import Hosted
from node.rail_events import Budget, Evict, Load, Measured, RailEffect, RailEvent
from node.types import ModelState
from tests.sim.checkers import ViolationError
from tests.sim.rail_world import LOAD_S, SERVICE_S, STOP_S, World

EPSILON_S = 1e-6


class RailChecker:
    def __init__(self, world: World) -> None:
        self._world = world
        self._since: dict[str, tuple[float, int, int]] = {}  # waits since, at which place, after how many overs
        self._overs = 0  # times that the budget or the truth took away what was reserved already
        self._was_over = False
        self.violation: ViolationError | None = None  # the first
        self.longest_wait_s = 0.0
        self.evictions = self.loads = 0
        world.on_rail = self.rail_stepped
        world.loop.after_step = self.turn_over

    def demand(self, holds: bool, what: str) -> None:
        """Notes the first that does not hold. It is raised between two turns of the loop, never inside the code under
        test: there it would be one more fault, of a task whose group then takes no others."""
        if not holds:
            self.violation = self.violation or ViolationError(f"at {self._world.loop.time():.3f} s: {what}")

    def _judge(self) -> None:
        if self.violation is not None:
            raise self.violation

    # After every step of the rail

    def rail_stepped(self, event: RailEvent, effects: list[RailEffect], before: int, now: float) -> None:
        rail = self._world.host.rail
        if not isinstance(event, Budget | Measured):
            fine = rail.used_bytes <= max(rail.budget_bytes, before)
            self.demand(fine, f"{rail.used_bytes} reserved of {rail.budget_bytes}, {before} before")
        if isinstance(event, Budget | Measured) and rail.used_bytes > rail.budget_bytes:  # still: nothing is added
            grown = [e for e in effects if isinstance(e, Load) and self._world.shapes[e.model].guess_bytes]
            self.demand(not grown, f"{grown} while more is reserved than the budget allows")
        over = rail.used_bytes > rail.budget_bytes
        self._overs += over and not self._was_over
        self._was_over = over
        for effect in effects:
            match effect:
                case Evict(model=name):
                    self.evictions += 1
                    self._evicted(name)
                case Load():
                    self.loads += 1
                case _:
                    pass
        self._nobody_starves(now)

    def _evicted(self, name: str) -> None:
        busy = [m for m in self._world.host.everyone() if m.name == name and m.queue.in_flight]
        streams = sum(w.streams for w in self._world.living if w.shape.name == name)
        self.demand(not busy and not streams, f"{name} was evicted while it answered")
        self.demand(not self._world.shapes[name].pinned, f"{name} is pinned and was evicted")

    def _nobody_starves(self, now: float) -> None:
        """docs/memory.md: p x (2 T + R + 2 G + 2 L); each time memory was taken away costs a turn of its own."""
        line, turn_s = self._world.host.rail.line, self._world.settings.turn_s
        if not line:
            self._since.clear()
            return
        place_s = 2 * turn_s + SERVICE_S + 2 * STOP_S + 2 * LOAD_S
        self._since = {name: since for name, since in self._since.items() if name in line}
        for place, name in enumerate(line, start=1):
            since, first_place, overs = self._since.setdefault(name, (now, place, self._overs))
            waited_s = now - since
            self.longest_wait_s = max(self.longest_wait_s, waited_s)
            bound_s = (first_place + self._overs - overs + self._was_over) * place_s
            if waited_s > bound_s + EPSILON_S:
                self.demand(False, f"{name} waits since {since:.3f}, bound {bound_s:.0f} s")

    # After every turn of the loop

    def turn_over(self) -> None:
        self._judge()
        world, now = self._world, self._world.loop.time()
        rail = world.host.rail
        living = {w.shape.name for w in world.living}
        if len(living) < len(world.living):
            self.demand(False, f"two workers of one model: {living}")
        if not all(rail._models[name].reserved for name in living):
            self.demand(False, f"nothing is reserved for one of {living}")
        self.demand(len(world.starting) <= 1, "two models load at once")
        self._nobody_starves(now)
        for model in world.host.everyone():
            queue = model.queue
            if queue.in_flight + queue.queue_depth != len(model.calls):
                self.demand(False, f"a call of {model.name} is lost, or counted twice")
            if queue.queue_depth:
                self._waiting(model, now)
        self._judge()

    def _waiting(self, model: Hosted, now: float) -> None:
        """Its calls that have no slot: each for a reason, and with a bound."""
        world, state = self._world, model.lifecycle.state
        ready = state is ModelState.READY
        if ready and not world.host.rail.yields(model.name) and model.queue.in_flight < model.queue.slots:
            self.demand(False, f"{model.name} has a free slot, and a call waits")
        late_s = world.settings.alive_every_s + EPSILON_S  # a bound that comes sooner is seen then
        for call in model.calls.values():
            if call.started_at is not None:
                continue
            if now > (call.deadline if call.hold_until is None else call.hold_until) + late_s:
                self.demand(False, f"{call.key} is held past its bound")
            if call.hold_until is None and not ready and state is not ModelState.FAILED and call._error is None:
                self.demand(False, f"{call.key} has no bound")

    def at_the_end(self) -> None:
        world = self._world
        self.demand(not any(m.calls for m in world.host.everyone()), "calls are left")
        self.demand(world.host.rail.used_bytes == 0, f"{world.host.rail.used_bytes} bytes are still reserved")
        self.demand(world.host.rail.line == (), f"{world.host.rail.line} still wait")
        self.demand(not world.living, "a worker is left")
        self.demand(not world.starting, "a worker still starts")
        self._judge()
