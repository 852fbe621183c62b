"""Who is there: from mDNS, static addresses, gossip and links to one list of nodes, each alive, suspect or gone. Pure.

Finding never says who lives: heartbeats and links do. The list is a View; what should happen is an Effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

from msgspec import structs

from mesh.addresses import is_loopback
from mesh.events import (
    Added,
    Beat,
    Belong,
    Changed,
    Dial,
    Down,
    Effect,
    Event,
    Forgotten,
    Framed,
    GaveUp,
    Gone,
    HangUp,
    Known,
    LinkClosed,
    LinkUp,
    Moved,
    OfPeer,
    Out,
    Outsiders,
    Own,
    Removed,
    Reported,
    Rtt,
    Ruled,
    SaidBye,
    Save,
    Seen,
    SelfChanged,
    Switch,
    Tick,
    Tried,
    Unfit,
    Up,
    Withdrew,
)  # fmt: skip
from mesh.liveness import Liveness
from mesh.member import Member, incompatible
from mesh.outside import Outside
from mesh.settings import MembershipSettings
from mesh.wire import Hello, PeerSeen
from node.types import NodeId, NodeReport
from router.view import NodeState, NodeView, View


class Membership:
    """All peers of one mesh as this node sees them; wake it at `deadline` (seconds on the clock of `now`)."""

    def __init__(self, report: NodeReport, *, mesh_name: str = "default", mesh_id: str = "", enabled: bool = False,
                 settings: MembershipSettings | None = None) -> None:  # fmt: skip
        self._settings = settings or MembershipSettings()
        self._self, self._mesh_name, self._mesh_id, self._enabled = report, mesh_name, mesh_id, enabled
        self._ruled = Ruled(None, 0, alone=True)
        self._peers: dict[NodeId, Member] = {}
        self._members: frozenset[NodeId] | None = None  # None: whoever has this mesh's name
        self._outside = Outside(self._settings)
        self._view: View | None = None
        self.deadline: float | None = None
        self.unheard: frozenset[NodeId] = frozenset()  # peers given up because nothing of them arrives

    def step(self, event: Event, now: float) -> list[Effect]:
        """`now` never goes back. Raises nothing."""
        if type(event) is Beat and self._as_ever(event, now):
            return []
        out = Out()
        if self.deadline is not None and now > self.deadline + self._settings.stalled_s:
            for peer in self._peers.values():
                peer.life.forgive(now)
                peer.deaf_since = None
        if isinstance(event, Own):
            self._own(event, now, out)
        else:
            self._of_a_peer(event, now, out)
        times = [*(p.due for p in self._peers.values()), self._outside.due()]
        self.deadline = min((due for due in times if due is not None), default=None)
        if out.changed:
            self._view = None
            self.unheard = frozenset(i for i, p in self._peers.items() if p.unheard)
            out.add(Changed())
        return out.effects

    def _as_ever(self, beat: Beat, now: float) -> bool:
        """Nearly all that happens is a heartbeat of a peer in order: it puts off what time would do, and nothing else.
        When the time comes, that is looked at anew; so `deadline` may be too early, never too late."""
        peer, due = self._peers.get(beat.node), self.deadline
        if peer is None or not peer.boot == beat.boot == peer.link_boot or due is None or now > due:
            return False
        if beat.deaf or peer.deaf_since is not None:
            return False
        if peer.state is not NodeState.OK or peer.reason or not peer.up:
            return False
        peer.life.beat(now)
        return True

    def _own(self, event: Own, now: float, out: Out) -> None:
        match event:
            case Ruled():
                out.changed = event != self._ruled
                self._ruled = event
            case SelfChanged(report):
                out.changed = report != self._self
                self._self = report
            case Switch(enabled, mesh_name, mesh_id, why):
                for id_ in list(self._peers):
                    self._forget(id_, why, out)
                self._outside.clear()
                self._enabled, self._mesh_name, self._mesh_id = enabled, mesh_name, mesh_id
                self._ruled = Ruled(None, self._ruled.term, alone=True)
                out.changed = True
            case Belong(nodes):
                self._belong(nodes, now, out)
            case Outsiders(why, hidden):
                out.changed = self._outside.explain(why, hidden)
            case Tick():
                out.changed = self._outside.expire(now)
                for id_, peer in list(self._peers.items()):  # all: so their next times come together
                    self._judge(peer, now, out)
                    if peer.ended and now >= peer.ended_at + peer.kept_s(self._settings):
                        self._forget(id_, "dead for 7 days" if peer.reached else "never reached", out)
            case _:
                assert_never(event)

    def _belong(self, nodes: frozenset[NodeId], now: float, out: Out) -> None:
        """Who came is dialled where it was seen; who was put out is let go of."""
        self._members = nodes
        for id_ in self._peers.keys() - nodes:
            self._forget(id_, "no member of this mesh", out)
        for id_ in nodes:
            if (seen := self._outside.take(id_)) is not None:
                self._seen(seen, now, out)
                out.changed = True

    def _of_a_peer(self, event: OfPeer, now: float, out: Out) -> None:
        match event:
            case Seen(seen):
                self._seen(seen, now, out)
                return
            case Added(seen):
                self._seen(seen, now, out)
                out.add(Save())
                return
            case Removed(node):
                out.changed = self._outside.take(node) is not None
                self._forget(node, "removed from the list", out)
                out.add(Save())
                return
            case Unfit(hello, code):
                self._unfit(hello, code, now, out)
                return
            case LinkUp():
                peer = self._linked(event, now, out)
            case Reported(report):
                peer = self._peers.get(report.id)
                if peer:
                    self._reported(peer, report, out)
            case Beat(node):
                peer = self._peers.get(node)
                if peer and not self._beat(peer, event, now, out):
                    return
            case _:
                peer = self._peers.get(event.node)
                if peer:
                    self._of_a_link(peer, event, now, out)
        if peer:
            self._judge(peer, now, out)

    def _of_a_link(
        self, peer: Member, event: Framed | Rtt | SaidBye | LinkClosed | Tried, now: float, out: Out
    ) -> None:
        match event:
            case Framed():
                if not peer.left:
                    peer.life.frame(now)
                    self._heard_again(peer, now)
            case Rtt(rtt_s=rtt_s):
                peer.rtt_s, self._view = rtt_s, None
            case SaidBye(reason=reason):
                peer.left = True
                self._end(peer, f"left: {reason}", now, out, certain=True)
            case LinkClosed(why=why):
                peer.link_boot, peer.unlinked_at, peer.tried, peer.sighted = "", now, why, False
                if not peer.left:
                    out.add(Dial(peer.seen, at_once=True))
            case Tried(address=address, kind=kind, why=why, last_good=last_good):
                peer.tried = why
                if kind == "refused" and last_good and peer.gone_if_refused():
                    self._end(peer, f"its process is gone: nothing listens at {address}", now, out, certain=True)
            case _:
                assert_never(event)

    # Finding

    def _seen(self, seen: PeerSeen, now: float, out: Out) -> None:
        peer = self._peers.get(seen.id)
        if not self._enabled or seen.id == self._self.id:
            return
        if seen.mesh != self._mesh_name:
            if peer and not peer.linked:
                self._forget(seen.id, f"now in mesh '{seen.mesh}'", out)
            return
        if self._members is not None and seen.id not in self._members:
            out.changed = self._outside.see(seen, now) or out.changed
            return
        if peer is None:
            if (peer := self._new(seen, now, out)) is None:
                return
        else:
            self._merge(peer, seen, now, out)
        if not peer.linked:
            was, peer.incompatible = peer.incompatible, incompatible(seen.protocol, seen.version)
            if peer.incompatible and not was:
                out.add(HangUp(seen.id, peer.incompatible))
            elif was and not peer.incompatible:
                out.add(Dial(peer.seen, at_once=True))
        self._judge(peer, now, out)

    def _new(self, seen: PeerSeen, now: float, out: Out, *, linked: bool = False) -> Member | None:
        """None: there are too many. One that is linked displaces those that were only announced."""
        s, strangers = self._settings, [p for p in self._peers.values() if not p.reached]
        full = len(self._peers) >= s.peers_max
        if full or (not linked and len(strangers) >= s.strangers_max):
            old = [p for p in strangers if p.ended or p.incompatible or linked]
            old = old or [p for p in self._peers.values() if full and p.ended]
            if not old:
                return None
            self._forget(min(old, key=lambda p: p.ended_at if p.ended else p.since).seen.id, "too many nodes", out)
        bounded = self._bounded(seen.addresses)
        seen = structs.replace(seen, addresses=bounded, mesh_id="", stance="", hint="")  # a member's are this mesh's
        sighted, life = seen.via == "mdns", Liveness(s, far=seen.far)
        peer = self._peers[seen.id] = Member(seen=seen, since=now, life=life, boot=seen.boot, sighted=sighted)
        out.add(Known(seen.id, peer.ranks_last))
        if not incompatible(seen.protocol, seen.version):
            out.add(Dial(peer.seen, at_once=True))
        out.changed = True
        return peer

    def _merge(self, peer: Member, seen: PeerSeen, now: float, out: Out) -> None:
        """Known already: take new addresses; after its death a new boot is a new chance. mDNS shows that it is near;
        what others say of where it is counts only until it was reached."""
        before = peer.seen
        newcomer = bool(peer.ended and seen.boot and seen.boot != peer.boot)
        if newcomer:
            peer.begin_anew(seen.boot, self._settings)
            peer.ended, peer.since = "", now
        peer.seen = structs.replace(
            before,
            addresses=self._bounded((*before.addresses[:1], *seen.addresses, *before.addresses)),
            via=seen.via if before.via == "gossip" else before.via,
            protocol=seen.protocol,
            version=seen.version or before.version,
        )
        peer.sighted = peer.sighted or seen.via == "mdns"
        far = before.far and not peer.sighted and (peer.reached or seen.far)
        if peer.place(far=far, added=seen.added):
            out.add(Moved(peer.seen.id, peer.ranks_last))
        if not peer.linked:  # a link's own word is better than what mDNS or others remember
            peer.seen = structs.replace(peer.seen, name=seen.name, port=seen.port, peer_port=seen.peer_port)
        if peer.seen != before or newcomer:
            out.changed = True
            if not peer.incompatible:
                out.add(Dial(peer.seen, at_once=newcomer or not peer.linked))

    def _bounded(self, addresses: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(addresses))[: self._settings.addresses_max]

    def _unfit(self, hello: Hello, code: Literal["other_version", "other_mesh"], now: float, out: Out) -> None:
        if code == "other_version":
            self._seen(PeerSeen.by_hello(hello), now, out)
        elif (peer := self._peers.get(hello.id)) and not peer.linked:
            self._forget(hello.id, f"now in mesh '{hello.mesh}'", out)

    # Links and signs of life

    def _linked(self, event: LinkUp, now: float, out: Out) -> Member | None:
        hello, address = event.hello, event.address
        stranger = self._members is not None and hello.id not in self._members
        if not self._enabled or stranger or hello.id == self._self.id:
            out.add(HangUp(hello.id, "no member of this mesh" if self._enabled else "mesh disabled"))
            return None
        peer = self._peers.get(hello.id)
        if peer is None:
            seen = PeerSeen.by_hello(hello, address, far=event.far)
            if (peer := self._new(seen, now, out, linked=True)) is None:
                out.add(HangUp(hello.id, "too many nodes"))
                return None
        if hello.boot != peer.boot:
            self._restarted(peer, hello.boot, out)
        peer.seen = structs.replace(
            peer.seen, name=hello.name, port=hello.port, peer_port=hello.peer_port, boot=hello.boot,
            version=hello.version, protocol=hello.protocol,
            addresses=self._bounded((address, *peer.seen.addresses)),
        )  # fmt: skip
        if peer.place(far=event.far and not peer.sighted):
            out.add(Moved(peer.seen.id, peer.ranks_last))
        peer.link_boot = peer.last_link_boot = hello.boot
        peer.ended, peer.left, peer.incompatible, peer.tried = "", False, "", ""
        peer.deaf_since = None  # it has just heard our hello
        peer.life.frame(now)
        if not peer.reached:
            out.add(Save())
        peer.reached = out.changed = True
        return peer

    def _restarted(self, peer: Member, boot: str, out: Out) -> None:
        if peer.up:
            peer.up = False
            out.add(Down(peer.seen.id, "restarted"))
        peer.begin_anew(boot, self._settings)

    def _reported(self, peer: Member, report: NodeReport, out: Out) -> None:
        if report.boot != peer.boot or not peer.linked:
            return
        gone: tuple[str, ...] = ()
        if report.addresses:  # else it has no network for a moment, and then the same address again, as a rule
            gone = tuple(a for a in peer.advertised if a not in report.addresses and not is_loopback(a))
            peer.advertised = report.addresses
        known = (*peer.seen.addresses[:1], *report.addresses, *peer.seen.addresses)
        peer.report, out.changed = report, True
        peer.seen = structs.replace(
            peer.seen, name=report.name, priority=report.priority,
            addresses=self._bounded([a for a in known if a not in gone]),
        )  # fmt: skip
        if gone:
            taken = {a for p in self._peers.values() if p is not peer for a in p.advertised}
            out.add(Dial(peer.seen, at_once=False), Withdrew(report.id, tuple(a for a in gone if a not in taken)))

    def _beat(self, peer: Member, beat: Beat, now: float, out: Out) -> bool:
        """False: a datagram that says nothing about the process we know."""
        boot = beat.boot
        if boot != peer.boot:
            heard = peer.life.heard
            if peer.linked and not peer.ended and heard is not None and now - heard < self._settings.patience_cap_s:
                return False  # the link knows better which process is the present one
            self._restarted(peer, boot, out)
        if peer.left or peer.incompatible:
            return False
        peer.life.beat(now)
        if beat.deaf and peer.deaf_since is None:
            out.add(GaveUp(peer.seen.id))
        peer.deaf_since = (now if peer.deaf_since is None else peer.deaf_since) if beat.deaf else None
        self._heard_again(peer, now)
        if not peer.linked and now - peer.nudged_at >= self._settings.nudge_s:
            peer.nudged_at = now
            out.add(Dial(peer.seen, at_once=True))
        return True

    def _heard_again(self, peer: Member, now: float) -> None:
        if not peer.deaf(now):
            peer.ended = ""

    # Judging

    def _judge(self, peer: Member, now: float, out: Out) -> None:
        """Brings `state`, `reason`, `due` and `up` up to date."""
        if peer.as_before(now):
            return
        s, heard = self._settings, peer.life.heard
        if not peer.incompatible and (not peer.ended or peer.deaf_since is not None):
            patience_s = peer.life.patience_s()
            if heard is not None and now >= heard + patience_s + s.confirm_s:
                peer.deaf_since = None  # what it said is of the past
                self._end(peer, f"silent for more than {patience_s + s.confirm_s:.2f} s", now, out, certain=False)
            elif peer.deaf(now):
                self._end(peer, "it is heard, but does not hear this node", now, out, certain=False)
            elif heard is None and not peer.linked and now >= peer.since + s.waiting_s:
                self._end(peer, f"never reached: {peer.tried or 'no answer'}", now, out, certain=False)
        state, reason = peer.verdict(now)
        usable = (
            state in (NodeState.OK, NodeState.SUSPECT, NodeState.DRAINING)
            and peer.report is not None
            and (peer.linked or now < peer.unlinked_at + s.link_grace_s)
        )
        peer.due = peer.next_change(now, s)
        if (state, reason) != (peer.state, peer.reason) or usable != peer.up:
            peer.state, peer.reason, out.changed = state, reason, True
        if usable != peer.up:
            peer.up = usable
            out.add(Up(peer.seen.id) if usable else Down(peer.seen.id, reason))

    def _end(self, peer: Member, why: str, now: float, out: Out, *, certain: bool) -> None:
        if not peer.ended:
            peer.ended_at = now
            if peer.reached:
                out.add(Save())
        peer.ended = why
        if certain:
            out.add(Gone(peer.seen.id, why))

    def _forget(self, node: NodeId, why: str, out: Out) -> None:
        peer = self._peers.pop(node, None)
        if peer is None:
            return
        if peer.up:
            out.add(Down(node, why))
        out.add(HangUp(node, why), Forgotten(node))
        out.changed = True

    # Reading

    def view(self) -> View:
        """The picture now; the same object until something changed."""
        if self._view is None:
            me, ruled = self._self, self._ruled
            state = NodeState.DRAINING if me.draining else NodeState.OK
            own = NodeView(report=me, state=state, reason=me.drain_reason, addresses=me.addresses, rtt_s=0.0)
            self._view = View(
                self_id=me.id, mesh_name=self._mesh_name, mesh_id=self._mesh_id, enabled=self._enabled,
                coordinator=ruled.coordinator, term=ruled.term, alone=ruled.alone, url=ruled.url,
                nodes=(own, *(p.shown() for _, p in sorted(self._peers.items())), *self._outside.shown()),
            )  # fmt: skip
        return self._view

    def gossip(self) -> tuple[PeerSeen, ...]:
        """Peers worth telling others about: reached, and alive."""
        return tuple(p.seen for p in self._peers.values() if p.reached and not p.ended and not p.incompatible)

    def shuns(self, node: NodeId) -> bool:
        """It is no member, or said goodbye to this node: whoever else follows it, this node cannot."""
        if self._members is not None and node not in ("", self._self.id, *self._members):
            return True
        return (peer := self._peers.get(node)) is not None and peer.left

    def lost(self, node: NodeId) -> bool:
        """It is given up: what is said to it does not arrive, or its answer does not."""
        return (peer := self._peers.get(node)) is not None and bool(peer.ended)

    def ranks_last(self, node: NodeId) -> bool:
        """This peer is far and on the added side; so is whom it calls near."""
        return node in self._peers and self._peers[node].ranks_last

    def to_keep(self) -> tuple[PeerSeen, ...]:
        """Peers worth keeping on disk: once reached, dead ones too."""
        return tuple(p.seen for p in self._peers.values() if p.reached)

    def alive(self) -> frozenset[NodeId]:
        """Peers that can be given work."""
        return frozenset(id_ for id_, p in self._peers.items() if p.up)
