"""Holding the coordinator's host names over mDNS. Last announcer wins there, so whoever lost a name never announces it
again."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
from collections.abc import Collection, Sequence

from mesh.mdns import Mdns
from mesh.settings import DiscoverySettings


def hosts_of(mesh: str) -> tuple[str, ...]:
    """The names a coordinator of this mesh owns, the one for people first."""
    if mesh == "default":
        return "mlx-mesh.local.", "coordinator.local."
    label = re.sub(r"[^a-z0-9]+", "-", mesh.lower())[:63].strip("-")  # what DNS and URLs can carry of it
    return (f"{label or 'mlx-mesh-' + hashlib.blake2b(mesh.encode(), digest_size=2).hexdigest()}.local.",)


class NameOwner:
    """The names this node holds: claimed, announced, answered for, let go. `chosen` is the one for people."""

    def __init__(self, mdns: Mdns, settings: DiscoverySettings) -> None:
        self._mdns, self._settings = mdns, settings
        self._hosts: tuple[str, ...] = ()
        self._addresses: tuple[str, ...] = ()
        self._timers: list[asyncio.TimerHandle] = []
        self.chosen = ""

    async def claim(
        self,
        hosts: Sequence[str],
        addresses: Sequence[str],
        *,
        old_addresses: Sequence[str] = (),
        ours: Collection[str] = (),
        fallback: str = "",
    ) -> str:
        """Takes the names (with their final dot) for these addresses, and returns the one for people.

        `old_addresses` are the previous owner's, `ours` those of all nodes of this mesh. A name that somebody else
        answers for is left to them, the first one in favour of `fallback`. Returns "" when no name could be had.
        """
        friends = {*addresses, *old_addresses, *ours}
        taken = await self._strangers(hosts, friends, quick=bool(old_addresses))
        held = [host for host in hosts if host not in taken]
        if hosts[0] in taken and fallback:
            held.insert(0, fallback)
        self._drop(goodbye=False)
        if not held or not addresses:
            return ""
        self._hosts, self._addresses = tuple(held), _published(addresses)
        self.chosen = held[0] if held[0] in (hosts[0], fallback) else ""
        self._mdns.hold(self._hosts, self._addresses, self._settings.name_ttl_s)
        gone = [a for a in _published(old_addresses) if a not in self._addresses]
        self._swap(gone)
        later = asyncio.get_running_loop().call_later
        self._timers = [later(at, self._swap, gone) for at in self._settings.swap_at_s if at > 0]
        return self.chosen

    def release(self, *, goodbye: bool) -> None:
        """Answers for the names no more. With a successor say nothing: its own packet does it without a hole."""
        self._drop(goodbye=goodbye)

    def restore(self) -> None:
        """After sockets were opened anew: holds and announces again what it held."""
        if self._hosts:
            self._mdns.hold(self._hosts, self._addresses, self._settings.name_ttl_s)
            self._swap([])

    async def _strangers(self, hosts: Sequence[str], friends: set[str], *, quick: bool) -> set[str]:
        """Names that an address outside `friends` answers for now. `quick`: only if the cache gives cause to ask."""
        mdns = self._mdns
        if not mdns.is_open or (quick and not any(mdns.addresses_of(host) - friends for host in hosts)):
            return set()
        asked_at = mdns.ask_for(hosts)
        await asyncio.sleep(self._settings.name_question_s)
        return {host for host in hosts if mdns.addresses_of(host, asked_at) - friends}

    def _swap(self, old: Sequence[str]) -> None:
        """Goodbye of the old address and cache-flush of the new in ONE packet: macOS then switches at once."""
        ttl_s = self._settings.name_ttl_s
        self._mdns.say(self._hosts, [(address, 0) for address in old] + [(a, ttl_s) for a in self._addresses])

    def _drop(self, *, goodbye: bool) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if goodbye:
            self._mdns.say(self._hosts, [(a, 0) for a in self._addresses])
        self._mdns.let_go(self._hosts)
        self._hosts, self._addresses, self.chosen = (), (), ""


def _published(addresses: Sequence[str]) -> tuple[str, ...]:
    """What stands behind a name: resolvers hand out one address, so only those every client can use. IPv4 if any."""
    ips = [ipaddress.ip_address(a.partition("%")[0]) for a in addresses]
    good = [ip for ip in ips if not (ip.version == 6 and ip.is_link_local)]
    return tuple(str(ip) for ip in good if ip.version == 4) or tuple(str(ip) for ip in good)
