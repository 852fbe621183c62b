"""This machine's addresses: which to advertise, in which order, which take multicast, and what is far from here."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

import ifaddr
from msgspec import Struct

_TUNNELS = ("utun", "tun", "wg", "tailscale", "ipsec", "ppp", "zt")  # reach other sites; take no multicast
_PRIVATE_RADIO = ("awdl", "llw", "anpi")  # Apple's device-to-device links: never ours
_VIRTUAL = ("docker", "virbr", "br-", "vmnet")  # networks inside this machine, equal on every machine
_TAILNET = tuple(map(ipaddress.ip_network, ("100.64.0.0/10", "fd7a:115c:a1e0::/48")))

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class Address(Struct, frozen=True, order=True):
    """One address of one interface; `ip` without scope, `prefix` bits of its network."""

    interface: str
    index: int
    ip: str
    prefix: int

    @property
    def parsed(self) -> Ip:
        return ipaddress.ip_address(self.ip)

    @property
    def scoped(self) -> str:
        """As one dials it from here: IPv6 link-local with its interface."""
        return f"{self.ip}%{self.interface}" if self.parsed.is_link_local and self.parsed.version == 6 else self.ip


def read_interfaces() -> tuple[Address, ...]:
    """All addresses of all interfaces now. Takes well under a millisecond."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            found.append(Address(str(adapter.nice_name), adapter.index or 0, text.partition("%")[0], ip.network_prefix))
    return tuple(sorted(found))


def listening(bind: Sequence[str], read: Callable[[], tuple[Address, ...]] = read_interfaces) -> tuple[str, ...]:
    """The addresses that `bind` names: an interface stands for all it has now. What is neither stays as written, for
    the system to refuse."""
    have = read() if bind else ()
    found = [[a.scoped for a in have if a.interface == name] or [name] for name in bind]
    return tuple(dict.fromkeys(address for addresses in found for address in addresses))


class Addresses:
    """The addresses this node uses: all (`bind` empty), or those of the addresses and interfaces that `bind` names."""

    def __init__(self, bind: Sequence[str] = (), read: Callable[[], tuple[Address, ...]] = read_interfaces) -> None:
        self._bind, self._read = frozenset(b.partition("%")[0] for b in bind), read
        self._all = read()

    def refresh(self) -> bool:
        """Reads them anew; True when something changed."""
        before, self._all = self._all, self._read()
        return before != self._all

    def _used(self) -> list[Address]:
        fits = [a for a in self._all if not a.interface.startswith((*_PRIVATE_RADIO, *_VIRTUAL))]
        wildcard = not self._bind or self._bind & {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        if not wildcard:
            fits = [a for a in fits if self._bind & {a.ip, a.interface}]
        others = [a for a in fits if not a.parsed.is_loopback]
        return others or fits  # loopback is for others on this machine only, when there is nothing else

    @property
    def loopback_only(self) -> bool:
        """Nobody outside this machine can reach this node."""
        return all(a.parsed.is_loopback for a in self._used())

    def advertised(self) -> tuple[str, ...]:
        """What peers may dial, best first: LAN, then link-local, then tunnels; IPv4 before IPv6."""
        return tuple(a.scoped for a in sorted(self._used(), key=lambda a: (_worse(a), a)))

    def multicast(self) -> tuple[str, ...]:
        """IPv4 addresses of the interfaces that mDNS uses: never tunnels; loopback only when there is nothing else."""
        return tuple(a.ip for a in self._used() if a.parsed.version == 4 and not a.interface.startswith(_TUNNELS))

    def is_far(self, address: str) -> bool:
        """In none of our networks, so beyond a router or a tunnel. False for what is no address."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if ip.is_loopback or ip.is_link_local:
            return False
        near = (a for a in self._all if not a.interface.startswith(_TUNNELS))
        return not any(ip in ipaddress.ip_network(f"{a.ip}/{a.prefix}", strict=False) for a in near)

    def all_far(self, addresses: Iterable[str]) -> bool:
        """A peer with these addresses is at another site. False when it has none."""
        known = list(addresses)
        return bool(known) and all(self.is_far(a) for a in known)

    def ranked(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """In the order to dial them: near before far, IPv4 before IPv6; otherwise as given. Repeated ones once."""
        return tuple(sorted(dict.fromkeys(addresses), key=lambda a: (self.is_far(a), ":" in a)))


def plain(address: str) -> str:
    """A socket for both families shows an IPv4 caller as ::ffff:192.168.1.5; here it is 192.168.1.5 like everywhere."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped) if mapped else address


def in_tailnet(address: str) -> bool:
    """In Tailscale's ranges (100.64.0.0/10 and its private IPv6 one)."""
    try:
        return any(ipaddress.ip_address(address) in network for network in _TAILNET)
    except ValueError:
        return False


def _worse(address: Address) -> tuple[bool, bool, bool]:
    ip = address.parsed
    tunnel = address.interface.startswith(_TUNNELS) or in_tailnet(address.ip)
    return tunnel, ip.is_link_local, ip.version == 6
