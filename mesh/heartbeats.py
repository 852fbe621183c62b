"""The UDP endpoint of a node: election messages out to members' best addresses, sealed, and in. It decides nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, cast

from msgspec import structs

from election.messages import Message
from mesh.seal import Opened, Refused, Seals
from mesh.settings import HeartbeatSettings
from mesh.wire import WireError, decode_message, encode_message
from node.types import NodeId


@dataclass(slots=True)
class Counts:
    """Datagrams since the start. `dropped_in` is by WireError code or seal.Refused; `dropped_out`: no socket, a full
    buffer, or for no member."""

    received: int = 0
    sent: int = 0
    answered: int = 0  # of those that were received, by what shows that this process is not a former one
    dropped_in: dict[str, int] = field(default_factory=dict)
    dropped_out: int = 0
    errors: int = 0  # the system's: unreachable, refused (ICMP); a silent peer is membership's business


class _Udp(Protocol):
    """What both event loops' datagram transports can do; asyncio's type leaves the buffer out."""

    def sendto(self, data: bytes, addr: tuple[str | int, ...]) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Target:
    addresses: tuple[tuple[str, int], ...]
    answered: tuple[str, int] | None = None
    answered_at: float = 0.0
    since: float = 0.0  # when it was set first
    next_at: float = 0.0  # when one that was never met is spoken to again
    met: bool = False  # it was heard, or linked


class Heartbeats:
    """Opened on the peer port's number. `on_message(message, address)` is called for each that `seals` proves to be its
    sender's and that decodes, address without port; the receiver drops what is not for its mesh. `heard(address)` is
    called before, for any datagram, `on_noise(address, code)` for each that is neither, but those that come twice as
    networks do it."""

    def __init__(
        self,
        *,
        seals: Seals,
        on_message: Callable[[Message, str], None],
        heard: Callable[[str], None] = lambda _: None,
        on_noise: Callable[[str, str], None] = lambda _address, _code: None,
        settings: HeartbeatSettings | None = None,
    ) -> None:
        self._seals, self._heard, self._on_noise = seals, heard, on_noise
        self._on_message, self._settings = on_message, settings or HeartbeatSettings()
        self._targets: dict[NodeId, _Target] = {}
        self._sockets: list[tuple[_Udp, ipaddress.IPv4Address | ipaddress.IPv6Address]] = []
        self._way = lru_cache(self._settings.ways_max)(self._find_way)  # ten times a second to each peer
        self.counts = Counts()

    async def open(self, hosts: Sequence[str], port: int) -> None:
        """Binds each host (an IP address; "0.0.0.0" and "::" for all). Raises OSError, with nothing left open."""
        with ExitStack() as bound:
            sockets = [bound.enter_context(_bound(host, port)) for host in hosts]
            bound.pop_all()
        for host, sock in zip(hosts, sockets, strict=True):
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Endpoint(self), sock=sock)
            self._sockets.append((cast("_Udp", transport), ipaddress.ip_address(host.partition("%")[0])))
        self._way.cache_clear()

    def close(self) -> None:
        """Idempotent; send() then drops."""
        for transport, _ in self._sockets:
            transport.close()
        self._sockets.clear()
        self._way.cache_clear()

    def set_peer(self, node: NodeId, addresses: Sequence[str], peer_port: int) -> None:
        """Where `node` may be reached, best first; what it answered from stays first."""
        targets = tuple((a, peer_port) for a in addresses[: self._settings.addresses_max])
        known = self._targets.get(node)
        if known is None:
            self._targets[node] = _Target(targets, since=asyncio.get_running_loop().time())
        else:
            known.addresses = targets

    def met(self, node: NodeId) -> None:
        """There is a link with it: it is no ghost, though its datagrams may not arrive."""
        if node in self._targets:
            self._targets[node].met = True

    def forget(self, node: NodeId) -> None:
        self._targets.pop(node, None)

    def send(self, message: Message, to: NodeId | None, unheard: Collection[NodeId] = ()) -> None:
        """To one peer, or to all (None), of these more seldom to who was never met; the `unheard` are told that they
        are. Never blocks: what cannot leave now is dropped and counted. Raises WireError(too_large)."""
        data = encode_message(message)
        to_unheard = encode_message(structs.replace(message, deaf=True)) if unheard else data
        now = asyncio.get_running_loop().time()
        for node in tuple(self._targets) if to is None else (to,):
            if (target := self._targets.get(node)) is not None:
                self._say(node, target, to_unheard if node in unheard else data, now, to_all=to is None)

    def _say(self, node: NodeId, target: _Target, data: bytes, now: float, *, to_all: bool) -> None:
        if target.answered and now - target.answered_at < self._settings.answered_s:
            addresses = [target.answered]
        elif to_all and self._unknown(target, now):
            return
        else:
            addresses = list(dict.fromkeys((*target.addresses, *([target.answered] if target.answered else []))))
        sealed = self._seals.seal(node, data)  # one for all addresses: by whichever it comes first, it counts
        if sealed is None:
            self.counts.dropped_out += 1
            return
        for address in addresses:
            self._send(sealed, address)

    def _unknown(self, target: _Target, now: float) -> bool:
        """It was never met, and it is not its turn: anybody may announce any number, at anybody's addresses."""
        s = self._settings
        if target.met or now < target.since + s.unmet_s:
            return False
        if now < target.next_at:
            return True
        target.next_at = now + s.unmet_every_s
        return False

    def _send(self, data: bytes, address: tuple[str, int]) -> None:
        try:
            transport, where = self._way(address)
        except (OSError, ValueError):  # an address this system cannot read, or that nothing here leads to
            self.counts.errors += 1
            return
        if transport is None or transport.get_write_buffer_size() > self._settings.buffer_bytes:
            self.counts.dropped_out += 1
            return
        try:
            transport.sendto(data, where)
        except (OSError, ValueError):  # no route
            self.failed()
            return
        self.counts.sent += 1

    def failed(self) -> None:
        """The system says that a datagram could not be sent: an interface may have got another number."""
        self.counts.errors += 1
        self._way.cache_clear()

    def _find_way(self, address: tuple[str, int]) -> tuple[_Udp | None, tuple[str, int] | tuple[str, int, int, int]]:
        """The socket and what it needs to send there. Raises OSError, ValueError."""
        transport = self._transport(address[0])
        return transport, _sockaddr(address) if transport is not None else address

    def _transport(self, host: str) -> _Udp | None:
        """A socket of the same family; loopback speaks to loopback, a wildcard to all."""
        try:
            wanted = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return None
        fitting = [
            (not bound.is_unspecified, transport)
            for transport, bound in self._sockets
            if bound.version == wanted.version and (bound.is_unspecified or bound.is_loopback == wanted.is_loopback)
        ]
        return min(fitting, key=lambda f: f[0])[1] if fitting else None

    def received(self, data: bytes, address: tuple[str, int]) -> None:
        """One datagram from the network."""
        self._heard(address[0])
        now = asyncio.get_running_loop().time()
        found = self._seals.open(data, now)
        if found.answer is not None:
            self.counts.answered += 1
            self._send(found.answer, address)
        if isinstance(found, Refused):
            self._drop(address[0], found.code, noisy=found.code != "repeated")
        elif found.payload:
            self._take(found, address)
        target = self._targets.get(found.node) if isinstance(found, Opened) else None
        if target is not None:
            target.answered, target.met, target.answered_at = address, True, now

    def _take(self, found: Opened, address: tuple[str, int]) -> None:
        try:
            message = decode_message(found.payload)
        except WireError as error:
            self._drop(address[0], error.code)
            return
        if message.sender != found.node:  # a member that speaks for another
            self._drop(address[0], "forged")
            return
        self.counts.received += 1
        self._on_message(message, address[0])

    def _drop(self, address: str, code: str, *, noisy: bool = True) -> None:
        self.counts.dropped_in[code] = self.counts.dropped_in.get(code, 0) + 1
        if noisy:
            self._on_noise(address, code)


