"""The coordinator's host names at work: what the rules must know, what they decide, what a person should know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import assert_never

from election.messages import Role
from mesh import clock, gateway, name_events
from mesh.addresses import Addresses
from mesh.driver import Driver
from mesh.log import event as log_event
from mesh.name_owner import NameOwner, fallback_of, hosts_of, published
from mesh.name_rules import NameRules
from mesh.settings import NameSettings
from node.types import NodeId
from router.view import View

_OFTEN_S = 0.05  # one datagram shows as much as a hundred

_log = logging.getLogger("mesh.name")


class Title:
    """Drives name_rules for one stay in a mesh. `name` is the one held for people, "" for none; `changed` is called
    when it may differ; `failed` as Driver's."""

    def __init__(
        self,
        owner: NameOwner,
        addresses: Addresses,
        view: Callable[[], View],
        *,
        changed: Callable[[], None],
        failed: Callable[[Exception], None],
        settings: NameSettings | None = None,
    ) -> None:
        self._owner, self._addresses, self._view, self._changed = owner, addresses, view, changed
        self._settings = settings or NameSettings()
        mesh = view()
        self._hosts, fallback = hosts_of(mesh.mesh_name), fallback_of(mesh.mesh_id)
        self._rules = NameRules(mesh.self_id, self._hosts, fallback, self._settings, clock.now())
        self._held: tuple[str, ...] = ()  # as it was told last
        self._driver: Driver[name_events.Event, name_events.Effect] = Driver(
            self._rules, name_events.Tick(), self._perform, failed=failed, stepped=self._stepped
        )
        self._role, self._heard_at, self._closed = Role.FOLLOWER, 0.0, False
        self._known: name_events.Known | None = None
        self._ask_gateway = asyncio.Event()
        owner.listen((*self._hosts, fallback), self._on_mdns)

    async def run(self) -> None:
        """Asks the gateway when that is wanted. Until cancelled."""
        self.look()
        while True:
            await self._ask_gateway.wait()
            self._ask_gateway.clear()
            # On loopback nobody is deaf.
            if self._addresses.loopback_only or await gateway.answers(self._settings.gateway_s):
                self._driver.tell(name_events.GatewayAnswered())

    def close(self) -> None:
        """Nothing is decided any more, and what is held is the owner's to release."""
        self._closed = True
        self._driver.close()
        self._owner.deafen()

    @property
    def name(self) -> str:
        return self._owner.chosen

    # What it is told

    def rule(self, role: Role, coordinator: NodeId | None) -> None:
        """What the election says now."""
        self._role = role
        self.look()
        self._driver.tell(name_events.Foreign(self._heard_at))
        self._driver.tell(name_events.Ruled(role, coordinator))
        self._changed()

    def look(self) -> None:
        """The nodes of this mesh, or an address, may have changed."""
        nodes = {n.report.id: published((*n.report.addresses, *n.addresses)) for n in self._view().nodes}
        mine = published(self._addresses.advertised())
        known = name_events.Known(mine, {node: a for node, a in nodes.items() if node != self._view().self_id and a})
        if known != self._known:
            self._known = known
            self._driver.tell(known)

    def rival(self, node: NodeId) -> None:
        """That node of this mesh says that it coordinates, or is alone."""
        if self._role is Role.COORDINATOR:
            self._driver.tell(name_events.Rival(node))

    def heard(self, address: str) -> None:
        """A datagram came from this address, on the mesh's port or over mDNS."""
        now = clock.now()
        if now - self._heard_at < _OFTEN_S or self._addresses.owns(address):
            return
        self._heard_at = now
        if self._role is Role.ALONE:
            self._driver.tell(name_events.Foreign(now))

    def notes(self, name: str) -> list[str]:
        """What a person should know; `name` is the one that the mesh's URL shows."""
        plain = self._hosts[0].rstrip(".")
        if self._rules.deaf(clock.now()) and not self._addresses.loopback_only:
            why = f"nothing is heard from this network, so {plain} is left to others"
            return [f"{why}: check this node's cable or Wi-Fi"]
        if name != plain:
            return [f"another mesh here has {plain}: this one is at {name}, or give it another `mesh-name`"]
        return []

    # What it does

    def _on_mdns(self, event: name_events.Event) -> None:
        if isinstance(event, name_events.Opened):
            self.look()
        self._driver.tell(event)

    def _perform(self, effect: name_events.Effect) -> None:
        if self._closed:
            return
        match effect:
            case name_events.Claim(hosts):
                assert self._known is not None
                self._owner.claim(hosts, self._known.mine)
            case name_events.Swap(_, old):
                self._owner.swap(old)
            case name_events.Release(why):
                self._owner.release(goodbye=False)
                log_event(_log, logging.INFO, "name", f"answers for {_shown(self._held)} no more: {why}")
            case name_events.Ask(hosts):
                self._owner.ask(hosts)
            case name_events.AskGateway():
                self._ask_gateway.set()
            case _:
                assert_never(effect)

    def _stepped(self) -> None:
        """The packets are out: now those who hear of it."""
        if self._rules.held == self._held:
            return
        self._held = self._rules.held
        if self._held and self._known:
            text = f"answers for {_shown(self._held)} with {', '.join(self._known.mine)}"
            log_event(_log, logging.INFO, "name", text)
        self._changed()


def _shown(hosts: tuple[str, ...]) -> str:
    return ", ".join(host.rstrip(".") for host in hosts)
