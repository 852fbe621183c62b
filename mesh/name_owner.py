"""The coordinator's host names on the wire: asked for, answered for, moved. mesh/name_rules.py decides."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from mesh.mdns import Mdns
from mesh.name_events import Opened, Said

_GOODBYE_S = 1  # zeroconf gives a goodbye one more second


def hosts_of(mesh: str) -> tuple[str, ...]:
    """The names a coordinator of this mesh owns, the one for people first."""
    if mesh == "default":
        return "mlx-mesh.local.", "coordinator.local."
    label = re.sub(r"[^a-z0-9]+", "-", mesh.lower())[:63].strip("-")  # what DNS and URLs can carry of it
    return (f"{label or 'mlx-mesh-' + hashlib.blake2b(mesh.encode(), digest_size=2).hexdigest()}.local.",)


def fallback_of(mesh_id: str) -> str:
    """The name of a mesh whose usual one another mesh has."""
    return f"mlx-mesh-{mesh_id[:4]}.local."


def published(addresses: Iterable[str]) -> tuple[str, ...]:
    """What stands behind a name: resolvers hand out one address, so only those every client can use. IPv4 if any. What
    is no address is left out."""
    ips = []
    for address in addresses:
        with suppress(ValueError):
            ips.append(ipaddress.ip_address(address.partition("%")[0]))
    good = [ip for ip in ips if not (ip.version == 6 and ip.is_link_local)]
    return tuple(str(ip) for ip in good if ip.version == 4) or tuple(str(ip) for ip in good)


class NameOwner:
    """The names this node answers for. `chosen` is the one for people, "" for none."""

    def __init__(self, mdns: Mdns, ttl_s: int) -> None:
        self._mdns, self._ttl_s = mdns, ttl_s
        self._hosts: tuple[str, ...] = ()
        self._addresses: tuple[str, ...] = ()
        self._tell: Callable[[Opened | Said], None] = lambda _: None
        self._watched: tuple[str, ...] = ()
        self.chosen = ""

    def listen(self, hosts: Sequence[str], tell: Callable[[Opened | Said], None]) -> None:
        """From now on `tell` hears what anybody says of these names, and when mDNS opens (anew)."""
        self._watched, self._tell = tuple(hosts), tell
        if self._mdns.is_open:
            self.opened()

    def deafen(self) -> None:
        """Nobody is told any more."""
        self._tell = lambda _: None

    def opened(self) -> None:
        """mDNS speaks from now on."""
        self._mdns.watch(self._watched, self._heard)
        self._tell(Opened())

    def claim(self, hosts: Sequence[str], addresses: Sequence[str]) -> None:
        """Answers for these names (with their final dot) with these addresses, and for no others."""
        self._mdns.let_go(self._hosts)
        self._hosts, self._addresses = tuple(hosts), tuple(addresses)
        self.chosen = self._hosts[0]
        self._mdns.hold(self._hosts, self._addresses, self._ttl_s)

    def swap(self, old: Sequence[str]) -> None:
        """Goodbye of the old addresses and cache-flush of the new in ONE packet: macOS then switches at once."""
        self._mdns.say(self._hosts, [(address, 0) for address in old] + [(a, self._ttl_s) for a in self._addresses])

    def release(self, *, goodbye: bool) -> None:
        """Answers for no name any more. With a successor say nothing: its own packet does it without a hole."""
        if goodbye:
            self._mdns.say(self._hosts, [(a, 0) for a in self._addresses])
        self._mdns.let_go(self._hosts)
        self._hosts, self._addresses, self.chosen = (), (), ""

    def ask(self, hosts: Sequence[str]) -> None:
        """Who has these names? The answers are told."""
        self._mdns.ask_for(hosts)

    def _heard(self, records: Sequence[tuple[str, str, int]]) -> None:
        self._tell(Said(tuple((host, address, ttl_s > _GOODBYE_S) for host, address, ttl_s in records)))