class _Endpoint(asyncio.DatagramProtocol):
    def __init__(self, owner: Heartbeats) -> None:
        self._owner = owner

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        host = str(addr[0])
        if len(addr) == 4 and addr[3] and "%" not in host:  # IPv6 link-local means nothing without its interface
            host = f"{host}%{addr[3]}"
        self._owner.received(data, (host, int(addr[1])))

    def error_received(self, _error: Exception) -> None:
        self._owner.failed()


def any_address() -> tuple[str, ...]:
    """Every address of this machine, of the families it has. Datagrams of other meshes and of strangers are dropped."""
    return ("0.0.0.0", "::") if socket.has_dualstack_ipv6() else ("0.0.0.0",)  # noqa: S104 - see above


def _bound(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket. IPv6 sockets take IPv6 only, so that "::" and "0.0.0.0" go together."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
    sock = socket.socket(info[0], socket.SOCK_DGRAM)
    try:
        if info[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(info[4])
    except BaseException:
        sock.close()
        raise
    return sock


def _sockaddr(address: tuple[str, int]) -> tuple[str, int] | tuple[str, int, int, int]:
    """What the system needs: IPv6 with a scope becomes (host, port, 0, interface number)."""
    host, _, scope = address[0].partition("%")
    if not scope:
        return address
    return host, address[1], 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
