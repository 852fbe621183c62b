"""The mesh, switched on: heartbeats, links, discovery, membership and election of one daemon, wired together.

It decides nothing. Events come from sockets and timers, go to the pure machines, and their effects are performed here,
synchronously: whatever must wait (a dial, a name, a disk) is handed to a part that has its own task.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, assert_never

from aiohttp import web

from election.messages import Follow, Heard, LinkClosed, Message, PeerForgotten, PeerKnown, Retune, Role, Send, Tick
from mesh import clock, events
from mesh.addresses import Addresses, listening
from mesh.clone_watch import CloneWatch
from mesh.discovery import Discovery
from mesh.driver import Driver
from mesh.electing import Electing
from mesh.errors import MeshError
from mesh.gather import Gatherer
from mesh.heartbeats import Heartbeats, any_address
from mesh.http import Server, guards, tcp_sockets
from mesh.inbox import Inbox
from mesh.join import Joins
from mesh.links import Links
from mesh.log import event as log_event
from mesh.lookup import Lookup
from mesh.noise import Noise
from mesh.notices import Notices, note
from mesh.presence import Presence
from mesh.seal import HINT_BYTES, Seals
from mesh.settings import DiscoverySettings
from mesh.spreading import Spreading
from mesh.static import StaticPeers
from mesh.tailnet import Tailscale
from mesh.title import Title
from mesh.trust import Change
from mesh.wire import AccountFrame, Drain, Drill, Drilled, Frame, Gossip, KeysFrame, PeerSeen, State
from node.io import serve
from node.types import NodeId, NodeReport, status_of
from router.account import Account

if TYPE_CHECKING:
    from mesh.config import Config
    from mesh.daemon import Daemon

GOSSIP_EVERY_S = 5.0
LEAVE_S = 2.0  # for the goodbyes of election, discovery and links together

_log = logging.getLogger("mesh.overlay")


class Overlay:
    """One membership in one mesh, from `open()` to `leave()`. `run()` drives it in between."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._config = daemon, daemon.config
        self._membership, self._dispatch = daemon.membership, daemon.dispatch
        self._callers = serve.Callers()
        self._rng = random.Random()  # noqa: S311 - spreads timers, keeps no secret
        self._addresses = Addresses(daemon.config.bind)
        self._fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._election = Electing(
            daemon,
            rng=self._rng,
            send=self._send_datagram,
            changed=self._ruled_anew,
            failed=self._failed,
            late=self._late,
        )
        self._members: Driver[events.Event, events.Effect] = Driver(
            self._membership, events.Tick(), self._perform, failed=self._failed
        )
        self._seals = Seals(
            bytes.fromhex(daemon.trust.identity.fingerprint)[:HINT_BYTES],
            key_of=daemon.trust.pair_key,
            nonce=secrets.token_bytes,
        )
        self._heartbeats = Heartbeats(
            seals=self._seals, on_message=self._on_message, heard=self._heard, on_noise=self._on_noise
        )
        self._noise = Noise()
        self._clones = CloneWatch(
            daemon,
            self._addresses,
            ask_who=lambda place: self._links.ask_who(place.address, place.peer_port),
            failed=self._failed,
        )
        self._discovery = Discovery(
            daemon.id,
            on_found=self._found,
            on_moved=self._moved,
            heard_from=self._heard,
            addresses=self._addresses,
        )
        self._title = Title(
            self._discovery.name,
            self._addresses,
            self._membership.view,
            changed=self._title_changed,
            failed=self._failed,
        )
        self._tailscale = Tailscale()
        self.joins = Joins(
            daemon,
            self._addresses,
            self._tailscale,
            tell=self._tell,
            spread=self._send_all,
            looked=self._looked,
            failed=self._failed,
        )
        self._presence = Presence(
            daemon,
            self._addresses,
            election=self._election,
            discovery=self._discovery,
            title=self._title,
            stance=lambda: self.joins.stance,
        )
        self._spreading = Spreading(
            daemon.trust,
            send=lambda node, frame: self._links.send(node, frame),  # noqa: PLW0108 - there are no links yet
            linked=lambda: self._links.linked(),  # noqa: PLW0108 - as above
        )
        self._inbox = Inbox(
            daemon,
            self._addresses,
            spreading=self._spreading,
            joins=lambda: self.joins,
            tell=self._tell,
            coordinator=lambda: self._election.coordinator,
            renewed=self._tell_ruled,
        )
        self._links = Links(
            hello=self._presence.hello,
            session=daemon.session,
            tls=daemon.peer_tls.client,
            tell=self._on_link,
            on_frame=self._inbox.take,
            rng=self._rng,
            is_far=self._addresses.is_far,
            ranked=self._addresses.ranked,
            on_other=self._clones.tell,
            on_noise=self._on_noise,
        )
        self._server: Server
        self._unwatch: Callable[[], None]
        self.lookup = Lookup(
            daemon.session,
            me=daemon.id,
            mesh=daemon.config.mesh_name,
            addresses=self._addresses,
            tailscale=self._tailscale,
            on_self=self._clones.suspect,
        )
        self.static = StaticPeers(
            self.lookup,
            on_found=self._found_by_address,
            missing=lambda node: node not in self._membership.alive(),
            removed=lambda node: node in daemon.trust.removed,
            tell=note,
        )
        self.static.set(daemon.config.mesh_peers)
        self._notices = Notices(
            daemon.config.mesh_name,
            membership=self._membership,
            links=self._links,
            discovery=self._discovery,
            title=self._title,
            clones=self._clones,
            static=self.static,
            noise=self._noise,
            joins=self.joins,
        )

    # Its life

    async def open(self) -> None:
        """Takes the peer port, TCP and UDP. Raises MeshError, with nothing left open."""
        d = self._daemon
        app = web.Application(middlewares=guards(self._config.bind))
        app.add_routes([*self._links.routes(), *Gatherer(d).routes_defs(), *self.joins.porter.routes()])
        door = serve.Door(d.host, lambda: d.mesh.leaving, self._callers, d.limits.door)
        hosts = listening(self._config.bind)
        sockets = await tcp_sockets(self._config.peer_port, hosts, d.probe.port_holder)
        self._server = Server(
            app,
            raw=door,
            guarded=not self._config.bind,
            settings=d.limits.peer_server,
            limited=d.metrics.limited("peer"),
            tls=d.peer_tls,
        )
        await self._server.listen(sockets)
        self._admit_datagrams()
        try:
            await self._heartbeats.open(hosts or any_address(), self._config.peer_port)
        except OSError as e:
            await self._server.close()
            raise MeshError("port_taken", f"UDP port {self._config.peer_port}: {e.strerror}",
                            hint="choose another `peer-port`") from e  # fmt: skip
        self._unwatch = d.trust.watch(self._members_changed)

    async def run(self) -> None:
        """Until cancelled, or something here fails."""
        self.joins.members_changed()
        for peer in self._daemon.peers.peers():
            self._tell(events.Seen(peer))
        self._election.tell(Tick())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._links.run())
            group.create_task(self._clones.run())
            group.create_task(self._discovery.run(self._presence.advert()))
            group.create_task(self._gossip())
            group.create_task(self.static.run())
            group.create_task(self._title.run())
            group.create_task(self.joins.run())
            await self._fault

    async def leave(self, why: str) -> None:
        """Says goodbye everywhere, then closes everything, whatever fails before. Returns within about 2 x LEAVE_S."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._election.leave()
            self._save_peers()
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    self._title.close()
                    await self._discovery.close(successor=len(self._membership.alive()) > 0)
        finally:
            self._unwatch()
            self.joins.close()
            self._election.close()
            self._title.close()
            self._members.close()
            self._clones.close()
            await self._links.close(why)
            self._heartbeats.close()
            await self._server.close()

    async def fall(self) -> None:
        """As if this process had died, for a drill: every connection with others is cut, the port closed, and nothing
        is said any more, no goodbye either. Returns when nothing is left open."""
        self._unwatch()
        self.joins.close()
        self._daemon.sockets.end_from(())
        self._server.end_at(())
        self._heartbeats.close()
        self._election.close()
        self._title.close()
        self._members.close()
        self._clones.close()
        self._save_peers()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._server.close())
            group.create_task(self._links.close(""))  # there is nothing left on which it could be said
            group.create_task(self._discovery.close(successor=True, goodbye=False))

    def forget_all(self) -> None:
        """Nobody is known any more: the scheduler of this node goes on with its own models. Peers have not died: what
        they answer to clients of this node is carried to its end."""
        off = events.Switch(False, self._config.mesh_name, self._daemon.trust.mesh_id)
        effects = self._membership.step(off, clock.now())
        for effect in effects:
            if isinstance(effect, events.Down):
                self._dispatch.node_down(effect.node)

    # The machines and their effects

    def _tell(self, event: events.Event) -> None:
        self._clones.hear(event)
        self._members.tell(event)

    def _failed(self, fault: Exception) -> None:
        """A machine stands still: so `run` fails."""
        if not self._fault.done():
            self._fault.set_exception(fault)

    def _late(self, late_s: float) -> None:
        """A timer of the election came so late. After a sleep, or a long stall, nothing known of others is certain."""
        if late_s >= DiscoverySettings().away_s:
            log_event(_log, logging.INFO, "woke", f"this node did not run for {late_s:.1f} s: it announces itself anew")
            self._discovery.refresh()
            self._links.renew()

    def _moved(self) -> None:
        """This machine's network has changed: links and heartbeats follow at once, and others hear of it."""
        self._links.renew(self._addresses.mine)
        self._daemon.sockets.end_from(self._addresses.mine)
        self._server.end_at(self._addresses.mine)
        for node in self._membership.view().nodes:
            if node.report.id != self._daemon.id:
                there = self._addresses.ranked(node.addresses)
                self._heartbeats.set_peer(node.report.id, there, node.report.peer_port)
        self._daemon.changed()

    def _perform(self, effect: events.Effect) -> None:
        match effect:
            case events.Known(node, last) | events.Moved(node, last):
                self._election.tell(PeerKnown(node, far=last))
            case events.Forgotten(node):
                self._heartbeats.forget(node)
                self._election.tell(PeerForgotten(node))
            case events.Dial(peer, at_once):
                self._heartbeats.set_peer(peer.id, self._addresses.ranked(peer.addresses), peer.peer_port)
                self._links.dial(peer.id, peer.addresses, peer.peer_port, at_once=at_once)
            case events.HangUp(node, reason):
                self._links.forget(node, reason)
            case events.Up(node):
                self._say_up(node)
            case events.Down(node, why):
                self._say_down(node, why)
            case events.GaveUp(node):
                self._callers.leave(node)
            case events.Withdrew(node, addresses):
                self._links.leave(node, addresses)
                self._daemon.sockets.end_to(addresses)
                self._server.end_of(addresses)
            case events.Gone(node):
                self._election.tell(LinkClosed(node))
            case events.Changed():
                self._title.look()
            case events.Save():
                self._save_peers()
            case _:
                assert_never(effect)

    def _say_up(self, node: NodeId) -> None:
        found = self._membership.view().node(node)
        assert found is not None
        log_event(_log, logging.INFO, "node", f"{found.report.name} is there, found by {found.via}", node=node)
        self._daemon.drilling.seen("back", node)
        self._dispatch.node_up(status_of(found.report, found.rtt_s or 0.0))
        self._dispatch.node_running(node, found.report.running)
        self._links.probe(node)  # it may have been cut off, and the link not have noticed that this is over
        self._dispatch.link_up(node)

    def _say_down(self, node: NodeId, why: str) -> None:
        log_event(_log, logging.WARNING, "node", f"{self._shown(node)} is gone: {why}", node=node)
        self._daemon.drilling.seen("gone", node, why)
        self._dispatch.node_down(node)
        self._daemon.edge.node_lost(node)
        if self._membership.lost(node):
            self._dispatch.link_lost(node)

    def _send_datagram(self, effect: Send) -> None:
        to = NodeId(effect.to) if effect.to is not None else None
        self._heartbeats.send(effect.message, to, self._membership.unheard)

    def _ruled_anew(self, ruled: Follow) -> None:
        """Who coordinates has changed: membership, the scheduler, mDNS and the name's keeper hear it."""
        coordinator = self._election.coordinator
        self._daemon.elections += 1
        who = self._shown(coordinator) if coordinator else "nobody"
        text = f"term {ruled.term}: {who} coordinates ({ruled.why})"
        log_event(_log, logging.INFO, "coordinator", text, term=ruled.term, coordinator=ruled.coordinator)
        self._daemon.drilling.seen("coordinator", coordinator, f"term {ruled.term}: {ruled.why}")
        self._dispatch.follow(coordinator, ruled.term, ruling=self._election.rules)
        self._tell_ruled()
        self._rule_title()
        self._daemon.changed()

    def _rule_title(self) -> None:
        """Alone at last, a node does not take the name from those who stay; nor does it while it looks around."""
        if not self._election.left:
            ruled, settled = self._election.ruled, self.joins.settled
            self._title.rule(ruled.role if settled else Role.FOLLOWER, self._election.coordinator if settled else None)

    def _looked(self) -> None:
        """What this node's mesh is to others may be another now."""
        self._rule_title()
        self._discovery.update(self._presence.advert())
        self._daemon.changed()

    def _tell_ruled(self) -> None:
        ruled, coordinator = self._election.ruled, self._election.coordinator
        self._tell(events.Ruled(coordinator, ruled.term, ruled.role is Role.ALONE, self._presence.url(coordinator)))

    def _title_changed(self) -> None:
        self._discovery.update(self._presence.advert())
        self._tell_ruled()

    # Who belongs

    def _members_changed(self, change: Change) -> None:
        """Who was put out has nothing of this node from now on: no link, no request, no heartbeat."""
        self._admit_datagrams()
        self._spreading.changed(change)
        self._links.members_changed(change.came, change.gone)
        self._server.members_changed()
        for node in change.gone:
            self._callers.leave(node)
        self.joins.members_changed()

    def _admit_datagrams(self) -> None:
        members = self._daemon.trust.members
        self._seals.admit({node: bytes.fromhex(m.print)[:HINT_BYTES] for node, m in members.items()})

    # What comes in

    def _found(self, peer: PeerSeen) -> None:
        self.joins.seen(peer)
        self._tell(events.Seen(peer))

    def _found_by_address(self, peer: PeerSeen, by_hand: bool) -> None:
        self.joins.seen(peer, by_hand=True)
        self._tell(events.Added(peer) if by_hand else events.Seen(peer))

    def _heard(self, address: str) -> None:
        self._title.heard(address)

    def _on_message(self, message: Message, _address: str) -> None:
        if message.mesh != self._config.mesh_name or message.sender == self._daemon.id:
            return
        if not self._membership.shuns(NodeId(message.coordinator or "")):
            self._election.tell(Heard(message))
        if message.role is not Role.FOLLOWER:
            self._title.rival(NodeId(message.sender))
        self._tell(events.Beat(NodeId(message.sender), message.boot, message.deaf))

    def _on_link(self, event: events.Event) -> None:
        self._tell(event)
        if isinstance(event, events.LinkUp):
            self._heartbeats.met(event.hello.id)
            self._links.send(event.hello.id, State(self._daemon.report()))
            self._links.send(event.hello.id, Gossip(self._membership.gossip()))
            self._spreading.met(event.hello.id)
            self._links.send(event.hello.id, self.joins.frame())
            if (keys := self._daemon.keys.frame) is not None:
                self._links.send(event.hello.id, keys)
            self._dispatch.link_up(event.hello.id)
        elif isinstance(event, events.LinkClosed):
            self._dispatch.link_lost(event.node)
            self._spreading.lost(event.node)
            if event.node in self._membership.unheard:  # it cannot hang up, and has given us up long ago, if it lives
                self._callers.leave(event.node)

    def _on_noise(self, address: str, code: str) -> None:
        if said := self._noise.heard(address, code, clock.now()):
            log_event(_log, logging.WARNING, "noise", said)

    # What goes out

    def send(self, node: NodeId, frame: Frame) -> bool:
        """False: no link to that node now, or it does not carry."""
        return not self._membership.lost(node) and self._links.send(node, frame)

    def _send_all(self, frame: Frame) -> None:
        self._links.send_all(frame)

    def vouched(self, node: NodeId) -> bool:
        """It coordinates, and is heard: here, or by others who say so."""
        return node == self._election.coordinator and self._election.vouched

    def publish(self, report: NodeReport) -> None:
        """This node's report, and the coordinator's account, to every peer. Raises nothing: a fault ends `run`."""
        try:
            self._links.send_all(State(report))
            if self._election.rules:
                self._links.send_all(AccountFrame(self._daemon.dispatch.account()))
            self._discovery.update(self._presence.advert())
            self._title.look()
        except Exception as fault:  # noqa: BLE001 - it costs the mesh, not the node, whose daemon calls this
            self._failed(fault)

    def tell_keys(self, frame: KeysFrame) -> None:
        """The keys of clients have changed here."""
        self._links.send_all(frame)

    @property
    def last_account(self) -> Account | None:
        """The coordinator's latest count of open requests."""
        return self._inbox.last_account

    def ask_drain(self, node: NodeId, on: bool, for_s: float | None, now: bool) -> bool:
        return self._links.send(node, Drain(on, for_s, now))

    def ask_drill(self, node: NodeId, frame: Drill | Drilled) -> bool:
        return self._links.send(node, frame)

    async def _gossip(self) -> None:
        while True:
            await asyncio.sleep(GOSSIP_EVERY_S)
            self._notices.look()
            self._links.send_all(Gossip(self._membership.gossip(), self._daemon.trust.digest))

    def _save_peers(self) -> None:
        m = self._membership
        self._daemon.peers.save(m.to_keep(), m.alive())

    def remove(self, node: NodeId) -> None:
        """`mesh remove`: it belongs no more, here and everywhere, and is forgotten. Raises MeshError."""
        if node in self._daemon.trust.members:
            self._daemon.trust.remove(node)
        self._tell(events.Removed(node))

    # Small things

    def retune(self, config: Config) -> None:
        """`mesh-priority`, `mesh-peers` or `node-name` were edited."""
        before, self._config = self._config, config
        self._presence.retune(config)
        if config.mesh_priority != before.mesh_priority:
            self._election.tell(Retune(config.mesh_priority))
        self.static.set(config.mesh_peers)

    def addresses(self) -> tuple[str, ...]:
        return self._addresses.advertised()

    def notes(self) -> list[str]:
        """What a person should know of the mesh here, a line each."""
        return self._notices.all()

    def dropped(self) -> dict[str, int]:
        """Frames and datagrams that could not be used, by reason."""
        return {**self._links.counts.dropped, **{f"udp_{k}": n for k, n in self._heartbeats.counts.dropped_in.items()}}

    def links_open(self) -> int:
        return len(self._links.linked())

    def _shown(self, node: NodeId) -> str:
        found = self._membership.view().node(node)
        return found.report.name if found else node
