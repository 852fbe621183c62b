"""TCP between simulated nodes, as far as membership sees it: dials, links, pings, ends. It decides nothing.

A link works while both directions do; loss only costs it time, which is left out. Times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.events import Framed, LinkClosed, LinkUp, Reported, SaidBye, Tried, TryKind
from mesh.wire import PeerSeen
from node.types import NodeId

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

CONNECT_S = 2.0  # as LinkSettings
PING_S, SILENCE_S = 1.0, 5.0
GOSSIP_EACH = 5  # pings
BACKOFF_S, BACKOFF_MAX_S = 0.1, 5.0


@dataclass
class Dialling:
    """That a node wants a link, and its tries so far. A new wish makes the tries under way void."""

    turn: int = 0
    backoff_s: float = BACKOFF_S


class Wire:
    """One connection between two processes. Each end is open until it learns better."""

    def __init__(self, a: Node, b: Node, now: float) -> None:
        self.ends, self.ids, self.boots, self.homes = (a, b), (a.id, b.id), (a.boot, b.boot), (a.home, b.home)
        self.open, self.heard = [True, True], [now, now]
        self.told: list[tuple[PeerSeen, ...]] = [(), ()]  # the last gossip of each end
        self.pings = 0

    def side(self, node: Node) -> int:
        return 0 if self.ends[0] is node else 1

    def alive(self, side: int) -> bool:
        """Its process runs and holds it open."""
        node = self.ends[side]
        return self.open[side] and node.up and node.boot == self.boots[side]

    @property
    def carries(self) -> bool:
        """Its addresses are still those of its machines."""
        return self.homes == (self.ends[0].home, self.ends[1].home)


class Wires:
    """All connections of one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def dial(self, node: Node, peer: str, *, at_once: bool) -> None:
        """Keep trying until there is a link."""
        want = node.wants.get(peer)
        if want is None:
            want = node.wants[peer] = Dialling()
        elif not at_once:
            return
        want.turn += 1
        want.backoff_s = BACKOFF_S
        self._try(node, peer, want, self._world.rng.uniform(0.0, 0.01))

    def hang_up(self, node: Node, peer: str, reason: str) -> None:
        node.wants.pop(peer, None)
        wire = node.wires.pop(peer, None)
        if wire is not None:
            self._part(wire, wire.side(node), SaidBye(NodeId(node.id), reason), eof=True)

    def process_ended(self, node: Node, bye: str = "") -> None:
        """The kernel closes what it had open."""
        for wire in node.wires.values():
            self._part(wire, wire.side(node), SaidBye(NodeId(node.id), bye) if bye else None, eof=True)
        node.wires.clear()

    def _try(self, node: Node, peer: str, want: Dialling, wait_s: float) -> None:
        self._world.at(self._world.now + wait_s, self._attempt, node, (node.boot, peer, want, want.turn))

    def _attempt(self, node: Node, what: tuple[str, str, Dialling, int]) -> None:
        world = self._world
        boot, peer, want, turn = what
        if self._void(node, boot, peer, want, turn):
            return
        if node.paused_until > world.now:
            world.at(node.paused_until, self._attempt, node, what)
            return
        other = world.route(node, peer)
        if other is None or (node.name, other.name) in world.stale or not world.path(node, other):
            self._later(CONNECT_S, node, what, "timeout", other)
        elif not other.up:
            self._later(world.round_trip_s(node, other), node, what, "refused", other)
        elif other.paused_until > world.now:
            self._later(CONNECT_S, node, what, "timeout", other)
        else:
            world.at(world.now + world.round_trip_s(node, other), self._join, node, (what, other, other.boot))

    def _void(self, node: Node, boot: str, peer: str, want: Dialling, turn: int) -> bool:
        current = node.up and node.boot == boot and node.wants.get(peer) is want and want.turn == turn
        return not current or peer in node.wires

    def _later(
        self, wait_s: float, node: Node, what: tuple[str, str, Dialling, int], kind: TryKind, other: Node | None
    ) -> None:
        address = other.address if other is not None else ""
        self._world.at(self._world.now + wait_s, self._failed, node, (what, kind, address))

    def _failed(self, node: Node, outcome: tuple[tuple[str, str, Dialling, int], TryKind, str]) -> None:
        (boot, peer, want, turn), kind, home = outcome
        if self._void(node, boot, peer, want, turn):
            return
        last_good = node.last_good.get(peer) == home
        want.backoff_s = min(BACKOFF_MAX_S, 2 * want.backoff_s)
        self._try(node, peer, want, want.backoff_s)
        self._world.deliver(node, Tried(NodeId(peer), home, kind, kind, last_good))

    def _join(self, node: Node, what: tuple[tuple[str, str, Dialling, int], Node, str]) -> None:
        world = self._world
        attempt, other, boot = what
        if self._void(node, *attempt):
            return
        paused = node.paused_until > world.now or other.paused_until > world.now
        if not other.up or other.boot != boot or paused or not world.path(node, other):
            self._later(CONNECT_S, node, attempt, "timeout", other)
            return
        old = other.wires.get(node.id)
        if old is not None:
            if old.alive(1 - old.side(other)) and old.ends[1 - old.side(other)] is not node:
                return  # a clone of a node that is linked already
            self._close(old, old.side(other), "replaced", eof=False)
        wire = Wire(node, other, world.now)
        node.wires[other.id], other.wires[node.id] = wire, wire
        node.last_good[other.id], other.last_good[node.id] = other.address, node.address
        for me, you in ((node, other), (other, node)):
            me.tell(LinkUp(you.hello, you.address, me.site != you.site))
        for me, you in ((node, other), (other, node)):
            if wire.open[wire.side(me)] and me.up:
                me.tell(Reported(you.report))
        for side in (0, 1):
            if wire.alive(0) and wire.alive(1):
                self._gossip(wire, side)
        world.at(world.now + PING_S, self._ping, wire, None)

    def _ping(self, wire: Wire, _: None) -> None:
        world = self._world
        path = wire.carries and world.path(*wire.ends)
        wire.pings += 1
        for side in (0, 1):
            node, there = wire.ends[side], 1 - side
            if not wire.alive(side):
                wire.open[side] = False
            elif node.paused_until <= world.now:
                if path and not wire.alive(there):
                    self._close(wire, side, "reset", eof=True)
                elif path:
                    wire.heard[there] = world.now
                    other = wire.ends[there]
                    world.deliver(other, Framed(NodeId(node.id)))
                    if node.id not in other.members:  # in truth each second; only this one tells anything new
                        world.deliver(other, Reported(node.report))
                    if wire.pings % GOSSIP_EACH == 0:
                        self._gossip(wire, side)
                if wire.open[side] and world.now - wire.heard[side] > SILENCE_S:
                    self._close(wire, side, "silent", eof=False)
        if any(wire.open):
            world.at(world.now + PING_S, self._ping, wire, None)

    def _gossip(self, wire: Wire, side: int) -> None:
        """Whom one end knows, unless it has told the same already."""
        node, other = wire.ends[side], wire.ends[1 - side]
        peers = node.membership.gossip()
        if peers != wire.told[side] and other.runs:
            wire.told[side] = peers
            other.take_gossip(NodeId(node.id), peers)

    def _part(self, wire: Wire, side: int, bye: SaidBye | None, *, eof: bool) -> None:
        """This end has closed; the other end hears of it, if anything reaches it. (If not, its next ping will tell.)"""
        wire.open[side] = False
        world, there = self._world, 1 - side
        if wire.open[there] and wire.carries and world.path(*wire.ends):
            delay_s = world.round_trip_s(*wire.ends) / 2
            if bye is not None:
                world.at(world.now + delay_s, self._told, wire, (there, bye))
            world.at(world.now + delay_s, self._closed, wire, (there, eof))

    def _told(self, wire: Wire, what: tuple[int, SaidBye]) -> None:
        if wire.alive(what[0]):
            self._world.deliver(wire.ends[what[0]], what[1])

    def _closed(self, wire: Wire, what: tuple[int, bool]) -> None:
        if wire.alive(what[0]):
            self._close(wire, what[0], "end of stream", eof=what[1])

    def _close(self, wire: Wire, side: int, why: str, *, eof: bool) -> None:
        wire.open[side] = False
        node, peer = wire.ends[side], NodeId(wire.ids[1 - side])
        if node.wires.get(peer) is wire:
            del node.wires[peer]
        self._world.deliver(node, LinkClosed(peer, why, eof))
