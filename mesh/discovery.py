"""mDNS: advertise this node, browse for others.

Finding only: what disappears here may live, and what is still listed may be dead (a crashed node stays for 19 minutes).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from mesh import mdns
from mesh.addresses import Addresses
from mesh.advert import Advert, Txt, seen_of
from mesh.mdns import Mdns, MdnsError, Service
from mesh.name_owner import NameOwner, hosts_of
from mesh.settings import DiscoverySettings
from mesh.wire import PeerSeen

_log = logging.getLogger(__name__)


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
        self._mdns = Mdns(me)
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
        self.name = NameOwner(self._mdns, self._settings)

    async def run(self, advert: Advert) -> None:
        """Until cancelled. Without multicast it says so in `problem` and keeps trying slowly."""
        self._advert = advert
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                try:
                    await self._attend()
                except (OSError, MdnsError) as error:
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
        self._interfaces = ()
        await self._mdns.close()

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
        if not self._mdns.is_open and self.problem and not changed and _now() < self._retry_at:
            return
        interfaces = self._addresses.multicast()
        if not interfaces:
            self._problem("no network interface with an IPv4 address: no other node can be found")
            self._interfaces = ()
            return
        due_again = bool(self.problem) and _now() >= self._retry_at
        if not self._mdns.is_open or due_again or changed or interfaces != self._interfaces:
            self._problem(multicast_problem(interfaces))
            await self._open(interfaces)
        elif self._txt_due_s() <= 0.0:
            await self._mdns.announce(self._service())

    async def _open(self, interfaces: tuple[str, ...]) -> None:
        await self._mdns.open(interfaces, self._service())
        self._interfaces = interfaces
        self.name.restore()
        await self._mdns.browse(self._found)

    def _service(self) -> Service:
        assert self._advert is not None
        self._sent, self._sent_at = self._advert.txt(), _now()
        addresses = tuple(a.partition("%")[0] for a in self._addresses.advertised())
        return Service(name=self._me, port=self._advert.port, txt=dict(self._sent), addresses=addresses)

    def _txt_due_s(self) -> float:
        """Seconds until the present facts may be said; infinite when they are said already."""
        if self._advert is None or not self._mdns.is_open:
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

    # Browsing

    def _found(self, instance: str) -> None:
        """An instance appeared or changed: from the cache if it holds all, else by asking."""
        if instance in self._asking:
            return
        if (known := self._mdns.known(instance)) is not None:
            self._tell(known)
        elif instance != self._me and self._group is not None and len(self._asking) < self._settings.found_max:
            self._asking.add(instance)
            self._group.create_task(self._ask(instance))

    async def _ask(self, instance: str) -> None:
        try:
            if (found := await self._mdns.ask(instance, self._settings.resolve_s)) is not None:
                self._tell(found)
        finally:
            self._asking.discard(instance)

    def _tell(self, found: Service) -> None:
        peer = seen_of(found.txt, self._addresses.ranked(found.addresses))
        if peer is None or (peer.id == self._me and not self._is_copy(found.name, peer)):
            return
        host = found.txt.get("n") or ""
        ours = self._advert is not None and peer.mesh == self._advert.mesh
        if host and ours and found.txt.get("st") == "L" and len(self._peer_hosts) < self._settings.found_max:
            self._peer_hosts[peer.id] = host
        else:
            self._peer_hosts.pop(peer.id, None)
        self._on_found(peer)

    def _is_copy(self, instance: str, peer: PeerSeen) -> bool:
        """Our own instance, as another process announces it: a copied disk."""
        return instance == self._me and self._advert is not None and peer.boot not in ("", self._advert.boot)


def multicast_problem(addresses: Sequence[str]) -> str:
    """Sends one mDNS question for our own service from each address; "" if any left, else what the system said."""
    said: list[str] = []
    for address in addresses:
        try:
            mdns.send_question(address)
        except OSError as error:
            denied = error.errno == errno.EHOSTUNREACH  # what macOS answers without the permission
            hint = " (macOS: allow it under Privacy & Security, Local Network)" if denied else ""
            said.append(f"{address}: {error.strerror}{hint}")
        else:
            return ""
    return f"multicast cannot be sent, so no other node can be found: {'; '.join(said)}"


def _now() -> float:
    return asyncio.get_running_loop().time()
