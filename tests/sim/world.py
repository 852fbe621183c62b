"""The world the production machines run in: one virtual clock, one heap of events, one seeded RNG, lossy links.

Nothing here decides anything about the election; it delivers, delays, loses and wakes. Times are virtual seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol
from zlib import crc32

from election.machine import Election
from election.messages import Event, Follow, Heard, LinkClosed, Message, PeerKnown, Remember, Role, Send, Tick
from election.settings import ElectionSettings


@dataclass(frozen=True)
class Net:
    """One direction of one link. `reorder` of the datagrams take `reorder_s` longer than the rest."""

    delay_s: float = 0.0003
    jitter_s: float = 0.0005
    loss: float = 0.0
    dup: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.2


WIRED = Net()
WIFI = Net(delay_s=0.001, jitter_s=0.015, loss=0.01)
BAD_WIFI = Net(delay_s=0.002, jitter_s=0.1, loss=0.05)


@dataclass
class Node:
    """One daemon: its machine while it runs, and what outlives it (`disk_term`, `boots`)."""

    id: str
    priority: int
    machine: Election
    up: bool = True
    leaving: bool = False
    disk_term: int = 0
    boots: int = 1
    stalled_until: float = 0.0
    deaf_until: float = 0.0
    queued: list[Event] = field(default_factory=list)  # what came while it was stalled
    wake_at: float = field(default=float("inf"))  # earliest wake-up in the heap


@dataclass(frozen=True)
class Takeover:
    at: float
    node: str
    term: int
    why: str


class Checker(Protocol):
    """Looks after every step; raises ViolationError."""

    def started(self, world: World, node: Node) -> None: ...

    def stepped(self, world: World, node: Node, event: Event) -> None: ...


class World:
    """`priorities` one per node, named n0, n1, ...; `far` pairs (a, b): a has added b, at another site."""

    def __init__(
        self,
        seed: int,
        priorities: Sequence[int],
        *,
        net: Net = WIRED,
        settings: ElectionSettings | None = None,
        checkers: Sequence[Checker] = (),
        far: frozenset[tuple[str, str]] = frozenset(),
        narrate: bool = False,
    ) -> None:
        self.rng, self.now, self.steps = Random(seed), 0.0, 0
        self.net, self.far = net, far
        self.settings = settings or ElectionSettings()
        self.checkers = checkers
        self.links: dict[tuple[str, str], Net] = {}  # where it differs from `net`
        self.blocked: set[tuple[str, str]] = set()
        self.takeovers: list[Takeover] = []
        self.transcript: list[str] | None = [] if narrate else None
        self.digest = 0  # of every step taken: the same seed gives the same
        self.nodes: dict[str, Node] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._reigns: set[tuple[str, int, int]] = set()
        self._count = 0
        for i, priority in enumerate(priorities):
            self.nodes[f"n{i}"] = Node(f"n{i}", priority, self._machine(f"n{i}", 1, priority, 0))
        for node in self.nodes.values():
            self._begin(node)

    # Time

    def at(self, when: float, act: Callable[..., None], *args: object) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, act, args))

    def run(self, until: float) -> None:
        """Everything up to, not including, `until`."""
        heap = self._heap
        while heap and heap[0][0] < until:
            self.now, _, act, args = heapq.heappop(heap)
            act(*args)
        self.now = until

    def run_until(self, holds: Callable[[], bool], limit_s: float, every_s: float = 0.01) -> float | None:
        """Seconds until `holds` (looked at every `every_s`), or None after `limit_s`."""
        begin = self.now
        while not holds():
            if self.now - begin >= limit_s:
                return None
            self.run(self.now + every_s)
        return self.now - begin

    # What can happen to a node (faults.py chooses)

    def start(self, node: Node) -> None:
        """Again, after a crash or a goodbye: a new boot, the term from disk."""
        node.boots += 1
        node.up, node.leaving, node.stalled_until, node.deaf_until, node.wake_at = True, False, 0.0, 0.0, float("inf")
        node.queued.clear()
        node.machine = self._machine(node.id, node.boots, node.priority, node.disk_term)
        self.say(node.id, f"starts, term {node.disk_term} on disk")
        self._begin(node)

    def kill(self, node: Node, fin: bool = True) -> None:
        """The process ends; with `fin` its links close, without (power, panic) nobody is told."""
        node.up = False
        self.say(node.id, "is killed" if fin else "loses power")
        for peer in self.nodes.values() if fin else ():
            if peer is not node and not {(node.id, peer.id), (peer.id, node.id)} & self.blocked:
                self.at(self.now + self._delay(self._net(node.id, peer.id)), self._receive, peer, LinkClosed(node.id))

    def stall(self, node: Node, seconds: float) -> None:
        """The process stands still; what comes for it waits."""
        node.stalled_until = self.now + seconds
        self.say(node.id, f"stalls for {seconds:.1f} s")
        self.at(node.stalled_until, self._resume, node, node.machine)

    def resume(self, node: Node) -> None:
        """It runs again. A late timer goes first, then what was queued: the harder order, and the real one."""
        node.stalled_until = 0.0
        if node.up:
            self._step(node, Tick())
        while node.up and node.queued:
            self._step(node, node.queued.pop(0))

    def _resume(self, node: Node, machine: Election) -> None:
        if node.machine is machine and 0.0 < node.stalled_until <= self.now:
            self.resume(node)

    def cut(self, *ids: str) -> None:
        """Off the network, silently, together."""
        inside = set(ids)
        self.blocked |= {(a, b) for a in self.nodes for b in self.nodes if (a in inside) != (b in inside)}
        self.say(",".join(ids), "cut off")

    def inject(self, node: Node, event: Event) -> None:
        """An event from this node's own shell, now."""
        self._receive(node, event)

    # What can be seen

    def up(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.up]

    def agreed(self, among: Sequence[Node] | None = None) -> str | None:
        """The one coordinator that all of `among` (default: all that are up) follow, and that itself coordinates.
        Where all have priority 0 nobody can: that is no agreement."""
        nodes = among if among is not None else self.up()
        follow = {n.machine.coordinator for n in nodes}
        one = follow.pop() if len(follow) == 1 else None
        holder = self.nodes[one].machine.role if one is not None and any(n.id == one for n in nodes) else None
        return one if holder in (Role.COORDINATOR, Role.ALONE) else None

    def say(self, who: str, text: str) -> None:
        if self.transcript is not None:
            self.transcript.append(f"{self.now:9.3f}  {who:<4} {text}")

    # Inside

    def _machine(self, node: str, boots: int, priority: int, term: int) -> Election:
        return Election(
            me=node,
            boot=f"{node}b{boots:03}",
            mesh="sim",
            priority=priority,
            settings=self.settings,
            term=term,
            now=self.now,
            rng=Random(self.rng.getrandbits(32)),
        )

    def _begin(self, node: Node) -> None:
        for checker in self.checkers:
            checker.started(self, node)
        for peer in self.nodes:
            if peer != node.id:
                self._step(node, PeerKnown(peer, (node.id, peer) in self.far))
        self._step(node, Tick())

    def _step(self, node: Node, event: Event) -> None:
        self.steps += 1
        assert self.steps < 50_000_000, "the world does not come to rest"
        machine = node.machine
        for effect in machine.step(event, self.now):
            match effect:
                case Send(message, None):
                    for peer in self.nodes.values():
                        if peer is not node:
                            self._send(node, peer, message)
                case Send(message, str(to)):
                    self._send(node, self.nodes[to], message)
                case Remember(term):
                    node.disk_term = term
                case Follow(role, coordinator, term, why):
                    self._note(node, role, coordinator, term, why)
        for checker in self.checkers:
            checker.stepped(self, node, event)
        if machine.left:
            self.kill(node)
        elif machine.deadline < node.wake_at:
            node.wake_at = machine.deadline
            self.at(machine.deadline, self._wake, node, machine)

    def _note(self, node: Node, role: Role, coordinator: str | None, term: int, why: str) -> None:
        if role is Role.COORDINATOR and (node.id, node.boots, term) not in self._reigns:
            self._reigns.add((node.id, node.boots, term))
            self.takeovers.append(Takeover(self.now, node.id, term, why))
        self.digest = crc32(f"{self.now!r} {node.id} {role} {coordinator} {term} {why}".encode(), self.digest)
        words = {Role.COORDINATOR: "coordinates", Role.ALONE: "is alone", Role.FOLLOWER: f"follows {coordinator}"}
        self.say(
            node.id, f"{words[role] if coordinator or role is Role.ALONE else 'follows nobody'}, term {term}: {why}"
        )

    def _wake(self, node: Node, machine: Election) -> None:
        if node.machine is not machine or not node.up:
            return
        node.wake_at = float("inf")
        if node.stalled_until > self.now:
            return  # resume() wakes it
        if machine.deadline <= self.now:
            self._step(node, Tick())
        else:
            node.wake_at = machine.deadline
            self.at(machine.deadline, self._wake, node, machine)

    def _receive(self, node: Node, event: Event) -> None:
        if not node.up:
            return
        if node.stalled_until <= self.now:
            self._step(node, event)
        elif len(node.queued) < 400:  # about what a socket's buffer holds; the rest is lost
            node.queued.append(event)

    def _arrive(self, node: Node, message: Message) -> None:
        if node.deaf_until <= self.now:
            self._receive(node, Heard(message))

    def _send(self, sender: Node, to: Node, message: Message) -> None:
        if (sender.id, to.id) in self.blocked or sender.deaf_until > self.now:
            return
        net, rng = self._net(sender.id, to.id), self.rng
        for _ in range(2 if net.dup and rng.random() < net.dup else 1):
            if not net.loss or rng.random() >= net.loss:
                late = net.reorder_s if net.reorder and rng.random() < net.reorder else 0.0
                self.at(self.now + self._delay(net) + late, self._arrive, to, message)

    def _net(self, a: str, b: str) -> Net:
        return self.links.get((a, b), self.net) if self.links else self.net

    def _delay(self, net: Net) -> float:
        return net.delay_s + net.jitter_s * self.rng.random()
