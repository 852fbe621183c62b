"""What we use of python-zeroconf: one service of ours, a browser for others', and host names held for a while. The only
zeroconf import; it decides nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import zeroconf
from msgspec import Struct
from zeroconf import (  # type: ignore[attr-defined]  # they are there, but not in __all__
    DNSAddress,
    DNSOutgoing,
    DNSQuestion,
    DNSQuestionType,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    ServiceListener,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

SERVICE = "_mlx-stack._tcp.local."
_NAME_SERVICE = "_mlx-mesh._tcp.local."  # never announced: it only lets zeroconf answer questions for the name
_QUERY, _ANSWER = 0x0000, 0x8400  # RFC 6762 section 18: QR and AA bits
_PTR, _A, _AAAA, _IN, _FLUSH = 12, 1, 28, 1, 0x8000

MdnsError = zeroconf.Error
Record: TypeAlias = tuple[str, str, int]  # host name, address, seconds it holds; 1 or less is a goodbye


class Service(Struct, frozen=True, kw_only=True):
    """An instance of our service, as announced: `name` is the instance alone."""

    name: str
    port: int
    txt: Mapping[str, str | None]
    addresses: tuple[str, ...]


class Mdns:
    """One responder and browser on some interfaces, from `open()` to `close()`. `open` again moves it to others.
    `admits(source, bytes)` says whether to read a datagram from that address."""

    def __init__(self, instance: str, admits: Callable[[str, int], bool] = lambda _source, _size: True) -> None:
        self._instance, self._admits = instance, admits
        self._zc: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._watcher: _Watcher | None = None

    @property
    def is_open(self) -> bool:
        return self._zc is not None

    async def open(self, interfaces: Sequence[str], service: Service) -> None:
        """Listens on these addresses (IPv6 link-local ones with scope) and announces `service`; when open already,
        moves there and announces anew: a flap with the same address announces nothing by itself.
        Raises OSError, MdnsError."""
        where = [_interface(address) for address in interfaces]
        version = IPVersion.All if any(isinstance(i, int) for i in where) else IPVersion.V4Only
        zc = self._zc
        if zc is None:
            zc = self._zc = AsyncZeroconf(interfaces=where, ip_version=version)
            await zc.zeroconf.async_wait_for_start()
            self._guard(zc)
            await zc.async_register_service(_info(service), cooperating_responders=True)
        else:
            await zc.async_update_interfaces(interfaces=where, ip_version=version)
            self._guard(zc)
            await zc.async_update_service(_info(service))
        if self._zc is not zc:
            raise MdnsError("closed while it was opened")

    def _guard(self, zc: AsyncZeroconf) -> None:
        """Puts the gate before every socket that zeroconf reads: it would parse and keep whatever anybody sends."""
        for reader in zc.zeroconf.engine.readers:
            protocol: Any = reader.transport.get_protocol()  # zeroconf's own class, of no asyncio base
            if not isinstance(protocol, _Gate):
                reader.transport.set_protocol(_Gate(protocol, self._admits))

    @property
    def came_back(self) -> bool:
        """Our own announcement was heard here."""
        own = f"{self._instance}.{SERVICE}"
        return self._zc is not None and bool(self._zc.zeroconf.cache.async_entries_with_name(own))

    async def announce(self, service: Service) -> None:
        """Says what is new of our service: three times within half a second."""
        assert self._zc is not None
        await self._zc.async_update_service(_info(service))

    async def browse(self, on_seen: Callable[[str], None]) -> None:
        """Calls `on_seen(instance)` for each other instance that appears or changes; asks for all of them anew. Raises
        MdnsError."""
        assert self._zc is not None
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zc is None:
            raise MdnsError("closed while it was opened")
        # QM: several daemons may share port 5353 on this machine, and a unicast answer would reach only one of them.
        listener = _Listener(lambda name: on_seen(name.removesuffix(f".{SERVICE}")))
        self._browser = AsyncServiceBrowser(
            self._zc.zeroconf, SERVICE, listener=listener, question_type=DNSQuestionType.QM
        )

    def known(self, instance: str) -> Service | None:
        """What is known of an instance without asking; None when that is not all of it."""
        info = self._other(instance)
        return _service(info) if self._zc and info and info.load_from_cache(self._zc.zeroconf) else None

    async def ask(self, instance: str, timeout_s: float) -> Service | None:
        """Asks the network for an instance; None when nothing answered in time."""
        info = self._other(instance)
        if self._zc is None or info is None:
            return None
        with suppress(OSError, zeroconf.Error):
            if await info.async_request(self._zc.zeroconf, timeout_s * 1000, DNSQuestionType.QM):
                return _service(info)
        return None

    async def close(self, *, goodbye: bool = True) -> None:
        """Says goodbye for our service, unless without, and closes everything."""
        zc, self._zc, self._browser, self._watcher = self._zc, None, None, None
        if zc is not None and not goodbye:
            zc.zeroconf.registry.async_remove(zc.zeroconf.registry.async_get_service_infos())
        if zc is not None:
            with suppress(OSError, zeroconf.Error):
                await zc.async_unregister_all_services()
                await zc.async_close()

    @staticmethod
    def _other(instance: str) -> AsyncServiceInfo | None:
        try:
            return AsyncServiceInfo(SERVICE, f"{instance}.{SERVICE}")
        except zeroconf.Error:
            return None

    # Host names

    def watch(self, hosts: Collection[str], heard: Callable[[Sequence[Record]], None]) -> None:
        """From now on `heard` gets the address records of each packet about these names, our own too. Again is anew."""
        if self._zc is None:
            return
        if self._watcher is not None:
            self._zc.zeroconf.async_remove_listener(self._watcher)
        self._watcher = _Watcher(frozenset(hosts), heard)
        self._zc.zeroconf.async_add_listener(self._watcher, None)

    def ask_for(self, hosts: Collection[str]) -> None:
        """Asks who has these names."""
        out = DNSOutgoing(_QUERY)
        for host in hosts:
            out.add_question(DNSQuestion(host, _A, _IN))
        if self._zc is not None:
            self._zc.zeroconf.async_send(out)

    def hold(self, hosts: Sequence[str], addresses: Sequence[str], ttl_s: int) -> None:
        """Answers for these names from now on. Straight into zeroconf's list of what it answers for: its own
        announcements would repeat old addresses."""
        if self._zc is None:
            return
        self.let_go(hosts)
        for host in hosts:
            label = f"{self._instance}-{host.split('.', maxsplit=1)[0]}"[:63]
            self._zc.zeroconf.registry.async_add(
                ServiceInfo(
                    _NAME_SERVICE,
                    f"{label}.{_NAME_SERVICE}",
                    port=1,
                    properties={},
                    server=host,
                    host_ttl=ttl_s,
                    parsed_addresses=list(addresses),
                )
            )

    def let_go(self, hosts: Sequence[str]) -> None:
        """Answers for these names no more. Also takes back answers that zeroconf holds for up to 1.1 s (it says a
        record once a second at most): sent after the loss, one of them would steal the name back."""
        if self._zc is None:
            return
        zc = self._zc.zeroconf
        zc.registry.async_remove([info for host in hosts for info in zc.registry.async_get_infos_server(host.lower())])
        for waiting in (zc.out_queue, zc.out_delay_queue):
            for group in waiting.queue:
                for record in [r for r in group.answers if r.name in hosts]:
                    del group.answers[record]

    def say(self, hosts: Sequence[str], records: Sequence[tuple[str, int]]) -> None:
        """One packet: each name has each of these (address, TTL in seconds); TTL 0 is a goodbye, others replace what
        was known."""
        if self._zc is None or not records:
            return
        out = DNSOutgoing(_ANSWER)
        for host in hosts:
            for address, ttl in records:
                ip = ipaddress.ip_address(address)
                kind = _A if ip.version == 4 else _AAAA
                out.add_answer_at_time(DNSAddress(host, kind, _IN | (_FLUSH if ttl else 0), ttl, ip.packed), 0)
        self._zc.zeroconf.async_send(out)


class _Gate(asyncio.DatagramProtocol):
    """Between a socket and zeroconf."""

    def __init__(self, behind: Any, admits: Callable[[str, int], bool]) -> None:
        self._behind, self._admits = behind, admits

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        if self._admits(str(addr[0]), len(data)):
            self._behind.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._behind.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._behind.connection_lost(exc)


class _Listener(ServiceListener):
    """A goodbye or an expiry says nothing about who lives, so it is not passed on."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        self._seen = seen

    def add_service(self, _zc: zeroconf.Zeroconf, _type: str, name: str) -> None:
        self._seen(name)

    def update_service(self, _zc: zeroconf.Zeroconf, _type: str, name: str) -> None:
        self._seen(name)

    def remove_service(self, _zc: zeroconf.Zeroconf, _type: str, name: str) -> None:
        pass


