"""The world the production machines run in: one virtual clock, one heap of events, one seeded RNG, lossy links.

Nothing here decides anything about the mesh; it delivers, delays, loses and wakes. Times are virtual seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from random import Random
from typing import Any, Protocol
from zlib import crc32

from msgspec.structs import replace

from election import messages as said
from election.machine import Election
from election.messages import Follow, Role
from election.settings import ElectionSettings
from mesh import events
from tests.sim.net import FAR_LINE, WIRED, Net
from tests.sim.node import QUEUE_MAX, Node, Packet
from tests.sim.wires import Wires

LOOK_S = 0.5
SPINS_MAX = 5  # one thing may have made another one due
GATEWAY = "gw"  # the router of their network, as one end of a link


@dataclass(frozen=True)
class Takeover:
    at: float
    node: str
    term: int
    why: str


class Checker(Protocol):
    """Looks after every step that did anything, and at all of it each LOOK_S; raises ViolationError."""

    def started(self, world: World, node: Node) -> None: ...

    def stepped(self, world: World, node: Node, event: said.Event) -> None: ...

    def judged(self, world: World, node: Node, verdict: events.Up | events.Down | events.Gone) -> None: ...

    def looked(self, world: World) -> None: ...


class World:
    """`priorities` one per node, named n0, n1, ...; `sites` where each is (default: all together), in which case the
    first node of each site has added the first one of the next site by hand."""

    def __init__(
        self,
        seed: int,
        priorities: Sequence[int],
        *,
        net: Net = WIRED,
        settings: ElectionSettings | None = None,
        election: type[Election] = Election,
        checkers: Sequence[Checker] = (),
        sites: Sequence[int] = (),
        narrate: bool = False,
    ) -> None:
        self.rng, self.now, self.steps = Random(seed), 0.0, 0
        self.net = net
        self.settings, self.election = settings or ElectionSettings(), election
        self.checkers = checkers
        self.links: dict[tuple[str, str], Net] = {}  # where it differs from `net`
        self.blocked: set[tuple[str, str]] = set()  # (a, b): b does not hear a
        self.stale: set[tuple[str, str]] = set()  # (a, b): a knows an address that b has no more
        self.takeovers: list[Takeover] = []
        self.transcript: list[str] | None = [] if narrate else None
        self.digest = 0  # of every change: the same seed gives the same
        self.wires = Wires(self)
        self._of_boot: dict[str, str] = {}  # whose machine it ran on
        self._heap: list[tuple[float, int, Callable[[Any, Any], None], Any, Any]] = []
        self._count = 0
        self.nodes: dict[str, Node] = {}
        for i, priority in enumerate(priorities):
            self.nodes[f"n{i}"] = Node(self, f"n{i}", f"n{i}", priority, sites[i] if sites else 0)
        firsts = [next(n for n in self.nodes.values() if n.site == site) for site in sorted(set(sites))]
        for one, other in pairwise(firsts):
            one.added.append(other)
        self._lay_lines()
        for node in self.nodes.values():
            self._begin(node)
            self._deafen_now_and_then(node, None)
        self._look(None, None)

    # Time

    def at(self, when: float, act: Callable[[Any, Any], None], who: object, what: object) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, act, who, what))

    def run(self, until: float) -> None:
        """Everything up to, not including, `until`."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] < until:
            self.now, _, act, who, what = pop(heap)
            act(who, what)
        self.now = until

    def run_until(self, holds: Callable[[], bool], limit_s: float, every_s: float = 0.01) -> float | None:
        """Seconds until `holds` (looked at every `every_s`), or None after `limit_s`."""
        begin = self.now
        while not holds():
            if self.now - begin >= limit_s:
                return None
            self.run(self.now + every_s)
        return self.now - begin

    def wake(self, node: Node, when: float) -> None:
        """Its timer, replacing a later one."""
        node.wake_at = when
        self.at(when, self._wake, node, node.boot)

    def _wake(self, node: Node, boot: str) -> None:
        if node.boot != boot or not node.up or node.wake_at > self.now or node.paused_until > self.now:
            return  # restarted, or woken earlier; resume() wakes who is paused
        node.wake_at = inf
        node.tick()
        node.spun = node.spun + 1 if node.up and node.spins else 0
        if node.spun > SPINS_MAX:
            raise AssertionError(f"{self.now:.3f}: {node.name} has done what was due, and it is due still: it spins")
        self._rewake(node)

    def _rewake(self, node: Node) -> None:
        if node.up and (due := max(node.due(), self.now + 1e-6)) < node.wake_at:
            self.wake(node, due)

    # What can happen to a node (faults.py chooses)

    def start(self, node: Node) -> None:
        """Again, after a crash or a goodbye: a new boot, the term from disk."""
        node.boot_up()
        self._reroute()
        self.say(node, f"starts, term {node.disk_term} on disk")
        self._begin(node)

    def kill(self, node: Node, *, fin: bool = True) -> None:
        """The process ends; with `fin` its links close, without (power, panic) nobody is told."""
        node.up, node.powered = False, fin
        self.say(node, "is killed" if fin else "loses power")
        if fin:
            self.wires.process_ended(node)

    def depart(self, node: Node) -> None:
        """It has said goodbye, and ends."""
        node.up = False
        self.say(node, "ends")
        self.wires.process_ended(node, "shutting down")

    def pause(self, node: Node, seconds: float, *, asleep: bool = False) -> None:
        """The process stands still; what comes for it waits. Asleep: the whole machine, and nothing comes."""
        node.paused_until, node.asleep = self.now + seconds, asleep
        self.say(node, f"{'sleeps' if asleep else 'stalls'} for {seconds:.1f} s")
        self.at(node.paused_until, self._resume, node, node.boot)

    def resume(self, node: Node) -> None:
        """It runs again. A late timer goes first, then what was queued: the harder order, and the real one."""
        slept, node.paused_until, node.asleep = node.asleep, 0.0, False
        if node.up:
            node.wake_at = inf
            node.tick()
            queue, node.queue = node.queue, []
            for what in queue:
                if node.up:
                    self._take(node, what)
            self._rewake(node)
            if slept:
                self.announce(node)

    def _resume(self, node: Node, boot: str) -> None:
        if node.boot == boot and 0.0 < node.paused_until <= self.now:
            self.resume(node)

    def cut(self, *names: str) -> None:
        """Off the network, silently, together."""
        inside, everything = set(names), (*self.nodes, GATEWAY)
        self.blocked |= {(a, b) for a in everything for b in everything if (a in inside) != (b in inside)}
        self.say(",".join(names), "cut off")

    def move(self, node: Node, found_after_s: float, site: int | None = None) -> None:
        """It has a new address (DHCP), perhaps at another `site`. Until it is heard from there, or found anew, others
        send to the old one; its connections are dead."""
        node.home += 1
        node.site = node.site if site is None else site
        self._lay_lines()
        self.stale |= {(name, node.name) for name in self.nodes if name != node.name}
        self.say(node, "has a new address" if site is None else f"is at site {site} now")
        self.at(self.now + found_after_s, self._moved, node, node.boot)

    def _moved(self, node: Node, boot: str) -> None:
        if node.runs and node.boot == boot:
            node.changed_address()
            for other in node.wires.values():
                side = 1 - other.side(node)
                if other.carries and self.path(*other.ends):
                    self.deliver(other.ends[side], events.Reported(node.report))
            self._announce(node, boot)

    def _lay_lines(self) -> None:
        """Between sites the line is longer."""
        nodes = self.nodes.values()
        self.links = {(a.name, b.name): FAR_LINE for a in nodes for b in nodes if a.site != b.site}

    def clone(self, original: Node) -> Node:
        """Another machine with a copy of its disk starts."""
        name = f"{original.name}'" + "'" * sum(n.startswith(f"{original.name}'") for n in self.nodes)
        node = Node(self, name, original.id, original.priority, original.site)
        node.disk_term, node.disk_peers = original.disk_term, dict(original.disk_peers)
        node.boot_up()
        self.blocked |= {(name, b) for a, b in self.blocked if a == original.name}
        self.blocked |= {(a, name) for a, b in self.blocked if b == original.name}
        self.nodes[name] = node
        self._lay_lines()
        self._reroute()
        self.say(node, f"starts, a clone with the id {node.id}")
        self._begin(node)
        self._deafen_now_and_then(node, None)
        return node

    def rename(self, node: Node) -> None:
        """A clone that has been told: it starts again, with an id of its own."""
        self.wires.process_ended(node, "another node has this id")
        self.say(node, f"shares the id {node.id} with another node that runs longer: takes a new one")
        node.id = f"{node.name}.{node.boots}"
        self.start(node)

    # The network

    def send(self, sender: Node, packet: Packet, to: str | None) -> None:
        """A datagram to the process behind an id, or to all it knows. To an id it does not know nothing goes."""
        if sender.deaf_until > self.now:
            return
        routes = self._routes(sender)
        if to is not None:
            other = self.route(sender, to) if to in sender.targets else None
            routes = [] if other is None else [other]
        now, random, heap, links, name = self.now, self.rng.random, self._heap, self.links, sender.name
        blocked, stale, arrive, net, count = self.blocked, self.stale, self._arrive, self.net, self._count
        push, unheard, said = heapq.heappush, sender.membership.unheard, packet
        for other in routes:
            if unheard:
                packet = (said[0], sender.deaf_beat) if other.id in unheard else said
            if blocked or stale or links:
                pair = (name, other.name)
                if pair in blocked or pair in stale:
                    continue
                net = links.get(pair, self.net)
            if net.loss and random() < net.loss:
                continue
            for _ in (0, 0) if net.dup and random() < net.dup else (0,):
                when = now + net.delay_s + net.jitter_s * random()
                if net.reorder and random() < net.reorder:
                    when += net.reorder_s
                count += 1
                push(heap, (when, count, arrive, other, packet))
        self._count = count

    def _arrive(self, node: Node, packet: Packet) -> None:
        if not node.up or node.deaf_until > self.now:
            return
        if self.stale:  # an answer goes to where the question came from
            self.stale.discard((node.name, self._of_boot[packet[1].boot]))
        if node.paused_until <= self.now:
            node.hear(packet)
        elif not node.asleep and len(node.queue) < QUEUE_MAX:
            node.queue.append(packet)

    def deliver(self, node: Node, event: events.Event) -> None:
        """From its own shell: waits while the process stands still."""
        if node.up and node.paused_until <= self.now:
            node.tell(event)
        elif node.up and len(node.queue) < QUEUE_MAX:
            node.queue.append(event)

    def _take(self, node: Node, what: Packet | events.Event) -> None:
        if isinstance(what, tuple):
            node.hear(what)
        else:
            node.tell(what)

    def route(self, node: Node, peer: str) -> Node | None:
        """The process that `node` reaches under this id: of clones, any."""
        found = [n for n in self.nodes.values() if n.id == peer and n is not node]
        return found[0] if len(found) < 2 and found else self.rng.choice(found) if found else None

    def _routes(self, node: Node) -> list[Node]:
        if node.routes is None:
            node.routes = [n for n in self.nodes.values() if n.id in node.targets and n is not node]
        return node.routes

    def _reroute(self) -> None:
        for node in self.nodes.values():
            node.routes = None

    def path(self, a: Node, b: Node) -> bool:
        """Both machines run, and hear each other at this moment."""
        now, blocked = self.now, self.blocked
        return (
            (not blocked or ((a.name, b.name) not in blocked and (b.name, a.name) not in blocked))
            and a.powered and b.powered and not a.asleep and not b.asleep
            and a.deaf_until <= now and b.deaf_until <= now
        )  # fmt: skip

    def addresses(self, a: Node, b: Node) -> bool:
        """Heartbeats of `a` go to where `b` is."""
        return b.id in a.targets and (a.name, b.name) not in self.stale

    def learn(self, node: Node, peer: str, addresses: Sequence[str]) -> None:
        """From now on it sends to all of these, and one may be where the other is now."""
        for other in self.nodes.values() if self.stale else ():
            if other.id == peer and other.address in addresses:
                self.stale.discard((node.name, other.name))

    def round_trip_s(self, a: Node, b: Node) -> float:
        one, other = (self.links.get(pair, self.net) for pair in ((a.name, b.name), (b.name, a.name)))
        random = self.rng.random
        return one.delay_s + one.jitter_s * random() + other.delay_s + other.jitter_s * random()

    def announce(self, node: Node) -> None:
        """Its mDNS answers and questions, within its site: it is found, and finds."""
        self.at(self.now + self.rng.uniform(0.001, 0.04), self._announce, node, node.boot)

    def _announce(self, node: Node, boot: str) -> None:
        if not node.runs or node.boot != boot:
            return
        for other in list(self.nodes.values()):
            if other.site == node.site and other.id != node.id and other.up and self.path(node, other):
                self.stale.discard((other.name, node.name))
                self.deliver(other, events.Seen(node.found()))
                self.deliver(node, events.Seen(other.found()))

    def multicast(self, node: Node, after_s: float, act: Callable[[Node], None]) -> None:
        """An mDNS packet to every node of its site; `act(receiver)` is what it does there."""
        for other in self.nodes.values():
            away = node.site != other.site or (node.name, other.name) in self.blocked
            if other is node or away or node.deaf_until > self.now or self.rng.random() < self.net.loss:
                continue
            delay_s = after_s + self.net.delay_s + self.net.jitter_s * self.rng.random()
            self.at(self.now + delay_s, self._multicast, other, act)

    def _multicast(self, node: Node, act: Callable[[Node], None]) -> None:
        if node.runs and node.deaf_until <= self.now:
            act(node)

    def hears_gateway(self, node: Node) -> bool:
        """The router of its network answers."""
        ways = {(node.name, GATEWAY), (GATEWAY, node.name)}
        return not ways & self.blocked and node.deaf_until <= self.now

    def is_far(self, node: Node, addresses: Sequence[str]) -> bool:
        """None of these addresses is one of its own site."""
        return not any(other.site == node.site and other.address in addresses for other in self.nodes.values())

    def _look(self, _: None, __: None) -> None:
        for checker in self.checkers:
            checker.looked(self)
        self.at(self.now + LOOK_S, self._look, None, None)

    def _deafen_now_and_then(self, node: Node, _: object) -> None:
        net = self.net
        if net.deaf_every_s:
            if self.now > 0.0:
                node.deaf_until = max(node.deaf_until, self.now + self.rng.uniform(*net.deaf_s))
            self.at(self.now + net.deaf_every_s * self.rng.uniform(0.5, 1.5), self._deafen_now_and_then, node, None)

    # What can be seen

    def up(self) -> list[Node]:
        return [n for n in self.nodes.values() if n.up]

    def agreed(self, among: Sequence[Node] | None = None) -> str | None:
        """The one coordinator that all of `among` (default: all that are up) follow, and that itself coordinates.
        Where all have priority 0 nobody can: that is no agreement."""
        nodes = self.up() if among is None else among
        follow = {n.election.coordinator for n in nodes}
        one = follow.pop() if len(follow) == 1 else None
        holds = any(n.id == one and n.election.role is not Role.FOLLOWER for n in nodes)
        return one if one is not None and holds else None

    def whole(self) -> bool:
        """Every node that is up can give work to every other one, and to nobody else."""
        up = self.up()
        return all(n.members == {m.id for m in up} - {n.id} for n in up)

    def say(self, who: Node | str, text: str) -> None:
        if self.transcript is not None:
            name = who if isinstance(who, str) else who.name
            self.transcript.append(f"{self.now:9.3f}  {name:<4} {text}")

    def note(self, node: Node, follow: Follow) -> None:
        """What a node says that it follows."""
        role, coordinator, term, why = follow.role, follow.coordinator, follow.term, follow.why
        if role is Role.COORDINATOR and term > node.takes:
            node.takes = term
            self.takeovers.append(Takeover(self.now, node.name, term, why))
        self.digest = crc32(f"{self.now!r} {node.name} {role} {coordinator} {term} {why}".encode(), self.digest)
        words = {Role.COORDINATOR: "coordinates", Role.ALONE: "is alone", Role.FOLLOWER: f"follows {coordinator}"}
        what = words[role] if coordinator or role is Role.ALONE else "follows nobody"
        self.say(node, f"{what}, term {term}: {why}")

    # Inside

    def _begin(self, node: Node) -> None:
        self._of_boot[node.boot] = node.name
        for checker in self.checkers:
            checker.started(self, node)
        for peer in list(node.disk_peers.values()):
            node.tell(events.Seen(peer))
        for other in node.added:
            far = other.site != node.site
            node.tell(events.Seen(replace(other.found(), boot="", via="static", far=far, added=True)))
        node.title.opened()
        node.elect(said.Tick())
        self._rewake(node)
        self.announce(node)
