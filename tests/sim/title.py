"""The keeper of the coordinator's names in the simulated world: carries what mesh/name_rules.py decides, over
simulated mDNS, as mesh/title.py and mesh/mdns.py do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from election.messages import Message, Role
from mesh import name_events
from mesh.name_rules import NameRules
from mesh.settings import NameSettings

if TYPE_CHECKING:
    from tests.sim.node import Node

HOSTS = ("mlx-mesh.local.", "coordinator.local.")
FALLBACK = "mlx-mesh-sim0.local."
SETTINGS = NameSettings()
ANSWER_S = 0.02  # mDNS answers of unique records come at once


class Title:
    """`answers`: the names this node answers questions for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._rules = NameRules(node.id, HOSTS, FALLBACK, SETTINGS, node.now)
        self._known: name_events.Known | None = None
        self.answers: tuple[str, ...] = ()

    @property
    def deadline(self) -> float:
        return self._rules.deadline

    def opened(self) -> None:
        self.look()
        self._tell(name_events.Opened())

    def rule(self, role: Role, coordinator: str | None) -> None:
        self.look()
        self._tell(name_events.Ruled(role, coordinator))

    def look(self) -> None:
        node = self._node
        view = node.membership.view()
        nodes = {str(n.report.id): (*n.report.addresses, *n.addresses) for n in view.nodes if n.report.id != node.id}
        known = name_events.Known((node.address,), nodes)
        if known != self._known:
            self._known = known
            self._tell(known)

    def heard(self, message: Message) -> None:
        """A datagram, while this node is no follower."""
        if self._node.election.role is Role.ALONE:
            self._tell(name_events.Foreign(self._node.now))
        elif message.role is not Role.FOLLOWER:
            self._tell(name_events.Rival(message.sender))

    def hear(self, records: tuple[tuple[str, str, bool], ...]) -> None:
        """An mDNS packet."""
        if self._node.election.role is Role.ALONE:
            self._tell(name_events.Foreign(self._node.now))
        self._tell(name_events.Said(records))

    def asked(self, hosts: tuple[str, ...]) -> None:
        """An mDNS question."""
        if self._node.election.role is Role.ALONE:
            self._tell(name_events.Foreign(self._node.now))
        if records := tuple((host, self._node.address, True) for host in hosts if host in self.answers):
            self._node.world.multicast(self._node, ANSWER_S, lambda other: other.title.hear(records))

    def tick(self) -> None:
        if self._rules.deadline <= self._node.now:
            self._tell(name_events.Tick())

    def _tell(self, event: name_events.Event) -> None:
        node = self._node
        world = node.world
        for effect in self._rules.step(event, node.now):
            match effect:
                case name_events.Claim(hosts):
                    self.answers = hosts
                    world.say(node, f"answers for {hosts[0].rstrip('.')}")
                case name_events.Swap(hosts, old):
                    records = (
                        *((host, address, False) for host in hosts for address in old),
                        *((host, node.address, True) for host in hosts),
                    )
                    world.multicast(node, 0.0, lambda other, records=records: other.title.hear(records))
                case name_events.Release(why):
                    self.answers = ()
                    world.say(node, f"answers for {HOSTS[0].rstrip('.')} no more: {why}")
                case name_events.Ask(hosts):
                    world.multicast(node, 0.0, lambda other, hosts=hosts: other.title.asked(hosts))
                case name_events.AskGateway():
                    if world.hears_gateway(node):
                        world.at(world.now + 0.001, self._gateway, node, node.boot)
        if self._rules.deadline - node.offset < node.wake_at:
            world.wake(node, self._rules.deadline - node.offset)

    def _gateway(self, node: Node, boot: str) -> None:
        if node.runs and node.boot == boot:
            self._tell(name_events.GatewayAnswered())