class _Watcher(RecordUpdateListener):
    def __init__(self, hosts: frozenset[str], heard: Callable[[Sequence[Record]], None]) -> None:
        self._hosts, self._heard = hosts, heard

    def async_update_records(self, _zc: zeroconf.Zeroconf, _now: float, updates: list[RecordUpdate]) -> None:
        records = [
            (update.new.name.lower(), str(ipaddress.ip_address(update.new.address)), int(update.new.ttl))
            for update in updates
            if isinstance(update.new, DNSAddress) and update.new.name.lower() in self._hosts
        ]
        if records:
            self._heard(records)


def _info(service: Service) -> AsyncServiceInfo:
    return AsyncServiceInfo(
        SERVICE,
        f"{service.name}.{SERVICE}",
        port=service.port,
        properties=dict(service.txt),
        server=f"mlx-stack-{service.name}.local.",
        parsed_addresses=list(service.addresses),
    )


def _service(info: AsyncServiceInfo) -> Service | None:
    """None for bytes that are no text: none of ours."""
    try:
        return Service(
            name=info.name.removesuffix(f".{SERVICE}"),
            port=info.port or 0,
            txt=info.decoded_properties,
            addresses=tuple(info.parsed_addresses()),
        )
    except ValueError:
        return None


def _interface(address: str) -> str | int:
    """As zeroconf wants it: an IPv4 address, or the number of an IPv6 interface. Raises OSError."""
    _, _, scope = address.partition("%")
    return socket.if_nametoindex(scope) if scope else address


def send_question(address: str) -> None:
    """Asks for our service by multicast from this address (IPv6 with scope). Raises OSError as the system says it."""
    out = DNSOutgoing(_QUERY)
    out.add_question(DNSQuestion(SERVICE, _PTR, _IN))
    where = _interface(address)
    if isinstance(where, int):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, where)
            sock.sendto(out.packets()[0], ("ff02::fb", 5353, 0, where))
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        sock.sendto(out.packets()[0], ("224.0.0.251", 5353))
