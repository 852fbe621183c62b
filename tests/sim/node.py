"""One simulated daemon: the production machines, and a shell that carries their effects as mesh/overlay.py does."""

from __future__ import annotations

from math import inf
from random import Random
from typing import TYPE_CHECKING, TypeAlias

from msgspec.structs import replace

from election import messages as said
from election.messages import Follow, Heard, Remember, Role, Send
from mesh import events
from mesh.membership import Membership
from mesh.wire import PROTOCOL, Hello, PeerSeen
from node.types import NodeId, NodeReport
from tests.sim.title import Title

if TYPE_CHECKING:
    from tests.sim.wires import Dialling, Wire
    from tests.sim.world import World

MESH = "sim"
_FOLLOWER = Role.FOLLOWER
QUEUE_MAX = 400  # about what a socket's buffer holds; the rest is lost

Packet: TypeAlias = tuple[Heard, events.Beat]  # a datagram, as both machines are told of it


class Node:
    """`name` is the machine's, for ever; `id` that of its disk (a clone has another's). What starts with the process
    is made by `boot_up`; the rest outlives it: priority, what is on disk, `home` (its address) and `site`."""

    def __init__(self, world: World, name: str, id_: str, priority: int, site: int = 0) -> None:
        self.world, self.name, self.id, self.priority, self.site = world, name, id_, priority, site
        self.added: list[Node] = []  # by `mesh add`
        self.disk_term, self.disk_peers = 0, dict[str, PeerSeen]()
        self.boots, self.home, self.powered = 0, 0, True
        self.paused_until, self.asleep, self.deaf_until = 0.0, False, 0.0
        self.boot_up()

    def boot_up(self) -> None:
        """A new process: new boot nonce, its clock's zero anywhere, the term and the peers from disk."""
        world, rng = self.world, Random(self.world.rng.getrandbits(32))
        self.boots += 1
        self.boot = f"{self.name}b{self.boots:03}"
        self.up, self.powered, self.leaving = True, True, False
        self.paused_until, self.asleep, self.deaf_until = 0.0, False, 0.0
        self.offset = rng.uniform(0.0, 1e5)
        self.wake_at = inf
        self.spun = 0  # wakes in a row that left something due
        self.queue: list[Packet | events.Event] = []  # what came while it was stalled
        self.wires: dict[str, Wire] = {}
        self.wants: dict[str, Dialling] = {}
        self.last_good: dict[str, str] = {}  # the address of the link before; as in Links, of this process
        self.targets: dict[str, None] = {}  # ids that datagrams go to
        self.routes: list[Node] | None = None  # the processes behind them
        self.members: set[str] = set()  # Up and not Down
        self.reign = said.Reign(-1)  # as the checkers saw it last
        self.takes = self.downs = 0  # its latest reign; how often a member was lost
        self.beat = events.Beat(NodeId(self.id), self.boot)
        self.deaf_beat = events.Beat(NodeId(self.id), self.boot, deaf=True)
        self.hello = Hello(
            id=NodeId(self.id), boot=self.boot, name=self.name, mesh=MESH, mesh_id="", version="0", protocol=PROTOCOL,
            peer_port=4001, port=4000,
        )  # fmt: skip
        self.election = world.election(
            me=self.id, boot=self.boot, mesh=MESH, priority=self.priority, settings=world.settings,
            term=self.disk_term, now=world.now + self.offset, rng=rng,
        )  # fmt: skip
        self.membership = Membership(self.report, mesh_name=MESH, enabled=True)
        self.title = Title(self)
        self.born = world.now

    @property
    def now(self) -> float:
        return self.world.now + self.offset

    @property
    def address(self) -> str:
        return f"{self.name}@{self.home}"

    @property
    def report(self) -> NodeReport:
        return NodeReport(
            id=NodeId(self.id), boot=self.boot, name=self.name, version="0", protocol=PROTOCOL, priority=self.priority,
            uptime_s=0.0, addresses=(self.address,),
        )  # fmt: skip

    @property
    def runs(self) -> bool:
        """It is up and does not stand still."""
        return self.up and self.paused_until <= self.world.now

    def found(self) -> PeerSeen:
        """Its mDNS answer."""
        return PeerSeen(
            id=NodeId(self.id), name=self.name, mesh=MESH, addresses=(self.address,), boot=self.boot, version="0"
        )

    # Events

    def hear(self, packet: Packet) -> None:
        """As Overlay._on_message. Nearly all that ever happens, so nothing is looked at twice."""
        heard, beat = packet
        world, election = self.world, self.election
        world.steps += 2
        now = world.now + self.offset
        shunned = self.membership.shuns(NodeId(heard.message.coordinator or ""))
        effects = [] if shunned else election.step(heard, now)
        if effects or election.reign is not self.reign:
            self._elected(heard, effects)
        elif election.deadline - self.offset < self.wake_at:
            world.wake(self, election.deadline - self.offset)
        if election.role is not _FOLLOWER:
            self.title.heard(heard.message)
        if self.up and (told := self.membership.step(beat, now)):
            self._told(told)

    def elect(self, event: said.Event) -> None:
        """Steps the election."""
        self.world.steps += 1
        self._elected(event, self.election.step(event, self.world.now + self.offset))

    def _elected(self, event: said.Event, effects: list[said.Effect]) -> None:
        world, election = self.world, self.election
        changed = election.reign is not self.reign or type(event) is said.Retune
        for effect in effects:
            match effect:
                case Send(message, to):
                    world.send(self, (Heard(message), self.beat), to)
                case Remember(term):
                    self.disk_term = term
                case Follow():
                    changed = True
                    world.note(self, effect)
                    world.at(world.now, self._ruled, self.boot, effect)
        if changed:
            self.reign = election.reign
            for checker in world.checkers:
                checker.stepped(world, self, event)
        if election.left:
            world.depart(self)
        elif election.deadline - self.offset < self.wake_at:
            world.wake(self, election.deadline - self.offset)

    def _ruled(self, boot: str, follow: Follow) -> None:
        if self.up and self.boot == boot:
            coordinator = NodeId(follow.coordinator) if follow.coordinator else None
            if not self.election.left:
                self.title.rule(follow.role, coordinator)
            self.tell(events.Ruled(coordinator, follow.term, follow.role is Role.ALONE))

    def tell(self, event: events.Event) -> None:
        """Steps membership."""
        self.world.steps += 1
        self._told(self.membership.step(event, self.world.now + self.offset))

    def _told(self, effects: list[events.Effect]) -> None:
        for effect in effects:
            self._perform(effect)
        due = self.membership.deadline
        if due is not None and due - self.offset < self.wake_at:
            self.world.wake(self, due - self.offset)

    def _perform(self, effect: events.Effect) -> None:
        world = self.world
        match effect:
            case events.Known(node, last) | events.Moved(node, last):
                self.elect(said.PeerKnown(node, last))
            case events.Forgotten(node):
                self.targets.pop(node, None)
                self.routes = None
                self.elect(said.PeerForgotten(node))
            case events.Dial(peer, at_once):
                self.targets[peer.id] = None
                self.routes = None
                world.learn(self, peer.id, peer.addresses)
                world.wires.dial(self, peer.id, at_once=at_once)
            case events.HangUp(node, reason):
                world.wires.hang_up(self, node, reason)
            case events.Up(node) | events.Down(node) | events.Gone(node):
                for checker in world.checkers:
                    checker.judged(world, self, effect)
                if isinstance(effect, events.Up):
                    self.members.add(node)
                elif isinstance(effect, events.Down):
                    self.members.discard(node)
                    self.downs += 1
                else:
                    self.elect(said.LinkClosed(node))
            case events.Save():
                self.disk_peers = {p.id: p for p in self.membership.to_keep()}
            case events.Changed():
                self.title.look()

    def tick(self) -> None:
        """All timers that are due (after a stall they are, and go first)."""
        due = self.membership.deadline
        now = self.world.now + self.offset
        if self.election.deadline <= now:
            self.elect(said.Tick())
        if self.up and due is not None and due <= now:
            self.tell(events.Tick())
        if self.up:
            self.title.tick()

    @property
    def spins(self) -> bool:
        """After `tick`: some machine wants to be woken at once again."""
        member = self.membership.deadline
        first = min(self.election.deadline, self.title.deadline)
        return min(first, inf if member is None else member) <= self.now

    def due(self) -> float:
        """When `tick` is due, on the world's clock."""
        member = self.membership.deadline
        first = min(self.election.deadline, self.title.deadline)
        return (first if member is None or first < member else member) - self.offset

    def changed_address(self) -> None:
        """Its addresses were looked at, and there is a new one."""
        self.tell(events.SelfChanged(self.report))
        self.title.opened()

    def take_gossip(self, teller: NodeId, peers: tuple[PeerSeen, ...]) -> None:
        """As Inbox._gossip."""
        beside = self.membership.ranks_last(teller)
        for peer in peers:
            there = beside and not peer.far
            far = there or self.world.is_far(self, peer.addresses)
            if self.up:
                self.tell(events.Seen(replace(peer, via="gossip", far=far, added=peer.added or there)))
