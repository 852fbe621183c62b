"""What the frames of one peer mean to this node: who hears of each kind. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mesh.addresses import Addresses
from mesh.doors import Doors
from mesh.events import Event, Reported, Seen
from mesh.settings import MembershipSettings
from mesh.spreading import Spreading
from mesh.wire import AccountFrame, Bye, Drain, Drill, Drilled, Frame, Gossip, Hello, KeysFrame, PeerSeen, Roster, State
from node.types import NodeId, NodeReport, status_of
from router.account import Account
from router.frames import CoordinatorFrame, EdgeFrame

if TYPE_CHECKING:
    from mesh.daemon import Daemon
    from mesh.join import Joins

_REQUEST_FRAMES = EdgeFrame | CoordinatorFrame


class Inbox:
    """Takes the frames of all links. `tell` is membership; `coordinator` who rules now; `renewed` is called when that
    one has said what it is. `last_account` is the coordinator's latest count of open requests."""

    def __init__(
        self,
        daemon: Daemon,
        addresses: Addresses,
        *,
        tell: Callable[[Event], None],
        coordinator: Callable[[], NodeId | None],
        renewed: Callable[[], None],
        spreading: Spreading,
        joins: Callable[[], Joins],
    ) -> None:
        self._joins = joins
        self._daemon, self._addresses = daemon, addresses
        self._membership, self._dispatch = daemon.membership, daemon.dispatch
        self._tell, self._coordinator, self._renewed, self._spreading = tell, coordinator, renewed, spreading
        self.last_account: Account | None = None

    def take(self, node: NodeId, frame: Frame) -> None:
        match frame:
            case State(report):
                self._state(node, report)
            case AccountFrame(account):
                if node == self._coordinator():
                    self.last_account = account
            case Gossip(peers, roster):
                self._gossip(node, peers)
                self._spreading.compare(node, roster)
            case Roster(records):
                self._spreading.take(node, records)
            case Doors():
                self._joins().took(node, frame)
            case KeysFrame():
                self._daemon.keys.take(frame)
            case Drain(on, for_s, now):
                self._daemon.control.drain_here(on, for_s, now)
            case Drill() | Drilled():
                self._daemon.drilling.take(node, frame)
            case Hello() | Bye():
                pass
            case _ if isinstance(frame, _REQUEST_FRAMES):
                self._dispatch.received(node, frame)

    def _gossip(self, node: NodeId, peers: tuple[PeerSeen, ...]) -> None:
        """Whom a peer of the added side calls near is on that side too, also where two sites number their networks
        alike."""
        beside = self._membership.ranks_last(node)
        for peer in peers[:1]:
            if peer.mesh_id and peer.mesh_id != self._daemon.trust.mesh_id:
                self._joins().seen(replace(peer, via="gossip"), by_hand=True)  # a member goes there, and says so
                return
        for peer in peers[: MembershipSettings().gossip_max]:
            there = beside and not peer.far
            far = there or self._addresses.all_far(peer.addresses)
            here = self._addresses.local(peer.addresses)
            self._tell(Seen(replace(peer, via="gossip", addresses=here, far=far, added=peer.added or there)))

    def _state(self, node: NodeId, report: NodeReport) -> None:
        if report.id != node:
            return
        report = replace(report, addresses=self._addresses.local(report.addresses))
        self._tell(Reported(report))
        self._daemon.drilling.reported(report)
        found = self._membership.view().node(node)
        if node in self._membership.alive() and found is not None:
            self._dispatch.node_changed(status_of(report, found.rtt_s or 0.0))
            self._dispatch.node_running(node, report.running)
        if node == self._coordinator():
            self._renewed()
