"""mDNS: advertise this node, browse for others.

Finding only: what disappears here may live, and what is still listed may be dead (a crashed node stays for 19 minutes).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from mesh import mdns
from mesh.addresses import Addresses
from mesh.advert import Advert, Txt, seen_of
from mesh.dial import denied
from mesh.flood import FloodGate
from mesh.mdns import Mdns, MdnsError, Service
from mesh.name_owner import NameOwner, fallback_of, hosts_of
from mesh.netwatch import NetWatch
from mesh.notes import ADD
from mesh.settings import DiscoverySettings, NameSettings
from mesh.wire import PeerSeen
from node.types import NodeId

_log = logging.getLogger(__name__)


class Discovery:
    """`run()` advertises and browses until cancelled; `on_found` is called synchronously for each node of any mesh that
    is seen or changes, `on_moved` when an address of this machine has changed, a cable was plugged in, or `refresh` was
    called, `heard_from(address)` for each mDNS packet.
    `problem` says why others cannot be found now ("" when they can)."""

    def __init__(
        self,
        me: str,
        *,
        on_found: Callable[[PeerSeen], None],
        addresses: Addresses,
        on_moved: Callable[[], None] = lambda: None,
        heard_from: Callable[[str], None] = lambda _: None,
        settings: DiscoverySettings | None = None,
    ) -> None:
        self._me, self._on_found, self._addresses = me, on_found, addresses
        self._on_moved, self._heard_from = on_moved, heard_from
        self._settings = settings or DiscoverySettings()
        self._gate = FloodGate(now=_now())
        self._mdns = Mdns(me, self._admits)
        self._watch = NetWatch(self._told)
        self._group: asyncio.TaskGroup | None = None
        self._advert: Advert | None = None
        self._closed = False
        self._interfaces: tuple[str, ...] = ()
        self._sent: Txt = {}
        self._sent_at = 0.0
        self._news = asyncio.Event()  # the role changed, or the interfaces should be looked at
        self._look_at = 0.0  # at the interfaces
        self._again = False  # announce and browse anew then, whatever they are
        self._heard: set[NodeId] = set()  # nodes that mDNS has told of
        self._came_back_by: float | None = None  # our own announcement should have come back to us
        self._swallowed = False  # it has not
        self._asking: set[str] = set()
        self._peer_hosts: dict[NodeId, str] = {}
        self._retry_at = 0.0
        self.problem = ""
        self.name = NameOwner(self._mdns, NameSettings().ttl_s)

    async def run(self, advert: Advert) -> None:
        """Until cancelled. Without multicast it says so in `problem` and keeps trying slowly."""
        self._advert = advert
        self._watch.open()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    self._news.clear()
                    try:
                        await self._attend()
                    except (OSError, MdnsError) as error:
                        if not self._closed:
                            self._problem(f"mDNS does not work: {error}")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._pause_s()):
                            await self._news.wait()
        finally:
            self._watch.close()

    def update(self, advert: Advert) -> None:
        """The facts to advertise from now on. Said at most every update_every_s; a change of role at once."""
        if self._closed:  # or it would open and announce everything anew
            return
        before, self._advert = self._advert, advert
        if before is None or _urgent(before.txt()) != _urgent(advert.txt()):
            self._news.set()

    def refresh(self) -> None:
        """The link-up routine: after wake, a new address or a take-over. Announces anew and browses anew."""
        self._again, self._look_at = True, 0.0
        self._news.set()

    def _told(self, interface: int) -> None:
        """The system says that an address has changed, or (its number) that an interface's cable was plugged in."""
        if interface and not self._addresses.uses(interface):
            return
        self._again = self._again or interface > 0
        self._look_at = min(self._look_at, _now() + self._settings.settle_s)
        self._news.set()

    async def close(self, *, successor: bool, goodbye: bool = True) -> None:
        """Says goodbye, the name's only without a `successor`; without `goodbye` nothing at all, as one that dies.
        Afterwards run() is to be cancelled."""
        self.name.release(goodbye=goodbye and not successor)
        self._closed, self._advert = True, None
        self._interfaces = ()
        await self._mdns.close(goodbye=goodbye)

    def name_of_mesh(self, mesh: str, coordinator: NodeId | None = None) -> str:
        """The host name of the mesh's URL: what this node or the coordinator says it holds, else what a former one
        said (it may be dead, and never took it back), else the usual one."""
        said = self._peer_hosts
        held = self.name.chosen or (said.get(coordinator) if coordinator else "") or next(iter(said.values()), "")
        return (held or hosts_of(mesh)[0]).rstrip(".")

    @property
    def heard(self) -> frozenset[NodeId]:
        """Nodes of this mesh that mDNS has told of since the start."""
        return frozenset(self._heard)

    def notes(self) -> list[str]:
        """What a person should know: why others cannot be found, and what to do."""
        found = [self.problem] if self.problem else []
        if self._swallowed and not self.problem:
            found.append(
                f"multicast that this node sends does not come back to it: a firewall here drops mDNS (UDP 5353). "
                f"Open it; until then a node is not found by itself: {ADD}"
            )
        refused, source = self._gate.refused_lately(_now())
        if refused:
            found.append(
                f"mDNS is flooded: {refused} packets of the last minute were not read, most from {source}. "
                f"Known nodes are unharmed; a new one may not be found by itself: {ADD}"
            )
        return found

    # Advertising

    async def _attend(self) -> None:
        """One look at what should be: sockets open on the present interfaces, the present facts advertised."""
        if self._advert is None:
            return
        changed = await self._look() if _now() >= self._look_at else False
        if not self._mdns.is_open and self.problem and not changed and _now() < self._retry_at:
            return
        interfaces = self._addresses.multicast()
        if not interfaces:
            self._problem("no network interface with an address: no other node can be found")
            self._interfaces = ()
            return
        due_again = bool(self.problem) and _now() >= self._retry_at
        if not self._mdns.is_open or due_again or changed or interfaces != self._interfaces:
            self._problem(multicast_problem(interfaces))
            await self._open(interfaces)
        elif self._txt_due_s() <= 0.0:
            await self._mdns.announce(self._service())
        self._listen_for_ourselves()

    async def _look(self) -> bool:
        """At this machine's interfaces; True when everything is to be announced anew."""
        s, again, self._again = self._settings, self._again, False
        changed = self._addresses.refresh() or again
        if self._addresses.strange:
            await asyncio.to_thread(self._addresses.learn)
        self._look_at = _now() + (s.interfaces_told_every_s if self._watch.trusted else s.interfaces_every_s)
        if changed:
            self._on_moved()
        return changed

    def _listen_for_ourselves(self) -> None:
        """Multicast comes back to who sends it; a firewall that drops it does so without an error."""
        if self._came_back_by is not None and _now() >= self._came_back_by:
            came, self._came_back_by = self._mdns.came_back, None
            if not came and not self._swallowed:
                _log.warning("what this node multicasts does not come back to it")
            self._swallowed = not came

    async def _open(self, interfaces: tuple[str, ...]) -> None:
        if self._advert is None:
            raise MdnsError("closed while it looked at its interfaces")
        await self._mdns.open(interfaces, self._service())
        self._interfaces = interfaces
        self.name.opened()
        await self._mdns.browse(self._found)
        self._came_back_by = _now() + self._settings.loop_s

    def _service(self) -> Service:
        assert self._advert is not None
        self._sent, self._sent_at = self._advert.txt(), _now()
        txt, addresses = dict(self._sent), self._addresses.advertised()
        return Service(name=self._me, port=self._advert.port, txt=txt, addresses=addresses)

    def _txt_due_s(self) -> float:
        """Seconds until the present facts may be said; infinite when they are said already."""
        if self._advert is None or not self._mdns.is_open:
            return float("inf")
        txt, s = self._advert.txt(), self._settings
        if txt == self._sent:
            return float("inf")
        urgent = _urgent(txt) != _urgent(self._sent)
        return self._sent_at + (s.update_at_least_s if urgent else s.update_every_s) - _now()

    def _pause_s(self) -> float:
        came_back_s = self._came_back_by - _now() if self._came_back_by is not None else float("inf")
        return max(0.01, min(self._look_at - _now(), self._txt_due_s(), came_back_s))

    def _problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.warning("%s", problem)
        self.problem = problem
        if problem:
            self._retry_at = _now() + self._settings.retry_s
            self._look_at = min(self._look_at, self._retry_at)

    # Browsing

    def _admits(self, source: str, size: int) -> bool:
        self._heard_from(source)
        admitted = self._gate.admits(source, size, _now())
        if not admitted and self._gate.refused == 1:
            _log.warning("more mDNS than is read comes from %s (docs/operations.md)", source)
        return admitted

    def _found(self, instance: str) -> None:
        """An instance appeared or changed: from the cache if it holds all, else by asking."""
        if instance in self._asking:
            return
        if (known := self._mdns.known(instance)) is not None:
            self._tell(known)
        elif instance != self._me and self._group is not None and len(self._asking) < self._settings.asking_max:
            self._asking.add(instance)
            self._group.create_task(self._ask(instance))

    async def _ask(self, instance: str) -> None:
        try:
            if (found := await self._mdns.ask(instance, self._settings.resolve_s)) is not None:
                self._tell(found)
        finally:
            self._asking.discard(instance)

    def _tell(self, found: Service) -> None:
        peer = seen_of(found.txt, self._addresses.ranked(self._addresses.local(found.addresses)))
        if peer is None or (peer.id == self._me and not self._is_copy(found.name, peer)):
            return
        host = found.txt.get("n") or ""
        ours = self._advert is not None and peer.mesh_id == self._advert.mesh_id
        if ours and len(self._heard) < self._settings.found_max:
            self._heard.add(peer.id)
        if ours and self._may_hold(host) and found.txt.get("st") == "L" and self._room(peer.id):
            self._peer_hosts[peer.id] = host
        else:
            self._peer_hosts.pop(peer.id, None)
        self._on_found(peer)

    def _room(self, node: NodeId) -> bool:
        return node in self._peer_hosts or len(self._peer_hosts) < self._settings.found_max

    def _may_hold(self, host: str) -> bool:
        """Anybody may say anything here; a mesh has only these names, and its URL shows no other."""
        assert self._advert is not None
        return f"{host.rstrip('.')}." in (*hosts_of(self._advert.mesh), fallback_of(self._advert.mesh_id))

    def _is_copy(self, instance: str, peer: PeerSeen) -> bool:
        """Our own instance, as another process announces it: a copied disk."""
        return instance == self._me and self._advert is not None and peer.boot not in ("", self._advert.boot)


def _urgent(txt: Txt) -> tuple[str | None, ...]:
    """Its role, the name it holds, its mesh and whether that lets anybody in."""
    return tuple(txt.get(key) for key in ("st", "n", "mid", "w"))


def multicast_problem(addresses: Sequence[str]) -> str:
    """Sends one mDNS question for our own service from each address; "" if any left, else what the system said."""
    said: list[str] = []
    for address in addresses:
        try:
            mdns.send_question(address)
        except OSError as error:
            hint = denied(error.errno, near=True)
            said.append(f"{address}: {error.strerror}" + (f" ({hint})" if hint else ""))
        else:
            return ""
    return f"multicast cannot be sent, so no other node can be found: {'; '.join(said)}"


def _now() -> float:
    return asyncio.get_running_loop().time()
