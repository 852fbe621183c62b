"""This machine's addresses: which to advertise, in which order, which take multicast, and what is far from here."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice

import ifaddr
from msgspec import Struct

from mesh import interfaces
from mesh.interfaces import TUNNELS, Kind

_PRIVATE_RADIO = ("awdl", "llw", "anpi")  # Apple's device-to-device links: never ours
# Networks inside this machine, equal on every machine; bridge100 and on are macOS's for virtual machines.
_VIRTUAL = ("docker", "virbr", "br-", "veth", "cni", "vmnet", "vmenet", "bridge10")
_SCOPES_MAX = 3  # interfaces on which a link-local address is tried
_TOLD_MAX = 64  # addresses of one machine that are listened to
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
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        return ipaddress.ip_network(f"{self.ip}/{self.prefix}", strict=False)

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

    def __init__(
        self,
        bind: Sequence[str] = (),
        read: Callable[[], tuple[Address, ...]] = read_interfaces,
        kinds: Callable[[Collection[str]], Mapping[str, Kind]] = interfaces.kinds,
    ) -> None:
        self._bind, self._read, self._look_up = frozenset(b.partition("%")[0] for b in bind), read, kinds
        self._all = read()
        self._used = self._those_used()
        self._kinds: dict[str, Kind] = {}

    def refresh(self) -> bool:
        """Reads them anew; True when those in use have changed."""
        self._all, before = self._read(), self._used
        self._used = self._those_used()
        return before != self._used

    @property
    def strange(self) -> bool:
        """There are interfaces that `learn` was not asked about."""
        return not {a.interface for a in self._used} <= self._kinds.keys()

    def learn(self) -> None:
        """Finds out what kind of interface each is. Waits for the system: call it in a thread."""
        names = {a.interface for a in self._used}
        self._kinds = {**dict.fromkeys(names, Kind.ETHERNET), **self._look_up(names)}

    def _those_used(self) -> tuple[Address, ...]:
        fits = [a for a in self._all if not a.interface.startswith((*_PRIVATE_RADIO, *_VIRTUAL))]
        wildcard = not self._bind or self._bind & {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        if not wildcard:
            fits = [a for a in fits if self._bind & {a.ip, a.interface}]
        others = [a for a in fits if not a.parsed.is_loopback]
        return tuple(others or fits)  # loopback is for others on this machine only, when there is nothing else

    def uses(self, index: int) -> bool:
        """The interface of this number has an address in use."""
        return any(a.index == index for a in self._used)

    @property
    def mine(self) -> frozenset[str]:
        """Every address of this machine, without scope."""
        return frozenset(a.ip for a in self._all)

    @property
    def loopback_only(self) -> bool:
        """Nobody outside this machine can reach this node."""
        return all(a.parsed.is_loopback for a in self._used)

    def owns(self, address: str) -> bool:
        """It is an address of this machine."""
        ip = plain(address.partition("%")[0])
        return any(a.ip == ip for a in self._all)

    def advertised(self) -> tuple[str, ...]:
        """What peers may dial, best first: Thunderbolt, Ethernet, Wi-Fi, tunnels; link-local later, IPv4 before IPv6.
        Without scope: this machine's names of its interfaces mean nothing elsewhere."""
        return tuple(a.ip for a in sorted(self._used, key=self._worse))

    def multicast(self) -> tuple[str, ...]:
        """Where mDNS speaks, an address for each interface: never tunnels; loopback only when there is nothing else.
        IPv4; where this machine has none at all, link-local IPv6 addresses with scope."""
        open_ = [a for a in self._used if self._kind(a.interface) is not Kind.VPN]
        v4 = tuple(a.ip for a in open_ if a.parsed.version == 4)
        return v4 or tuple({a.interface: a.scoped for a in open_ if a.parsed.is_link_local}.values())

    def is_far(self, address: str) -> bool:
        """In none of our networks, so beyond a router or a tunnel. False for what is no address."""
        return self._rank(address) is Kind.VPN

    def all_far(self, addresses: Iterable[str]) -> bool:
        """A peer with these addresses is at another site. False when it has none."""
        known = list(addresses)
        return bool(known) and all(self.is_far(a) for a in known)

    def ranked(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """In the order to dial them: by the kind of this machine's interface that leads there, IPv4 before IPv6;
        otherwise as given. Repeated ones once; a link-local one without scope on each interface that has such."""
        here = [dialled for a in addresses for dialled in self._scoped(a)]
        return tuple(sorted(dict.fromkeys(here), key=lambda a: (self._rank(a), ":" in a)))

    def local(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Addresses that another machine told of: link-local ones get a scope of this machine, the others stay; what is
        no address, and what is more than anybody has, is left out."""
        told = [bare for a in islice(addresses, _TOLD_MAX) if _is_address(bare := a.partition("%")[0])]
        return tuple(dict.fromkeys(here for bare in told for here in self._scoped(bare)))

    def _scoped(self, address: str) -> list[str]:
        if "%" in address or not address.lower().startswith("fe80:"):
            return [address]
        own = {a.interface: a for a in self._used if a.parsed.is_link_local and a.parsed.version == 6}
        names = sorted(own, key=lambda name: (self._kind(name), name))
        return [f"{address}%{name}" for name in names if self._kind(name) is not Kind.VPN][:_SCOPES_MAX]

    def _rank(self, address: str) -> Kind:
        bare, _, scope = address.partition("%")
        try:
            ip = ipaddress.ip_address(bare)
        except ValueError:
            return Kind.ETHERNET
        if ip.is_loopback:
            return Kind.THUNDERBOLT  # nothing is nearer
        if ip.version == 6 and ip.is_link_local:
            name = next((a.interface for a in self._all if scope in (a.interface, str(a.index))), scope)
            return min(self._kind(name), Kind.SLOW)
        near = [self._kind(a.interface) for a in self._all if ip in a.network]
        unknown = Kind.SLOW if ip.is_link_local else Kind.VPN
        return min((kind for kind in near if kind is not Kind.VPN), default=unknown)

    def _kind(self, interface: str) -> Kind:
        known = self._kinds.get(interface)
        return known if known is not None else Kind.VPN if is_tunnel(interface) else Kind.ETHERNET

    def _worse(self, address: Address) -> tuple[Kind, bool, bool, Address]:
        ip = address.parsed
        kind = Kind.VPN if in_tailnet(address.ip) else self._kind(address.interface)
        return kind, ip.is_link_local, ip.version == 6, address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """It leads to this machine itself. False for what is no address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_tunnel(interface: str) -> bool:
    """It leads to other sites, and takes no multicast."""
    return interface.startswith(TUNNELS)


@lru_cache(1024)  # asked of every datagram
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
