"""mDNS: advertise this node, browse for others, and hold the coordinator's name. The only zeroconf import.

Finding only: what disappears here may live, and what is still listed may be dead (a crashed node stays for 19 minutes).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import zeroconf
from zeroconf import DNSAddress, DNSOutgoing, DNSQuestion, DNSQuestionType, IPVersion, ServiceInfo, ServiceListener  # type: ignore[attr-defined]  # there, but not in __all__
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh.addresses import Addresses
from mesh.advert import Advert, Txt, seen_of
from mesh.settings import DiscoverySettings
from mesh.wire import PeerSeen

__all__ = ["SERVICE", "Advert", "Discovery", "NameOwner", "hosts_of", "multicast_problem"]

SERVICE = "_mlx-stack._tcp.local."
_NAME_SERVICE = "_mlx-mesh._tcp.local."  # never announced: it only lets zeroconf answer questions for the name
_QUERY, _ANSWER = 0x0000, 0x8400  # RFC 6762 section 18: QR and AA bits
_PTR, _A, _AAAA, _IN, _FLUSH = 12, 1, 28, 1, 0x8000
_log = logging.getLogger(__name__)


def hosts_of(mesh: str) -> tuple[str, ...]:
    """The names a coordinator of this mesh owns, the one for people first."""
    if mesh == "default":
        return "mlx-mesh.local.", "coordinator.local."
    label = re.sub(r"[^a-z0-9]+", "-", mesh.lower())[:63].strip("-")  # what DNS and URLs can carry of it
    return (f"{label or 'mlx-mesh-' + hashlib.blake2b(mesh.encode(), digest_size=2).hexdigest()}.local.",)


class Discovery:
    """`run()` advertises and browses until cancelled; `on_found` is called synchronously for each node of any mesh that
    is seen or changes. `problem` says why others cannot be found now ("" when they can)."""

    def __init__(
        self,
        me: str,
        *,
        on_found: Callable[[PeerSeen], None],
        addresses: Addresses,
        settings: DiscoverySettings | None = None,
    ) -> None:
        self._me, self._on_found, self._addresses = me, on_found, addresses
        self._settings = settings or DiscoverySettings()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._group: asyncio.TaskGroup | None = None
        self._advert: Advert | None = None
        self._closed = False
        self._interfaces: tuple[str, ...] = ()
        self._sent: Txt = {}
        self._sent_at = 0.0
        self._news = asyncio.Event()  # the role changed, or the interfaces should be looked at now
        self._asking: set[str] = set()
        self._peer_hosts: dict[str, str] = {}
        self._retry_at = 0.0
        self.problem = ""
        self.name = NameOwner(lambda: self._zeroconf, me, self._settings)

    async def run(self, advert: Advert) -> None:
        """Until cancelled. Without multicast it says so in `problem` and keeps trying slowly."""
        self._advert = advert
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                try:
                    await self._attend()
                except (OSError, zeroconf.Error) as error:
                    self._problem(f"mDNS does not work: {error}")
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s()):
                        await self._news.wait()

    def update(self, advert: Advert) -> None:
        """The facts to advertise from now on. Said at most every update_every_s; a change of role at once."""
        if self._closed:  # or it would open and announce everything anew
            return
        before, self._advert = self._advert, advert
        if before is None or (before.role, before.host) != (advert.role, advert.host):
            self._news.set()

    def refresh(self) -> None:
        """The link-up routine: after wake, a new address or a take-over. Announces anew and browses anew."""
        self._addresses.refresh()
        self._interfaces = ()
        self._news.set()

    async def close(self, *, successor: bool) -> None:
        """Says goodbye, the name's only without a `successor`. Afterwards run() is to be cancelled."""
        self.name.release(goodbye=not successor)
        self._closed, self._advert = True, None
        await self._shut()

    def name_of_mesh(self, mesh: str) -> str:
        """The host name of the mesh's URL: what this node or the coordinator says it holds, else the usual one."""
        held = self.name.chosen or next(iter(self._peer_hosts.values()), "")
        return (held or hosts_of(mesh)[0]).rstrip(".")

    # Advertising

    async def _attend(self) -> None:
        """One look at what should be: sockets open on the present interfaces, the present facts advertised."""
        if self._advert is None:
            return
        changed = self._addresses.refresh()
        if self._zeroconf is None and self.problem and not changed and _now() < self._retry_at:
            return
        interfaces = self._addresses.multicast()
        if not interfaces:
            self._problem("no network interface with an IPv4 address: no other node can be found")
            self._interfaces = ()
            return
        due_again = bool(self.problem) and _now() >= self._retry_at
        if self._zeroconf is None or due_again or changed or interfaces != self._interfaces:
            self._problem(multicast_problem(interfaces))
            await self._open(interfaces)
        elif self._txt_due_s() <= 0.0:
            await self._zeroconf.async_update_service(self._info())

    async def _open(self, interfaces: tuple[str, ...]) -> None:
        if self._zeroconf is None:
            self._zeroconf = AsyncZeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)
            await self._zeroconf.zeroconf.async_wait_for_start()
            info = self._info()
            await self._zeroconf.async_register_service(info, cooperating_responders=True)
        else:
            await self._zeroconf.async_update_interfaces(interfaces=list(interfaces))
            await self._zeroconf.async_update_service(
                self._info()
            )  # a flap with the same address announces nothing by itself
        self._interfaces = interfaces
        self.name.restore()
        if self._browser is not None:
            await self._browser.async_cancel()
        # QM: several daemons may share port 5353 on this machine, and a unicast answer would reach only one of them.
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE, listener=_Listener(self._found), question_type=DNSQuestionType.QM
        )

    def _info(self) -> AsyncServiceInfo:
        assert self._advert is not None
        self._sent, self._sent_at = self._advert.txt(), _now()
        return AsyncServiceInfo(
            SERVICE,
            f"{self._me}.{SERVICE}",
            port=self._advert.port,
            properties=dict(self._sent),
            server=f"mlx-stack-{self._me}.local.",
            parsed_addresses=[a.partition("%")[0] for a in self._addresses.advertised()],
        )

    def _txt_due_s(self) -> float:
        """Seconds until the present facts may be said; infinite when they are said already."""
        if self._advert is None or self._zeroconf is None:
            return float("inf")
        txt, s = self._advert.txt(), self._settings
        if txt == self._sent:
            return float("inf")
        urgent = (txt["st"], txt.get("n")) != (self._sent["st"], self._sent.get("n"))
        return self._sent_at + (s.update_at_least_s if urgent else s.update_every_s) - _now()

    def _pause_s(self) -> float:
        return max(0.01, min(self._settings.interfaces_every_s, self._txt_due_s()))

    def _problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.warning("%s", problem)
        self.problem = problem
        if problem:
            self._retry_at = _now() + self._settings.retry_s

    async def _shut(self) -> None:
        zc, self._zeroconf, self._browser, self._interfaces = self._zeroconf, None, None, ()
        if zc is not None:
            with suppress(OSError, zeroconf.Error):
                await zc.async_unregister_all_services()
                await zc.async_close()

    # Browsing

    def _found(self, name: str) -> None:
        """An instance appeared or changed: from the cache if it holds all, else by asking."""
        zc = self._zeroconf
        if zc is None or name == f"{self._me}.{SERVICE}" or name in self._asking:
            return
        try:
            info = AsyncServiceInfo(SERVICE, name)
        except zeroconf.Error:
            return
        if info.load_from_cache(zc.zeroconf):
            self._tell(info)
        elif self._group is not None and len(self._asking) < self._settings.found_max:
            self._asking.add(name)
            self._group.create_task(self._ask(zc, info))

    async def _ask(self, zc: AsyncZeroconf, info: AsyncServiceInfo) -> None:
        try:
            with suppress(OSError, zeroconf.Error):
                timeout_ms = self._settings.resolve_s * 1000
                if await info.async_request(zc.zeroconf, timeout_ms, DNSQuestionType.QM):
                    self._tell(info)
        finally:
            self._asking.discard(info.name)

    def _tell(self, info: AsyncServiceInfo) -> None:
        try:
            addresses = info.parsed_scoped_addresses()
            txt = info.decoded_properties
        except ValueError:  # bytes that are no text: none of ours
            return
        peer = seen_of(txt, self._addresses.ranked(addresses))
        if peer is None or peer.id == self._me:
            return
        host = txt.get("n") or ""
        ours = self._advert is not None and peer.mesh == self._advert.mesh
        if host and ours and txt.get("st") == "L" and len(self._peer_hosts) < self._settings.found_max:
            self._peer_hosts[peer.id] = host
        else:
            self._peer_hosts.pop(peer.id, None)
        self._on_found(peer)


