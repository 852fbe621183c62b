"""Any sequence of faults, chosen and shrunk by Hypothesis: every checker looks after every step, and once all is mended
one coordinator is agreed on. The same world as the seeds' (world.py, faults.py)."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.sim import faults
from tests.sim.checkers import all_checkers
from tests.sim.net import BAD_WIFI, WIFI, WIRED, Net
from tests.sim.node import Node
from tests.sim.runs import AGREE_S, FAR_AGREE_S
from tests.sim.world import World

Act = Callable[[World, Node], None]
ActFor = Callable[[World, Node, float], None]
which = st.integers(0, 4)


class Faults(RuleBasedStateMachine):
    """Rules are faults, and letting time pass."""

    @initialize(
        seed=st.integers(0, 99),
        priorities=st.lists(st.sampled_from((100, 200, 0)), min_size=2, max_size=5).filter(any),
        net=st.sampled_from((WIRED, WIFI, BAD_WIFI)),
        split_at=st.integers(0, 8),
    )
    def begin(self, seed: int, priorities: list[int], net: Net, split_at: int) -> None:
        sites = [int(i >= split_at) for i in range(len(priorities))]
        sites = sites if 0 < split_at < len(priorities) else []
        self.limit_s = FAR_AGREE_S if sites else AGREE_S
        self.world = World(seed, priorities, net=net, sites=sites, checkers=all_checkers())
        self.world.run(1.0)

    def node(self, number: int) -> Node:
        nodes = list(self.world.nodes.values())
        return nodes[number % len(nodes)]

    @rule(seconds=st.floats(0.01, 5.0))
    def let_time_pass(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    @rule(number=which, act=st.sampled_from((faults.kill, faults.power, faults.bye, faults.cut, faults.mute)))
    def lose(self, number: int, act: Act) -> None:
        node = self.node(number)
        if node.up:
            act(self.world, node)

    @rule(number=which, act=st.sampled_from((faults.restart, faults.forget)))
    def start(self, number: int, act: Act) -> None:
        act(self.world, self.node(number))

    @rule(number=which, seconds=st.floats(0.1, 12.0), act=st.sampled_from((faults.stall, faults.sleep)))
    def stand_still(self, number: int, seconds: float, act: ActFor) -> None:
        node = self.node(number)
        if node.up:
            act(self.world, node, seconds)

    @rule(inside=st.sets(which))
    def split(self, inside: set[int]) -> None:
        faults.split(self.world, {self.node(number).name for number in inside})

    @rule(a=which, b=which)
    def one_way(self, a: int, b: int) -> None:
        faults.one_way(self.world, self.node(a).name, self.node(b).name)

    @rule(number=which, seconds=st.floats(0.05, 1.0))
    def deaf(self, number: int, seconds: float) -> None:
        faults.deaf(self.world, self.node(number), seconds)

    @rule()
    def heal(self) -> None:
        faults.heal(self.world)

    @rule(number=which, priority=st.sampled_from((0, 100, 200)))
    def retune(self, number: int, priority: int) -> None:
        node = self.node(number)
        if node.up:
            faults.retune(self.world, node, priority)

    @rule(number=which)
    def move(self, number: int) -> None:
        node = self.node(number)
        if node.up:
            faults.move(self.world, node)

    @rule(number=which)
    def clone(self, number: int) -> None:
        if not any(name.endswith("'") for name in self.world.nodes):
            faults.clone(self.world, self.node(number))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        faults.mend(world)
        world.run(world.now + self.limit_s)
        if any(n.priority > 0 for n in world.nodes.values()):
            state = {n.name: (n.election.coordinator, n.election.role, n.election.term) for n in world.nodes.values()}
            assert world.agreed() is not None, state


Faults.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFaults = Faults.TestCase
