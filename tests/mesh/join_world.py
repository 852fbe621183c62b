"""Nodes that found and join, with the production machines under a virtual clock and a network that is late and loses.

Only what carries is made here: sights and calls take time, and may be lost. A mesh is its id; who is a member of it is
a set that all share, as records that have spread.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from mesh.checks import Seen
from mesh.door import Caller, Door, Let, Members
from mesh.joining import Ask, Call, Home, Hurry, Joining, Outcome, Settle, Sight, Tick
from node.types import NodeId

SAY_EVERY_S = 1.0


@dataclass
class World:
    """`loss` of each sight and each call, 0 to 1; `delay_s` at most."""

    rng: Random
    loss: float = 0.0
    delay_s: float = 0.3
    now: float = 0.0
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    members: dict[str, dict[NodeId, bytes]] = field(default_factory=dict)
    removed: dict[str, dict[NodeId, bytes]] = field(default_factory=dict)
    founded: list[str] = field(default_factory=list)
    joins: list[tuple[float, NodeId, str, str]] = field(default_factory=list)  # when, who, which mesh, how
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._count), what))

    def later(self, what: Callable[[], None]) -> None:
        self.at(self.now + self.rng.uniform(0.001, self.delay_s), what)

    def start(self, name: str, when: float) -> None:
        self.at(when, lambda: Node(self, NodeId(f"{self.rng.getrandbits(64):016x}"), name).begin())

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, what = heapq.heappop(self._heap)
            what()
        self.now = until

    def meshes(self) -> set[str]:
        """That nodes live in."""
        return {node.home.mesh for node in self.nodes.values()}

    def door(self, mesh: str) -> Door:
        """As any member there has it: they tell each other at once."""
        return next(n.door for n in self.nodes.values() if n.home.mesh == mesh)


class Node:
    def __init__(self, world: World, id_: NodeId, name: str) -> None:
        self.world, self.id, self.name, self.cert = world, id_, name, id_.encode()
        world.nodes[id_] = self
        mesh = f"{world.rng.getrandbits(64):016x}"
        world.founded.append(mesh)
        world.members[mesh], world.removed[mesh] = {id_: self.cert}, {}
        self.door = Door(mesh)
        self.door.found(world.now)
        self.home = Home(mesh=mesh)
        self.joining = Joining(self.home, world.rng, world.now)

    def begin(self) -> None:
        self.say()
        self.tell(Tick())

    def tell(self, event: Home | Sight | Call | Hurry | Tick) -> None:
        now = self.world.now
        for effect in self.joining.step(event, now):
            match effect:
                case Ask(sight):
                    self.world.later(partial(self.world.nodes[sight.node].asked, self, sight))
                case Settle():
                    pass
        due = self.joining.deadline
        if due is not None:
            self.world.at(max(due, now + 0.001), lambda: self.wake(due))

    def wake(self, due: float) -> None:
        if self.joining.deadline == due:
            self.tell(Tick())

    def present(self, mesh: str) -> Home:
        removed = self.id not in self.world.members[mesh]
        return Home(
            mesh=mesh, others=len(self.world.members[mesh].keys() - {self.id}), removed=removed, kept=self.door.kept,
            open=self.door.left_s(self.world.now) > 0,
        )  # fmt: skip

    def look_at_home(self) -> None:
        """What the shell tells the machine of its mesh, whenever it may be another."""
        home = self.present(self.home.mesh)
        if home != self.home:
            self.home = home
            self.tell(home)

    def say(self) -> None:
        """mDNS: what this node is, to all, again and again; packets are lost."""
        self.look_at_home()
        sight = Sight(node=self.id, name=self.name, mesh=self.home.mesh, stance=self.joining.stance)
        for other in list(self.world.nodes.values()):
            if other is not self and self.world.rng.random() >= self.world.loss:
                self.world.later(partial(other.tell, sight))
        self.world.at(self.world.now + SAY_EVERY_S, self.say)

    def asked(self, caller: Node, sight: Sight) -> None:
        world = self.world

        def answer(outcome: Outcome, door: Door | None = None) -> None:
            if world.rng.random() >= world.loss:
                world.later(lambda: caller.answered(self, outcome, door))

        if world.rng.random() < world.loss:
            return
        self.look_at_home()
        members = world.members[self.home.mesh]
        if self.joining.calling or self.joining.stance == "out":
            answer("busy" if self.joining.calling else "refused")
            return
        seen = Seen(caller.cert, self.cert, world.rng.randbytes(32), world.rng.randbytes(32))
        call = Caller(node=caller.id, name=caller.name, cert=caller.cert, seen=seen, check=seen.number(), near=True)
        removed = world.removed[self.home.mesh]
        verdict = self.door.judge(call, Members(members, lambda node, _: node in removed), world.now)
        if isinstance(verdict, Let):
            members[caller.id] = caller.cert
            if verdict.how != "member":
                world.joins.append((world.now, caller.id, self.home.mesh, verdict.how))
                self.door.admitted(call, verdict.how, self.name, world.now, world.now)
            self.look_at_home()
            answer("joined", self.door)
        else:
            self.door.waits(call, "closed", self.id, world.now)
            answer("waiting")

    def answered(self, by: Node, outcome: Outcome, door: Door | None) -> None:
        if outcome == "joined" and door is not None and self.joining.calling:
            self.door = door
            self.home = self.present(door.mesh)
            self.tell(self.home)
        self.tell(Call(by.id, outcome))
        self.look_at_home()