class _Listener(ServiceListener):
    """A goodbye or an expiry says nothing about who lives, so it is not passed on."""

    def __init__(self, found: Callable[[str], None]) -> None:
        self._found = found

    def add_service(self, _zc: zeroconf.Zeroconf, _type: str, name: str) -> None:
        self._found(name)

    def update_service(self, _zc: zeroconf.Zeroconf, _type: str, name: str) -> None:
        self._found(name)

    def remove_service(self, _zc: zeroconf.Zeroconf, _type: str, name: str) -> None:
        pass


class NameOwner:
    """The coordinator's host names. Last announcer wins in mDNS, so whoever lost a name never announces it again."""

    def __init__(self, zc: Callable[[], AsyncZeroconf | None], me: str, settings: DiscoverySettings) -> None:
        self._zc, self._me, self._settings = zc, me, settings
        self._hosts: tuple[str, ...] = ()
        self._addresses: tuple[str, ...] = ()
        self._timers: list[asyncio.TimerHandle] = []
        self.chosen = ""  # the name for people, while it is held

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
        self._register()
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
            self._register()
            self._swap([])

    async def _strangers(self, hosts: Sequence[str], friends: set[str], *, quick: bool) -> set[str]:
        """Names that an address outside `friends` answers for now. `quick`: only if the cache gives cause to ask."""
        zc = self._zc()
        if zc is None or (quick and not any(self._cached(host, 0.0) - friends for host in hosts)):
            return set()
        asked_at = zeroconf.current_time_millis()
        out = DNSOutgoing(_QUERY)
        for host in hosts:
            out.add_question(DNSQuestion(host, _A, _IN))
        zc.zeroconf.async_send(out)
        await asyncio.sleep(self._settings.name_question_s)
        return {host for host in hosts if self._cached(host, asked_at) - friends}

    def _cached(self, host: str, since_ms: float) -> set[str]:
        zc = self._zc()
        records = zc.zeroconf.cache.async_entries_with_name(host) if zc is not None else []
        now_ms = zeroconf.current_time_millis()
        return {
            str(ipaddress.ip_address(r.address))
            for r in records
            if isinstance(r, DNSAddress) and r.type == _A and not r.is_expired(now_ms) and r.created >= since_ms
        }

    def _register(self) -> None:
        """Straight into zeroconf's list of what it answers for: its own announcements would repeat old addresses."""
        if (zc := self._zc()) is not None:
            self._unregister(zc)
            for host in self._hosts:
                zc.zeroconf.registry.async_add(self._info(host))

    def _unregister(self, zc: AsyncZeroconf) -> None:
        """Also takes back answers that zeroconf holds for up to 1.1 s (it says a record once a second at most): sent
        after the loss, one of them would steal the name back."""
        registry = zc.zeroconf.registry
        registry.async_remove([info for host in self._hosts for info in registry.async_get_infos_server(host.lower())])
        for waiting in (zc.zeroconf.out_queue, zc.zeroconf.out_delay_queue):
            for group in waiting.queue:
                for record in [r for r in group.answers if r.name in self._hosts]:
                    del group.answers[record]

    def _info(self, host: str) -> ServiceInfo:
        label = f"{self._me}-{host.split('.', maxsplit=1)[0]}"[:63]
        return ServiceInfo(
            _NAME_SERVICE, f"{label}.{_NAME_SERVICE}", port=1, properties={}, server=host,
            host_ttl=self._settings.name_ttl_s, parsed_addresses=list(self._addresses),
        )  # fmt: skip

    def _swap(self, old: Sequence[str]) -> None:
        """Goodbye of the old address and cache-flush of the new in ONE packet: macOS then switches at once."""
        self._send([(address, 0) for address in old] + [(a, self._settings.name_ttl_s) for a in self._addresses])

    def _send(self, records: Sequence[tuple[str, int]]) -> None:
        zc = self._zc()
        if zc is None or not records:
            return
        out = DNSOutgoing(_ANSWER)
        for host in self._hosts:
            for address, ttl in records:
                ip = ipaddress.ip_address(address)
                kind = _A if ip.version == 4 else _AAAA
                out.add_answer_at_time(DNSAddress(host, kind, _IN | (_FLUSH if ttl else 0), ttl, ip.packed), 0)
        zc.zeroconf.async_send(out)

    def _drop(self, *, goodbye: bool) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if goodbye:
            self._send([(a, 0) for a in self._addresses])
        zc = self._zc()
        if zc is not None:
            self._unregister(zc)
        self._hosts, self._addresses, self.chosen = (), (), ""


def _published(addresses: Sequence[str]) -> tuple[str, ...]:
    """What stands behind a name: resolvers hand out one address, so only those every client can use. IPv4 if any."""
    ips = [ipaddress.ip_address(a.partition("%")[0]) for a in addresses]
    good = [ip for ip in ips if not (ip.version == 6 and ip.is_link_local)]
    return tuple(str(ip) for ip in good if ip.version == 4) or tuple(str(ip) for ip in good)


def multicast_problem(addresses: Sequence[str]) -> str:
    """Sends one mDNS question for our own service from each address; "" if any left, else what the system said."""
    out = DNSOutgoing(_QUERY)
    out.add_question(DNSQuestion(SERVICE, _PTR, _IN))
    said: list[str] = []
    for address in addresses:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
                sock.sendto(out.packets()[0], ("224.0.0.251", 5353))
            except OSError as error:
                denied = error.errno == errno.EHOSTUNREACH  # what macOS answers without the permission
                hint = " (macOS: allow it under Privacy & Security, Local Network)" if denied else ""
                said.append(f"{address}: {error.strerror}{hint}")
            else:
                return ""
    return f"multicast cannot be sent, so no other node can be found: {'; '.join(said)}"


def _now() -> float:
    return asyncio.get_running_loop().time()
