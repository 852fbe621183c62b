"""Edges, two coordinators and links that break, under a virtual clock: nothing runs twice, nothing is lost or leaks.

One seed makes one run: `pytest tests/router/test_talk_sim.py -k 'talk and 17'` replays seed 17.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial

import pytest

from node.types import NodeId, RequestId, RunningReport, Usage
from router.asker import Answer, Asker, AskerEvent, Follow, FromDesk, LinkBack, LinkLost, Release
from router.desk import Desk, DeskEvent, EdgeLost, FromEdge, Reported, Rule
from router.events import NodeUp, Outcome, Request, Tick
from router.frames import Ask, CancelAsk, CoordinatorFrame, Done, EdgeFrame, First, Granted, Queued, Refused, Say, Taken
from router.settings import RouterSettings
from tests.router.fleets import serving

NODES = [NodeId(n) for n in ("c1", "c2", "e1")]  # all three are edges; the c's coordinate; c1 and c2 serve
SERVING = NODES[:2]
SLOTS = 2


class World:
    """One heap of events; every frame takes 1-20 ms and keeps its order, a link that breaks loses what is on it."""

    def __init__(self, seed: int) -> None:
        self.faults = seed % 4 != 0  # anything that may break a link or a reign in this run
        self.settings = RouterSettings()
        if seed % 2:  # the talk alone must keep the account: no help from nodes' reports, or from forgetting edges
            self.settings = RouterSettings(unreported_s=1e9, edge_gone_s=1e9, quiet_s=60.0)
        self.rng, self.now, self._count = random.Random(seed), 0.0, 0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.down: set[frozenset[NodeId]] = set()
        self.breaks: dict[frozenset[NodeId], int] = {}  # of each link; a frame sent before one is lost
        self.arrives: dict[tuple[NodeId, NodeId], float] = {}
        self.nodes = {n: Node(self, n) for n in NODES}
        self.granted: dict[tuple[str, int], NodeId] = {}
        self.ended: dict[str, str] = {}
        self.active: dict[tuple[str, int], NodeId] = {}  # what really runs, and where

    def at(self, after: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self.heap, (self.now + after, self._count, do))

    def run(self, until: float) -> None:
        while self.heap and self.heap[0][0] <= until:
            self.now, _, do = heapq.heappop(self.heap)
            do()
        self.now = until

    def send(self, sender: NodeId, to: NodeId, frame: EdgeFrame | CoordinatorFrame) -> bool:
        link = frozenset((sender, to))
        if link in self.down:
            return False
        arrival = max(self.arrives.get((sender, to), 0.0), self.now + self._delay())
        self.arrives[sender, to] = arrival
        breaks = self.breaks.get(link, 0)

        def deliver() -> None:
            if self.breaks.get(link, 0) == breaks:
                self.nodes[to].hear(sender, frame)

        self.at(arrival - self.now, deliver)
        return True

    def _delay(self) -> float:
        """Seconds on the way; in runs with faults a frame in 30 is late enough for a grant to be withdrawn."""
        late = self.faults and self.rng.random() < 0.03
        return self.rng.uniform(0.5, 1.5) if late else self.rng.uniform(0.001, 0.02)

    def break_link(self, a: NodeId, b: NodeId, seconds: float) -> None:
        link = frozenset((a, b))
        self.down.add(link)
        self.breaks[link] = self.breaks.get(link, 0) + 1
        for here, there in ((a, b), (b, a)):
            self.at(self.rng.uniform(0, 0.05), partial(self.nodes[here].link_lost, there))
        self.at(seconds, lambda: self.down.discard(link))

    def follow(self, coordinator: NodeId | None, term: int, *, spread_s: float) -> None:
        for node in self.nodes.values():
            reign = Follow(coordinator, term, ruling=coordinator == node.id)
            self.at(self.rng.uniform(0, spread_s), partial(node.follow, reign))


class Node:
    """A daemon as far as this talk goes: asker, desk, what dispatch does between them, and the edge's work."""

    def __init__(self, world: World, node: NodeId) -> None:
        self.world, self.id = world, node
        settings = world.settings
        self.asker, self.desk = Asker(node, settings, 0.0), Desk(node, settings, random.Random(1))
        self.reign = Follow(None, 0, ruling=False)
        self.attempt: dict[str, int] = {}  # of my open requests
        self.since: dict[str, float] = {}
        self.releases = 0
        self.timers = {"asker": 0, "desk": 0}
        for name in SERVING:
            self.tell(NodeUp(serving(name, SLOTS)))

    # Dispatch's part

    def ask_of(self, event: AskerEvent) -> None:
        for effect in self.asker.step(event, self.world.now):
            if isinstance(effect, Say):
                self.say(effect)
            elif isinstance(effect, Answer):
                self.answered(effect.frame)
            else:
                assert isinstance(effect, Release)
                self.releases += 1
                self.tell(Rule(self.reign.ruling))
        self.wake("asker", self.asker.deadline, lambda: self.ask_of(Tick()))

    def tell(self, event: DeskEvent) -> None:
        for say in self.desk.step(event, self.world.now):
            self.say(say)
        self.wake("desk", self.desk.deadline, lambda: self.tell(Tick()))
        for (node, _), count in self.desk.scheduler.in_flight().items():
            assert count <= SLOTS + 2 * len(NODES) * SLOTS, f"{node} is flooded"

    def wake(self, name: str, at: float | None, do: Callable[[], None]) -> None:
        self.timers[name] += 1
        number = self.timers[name]
        if at is not None:
            self.world.at(max(0.0, at - self.world.now), lambda: do() if self.timers[name] == number else None)

    def say(self, say: Say) -> None:
        frame = say.frame
        to_edge = isinstance(frame, Queued | Granted | Refused)
        if say.to == self.id:
            number = self.releases
            self.world.at(0.0, lambda: self.hear(self.id, frame) if to_edge or number == self.releases else None)
            return
        sent = self.world.send(self.id, say.to, frame)
        if not sent:
            lost = EdgeLost(say.to) if to_edge else None
            lives = self.world.rng.random() < 0.5  # others hear it, or so they say
            self.world.at(0.0, lambda: self.tell(lost) if lost else self.ask_of(LinkLost(say.to, lives)))
        elif not to_edge and self.asker.unreachable:
            self.world.at(0.0, lambda: self.ask_of(LinkBack(say.to)))

    def hear(self, sender: NodeId, frame: EdgeFrame | CoordinatorFrame) -> None:
        if isinstance(frame, Queued | Granted | Refused):
            self.ask_of(FromDesk(sender, frame))
        else:
            self.tell(FromEdge(sender, frame))

    def link_lost(self, node: NodeId) -> None:
        self.ask_of(LinkLost(node))
        self.tell(EdgeLost(node))

    def follow(self, reign: Follow) -> None:
        if reign.ruling != self.reign.ruling:
            self.tell(Rule(reign.ruling))
        self.reign = reign
        self.ask_of(reign)

    # The edge's part

    def submit(self, name: str, last: Outcome | None = None) -> None:
        self.attempt[name] = self.attempt.get(name, 0) + 1
        self.since.setdefault(name, self.world.now)
        request = Request(id=RequestId(name), models=("qwen",), prompt_tokens=50, max_tokens=20, deadline=200.0)
        self.ask_of(Ask(request, self.attempt[name], self.world.now - self.since[name], last))

    def answered(self, frame: CoordinatorFrame) -> None:
        name, w = frame.id, self.world
        assert self.attempt.get(name) == frame.attempt, "an answer for an attempt that is over"
        if isinstance(frame, Refused):
            raise AssertionError(f"refused: {frame.error.message}")
        if not isinstance(frame, Granted):
            return
        assert (name, frame.attempt) not in w.granted, "one attempt was granted twice"
        w.granted[name, frame.attempt] = frame.node
        w.active[name, frame.attempt] = frame.node
        if not w.faults:
            assert list(w.active.values()).count(frame.node) <= SLOTS, "more than its slots, with nothing lost"
        attempt = frame.attempt
        w.at(w.rng.uniform(0, 0.01), lambda: self.ask_of(Taken(RequestId(name), attempt)))
        takes = w.rng.uniform(0.1, 3.0)
        outcomes: list[Outcome] = ["ok", "busy", "failed"]
        outcome = w.rng.choices(outcomes, [8, 1, 1])[0]
        if outcome == "ok":
            w.at(takes / 2, lambda: self.ask_of(First(RequestId(name), attempt)))
        w.at(takes, lambda: self.over(name, attempt, outcome))

    def over(self, name: str, attempt: int, outcome: Outcome) -> None:
        del self.world.active[name, attempt]
        if outcome == "ok":
            self.end(name, "ok")
            self.ask_of(Done(RequestId(name), attempt, "ok", Usage(50, 0, 20)))
        else:
            self.submit(name, outcome)

    def leave(self, name: str) -> None:
        """The client goes away, if it still waits."""
        if name in self.attempt and (name, self.attempt[name]) not in self.world.granted:
            attempt = self.attempt[name]
            self.end(name, "cancelled")
            self.ask_of(CancelAsk(RequestId(name), attempt))

    def end(self, name: str, how: str) -> None:
        assert name not in self.world.ended
        self.world.ended[name] = how
        del self.attempt[name]


@pytest.mark.parametrize("seed", range(40))
def test_the_whole_talk(seed: int) -> None:
    w = World(seed)
    rng = w.rng

    def report() -> None:
        for node in SERVING:
            running = tuple(
                RunningReport(RequestId(name), attempt, "qwen", started=True, age_s=0.0)
                for (name, attempt), place in w.active.items()
                if place == node
            )
            for each in w.nodes.values():
                each.tell(Reported(node, running))
        w.at(1.0, report)

    def part(a: NodeId, b: NodeId) -> None:
        w.break_link(a, b, rng.uniform(0.05, 4.0))

    w.at(0.5, report)
    w.follow(NODES[0], 1, spread_s=0.5)
    total = 60
    for i in range(total):
        edge = w.nodes[rng.choice(NODES)]
        at = rng.uniform(0, 20)
        w.at(at, partial(edge.submit, f"r{i}"))
        if rng.random() < 0.15:
            w.at(at + rng.uniform(0, 4), partial(edge.leave, f"r{i}"))
    for _ in range(rng.randint(2, 12) if w.faults else 0):
        a, b = rng.sample(NODES, 2)
        w.at(rng.uniform(0, 22), partial(part, a, b))
    if w.faults and rng.random() < 0.8:  # the first coordinator goes, nobody rules for a while, then the second does
        lost_at, gap = rng.uniform(3, 15), rng.choice([0.0, 0.5, 3.0])
        w.at(lost_at, lambda: w.follow(None, 1, spread_s=0.3))
        w.at(lost_at + 0.4 + gap, lambda: w.follow(NODES[1], 2, spread_s=0.3))
        if rng.random() < 0.3:
            w.at(lost_at + gap + 5, lambda: w.follow(NODES[0], 3, spread_s=0.3))
    w.run(120.0)
    assert len(w.ended) == total, sorted({f"r{i}" for i in range(total)} - set(w.ended))
    assert w.active == {}
    for node in w.nodes.values():
        assert node.asker.standings() == []
        assert list(node.desk.open()) == []
        assert node.desk.scheduler.in_flight() == {}
        assert node.desk.scheduler.waiting() == []
