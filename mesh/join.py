"""Founding, joining and letting in at work, for one stay with the mesh on. mesh/joining.py and mesh/door.py decide."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, assert_never

import msgspec

from mesh import clock, events, join_words, joining
from mesh.addresses import Addresses
from mesh.checks import Token
from mesh.door import Door
from mesh.doors import Doors
from mesh.driver import Driver
from mesh.errors import MeshError
from mesh.join_call import Knock
from mesh.join_settings import JoinSettings
from mesh.joiner import Came, Joiner, Me, Way
from mesh.joining import Ask, Call, Home, Joining, Settle, Sight, Tick
from mesh.log import event as log_event
from mesh.porter import Porter
from mesh.wire import Frame, Gossip, PeerSeen
from node.types import NodeId

if TYPE_CHECKING:
    from mesh.daemon import Daemon
    from mesh.tailnet import Tailscale

_log = logging.getLogger("mesh.join")
INVITED_S = 10.0  # for the node that made an invite to be seen


class Joins:
    """`tell` is membership, `spread` sends a frame to every member, `failed` as Driver's; `looked` is called when this
    node's stance may be another. All are synchronous."""

    def __init__(
        self,
        daemon: Daemon,
        addresses: Addresses,
        tailscale: Tailscale,
        *,
        tell: Callable[[events.Event], None],
        spread: Callable[[Frame], object],
        looked: Callable[[], None],
        failed: Callable[[Exception], None],
        settings: JoinSettings | None = None,
    ) -> None:
        self.daemon, self.addresses, self.tailscale = daemon, addresses, tailscale
        self.tell, self._spread, self._looked = tell, spread, looked
        self.settings = s = settings or JoinSettings()
        self._store = daemon.doors
        self.door: Door = daemon.doors.of(daemon.trust.mesh_id)
        rng = random.Random()  # noqa: S311 - spreads calls, keeps no secret
        self._home = self._present()
        self.machine = Joining(self._home, rng, clock.now(), settled=daemon.doors.settled, settings=s)
        self.driver: Driver[joining.Event, joining.Effect] = Driver(self.machine, Tick(), self._perform, failed=failed)
        self._joiner = Joiner(
            lambda: daemon.trust.identity,
            daemon.peer_tls.stranger,
            s,
            daemon.trust.own_records,
            near=lambda address: not addresses.is_far(address),
        )
        self._introduced: dict[NodeId, float] = {}  # fellow members that were asked, and when
        self.group: asyncio.TaskGroup | None = None
        self._begun: list[Sight] = []  # calls to make once `run` has begun
        self._news = asyncio.Event()
        self._said_at = float("-inf")
        self._stance = ""
        self._known: set[str] = set()  # newcomers and waiters that were logged
        self.porter = Porter(self)
        self.forbidden: dict[NodeId, str] = {}  # what a person must allow here before that node can be asked
        self.waiting: Came | None = None  # the last word of whom this node waits for
        self.problem = ""

    # Its life

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as self.group:
                self.tell(events.Belong(self._others()))
                self.driver.tell(Tick())
                for sight in self._begun:
                    self.group.create_task(self._ask(sight))
                while True:
                    self._news.clear()
                    self.look()
                    left_s = self.door.left_s(clock.now())
                    pause_s = min(self.settings.told_every_s, left_s + 0.05 if left_s else float("inf"))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._news.wait()
        finally:
            self.group = None

    def close(self) -> None:
        self.driver.close()

    # What it is told

    def seen(self, peer: PeerSeen, *, by_hand: bool = False) -> None:
        """A node was found, of this mesh or another of its name."""
        d = self.daemon
        stance = peer.stance or "open"  # found by its address: its well-known says less; asking shows the rest
        if peer.mesh != d.config.mesh_name or not peer.mesh_id or peer.id == d.id:
            return
        if peer.mesh_id == d.trust.mesh_id and peer.id in d.trust.members and d.trust.belongs:
            self._introduce(peer)
            return
        if peer.via == "mdns" and stance in ("open", "kept", "closed") and self.door.gave_up(peer.id, d.id):
            self._news.set()
        self.driver.tell(
            Sight(
                node=peer.id, name=peer.name, mesh=peer.mesh_id, stance=stance, addresses=peer.addresses,
                port=peer.port, peer_port=peer.peer_port, hint=peer.hint, may=by_hand or not peer.far,
                by_hand=by_hand,
            )
        )  # fmt: skip
        self._news.set()

    def _introduce(self, peer: PeerSeen) -> None:
        """A fellow member. Should there be no link soon, one of the two has not heard of what became of the other."""
        now = clock.now()
        if self.group is None or now < self._introduced.get(peer.id, float("-inf")) + self.settings.ask_max_s:
            return
        self._introduced[peer.id] = now
        self.group.create_task(self._introducing(peer))

    async def _introducing(self, peer: PeerSeen) -> None:
        d = self.daemon
        await asyncio.sleep(self.settings.linked_s)
        if peer.id in d.membership.alive() or peer.id not in d.trust.members:
            return
        came = await self._joiner.ask(_sight_of(peer), self._me(), self.addresses.ranked(peer.addresses))
        records = came.way.records if came.way is not None else came.records
        if records and d.trust.merge(records):
            log_event(_log, logging.INFO, "members", f"{peer.name} knew more of who belongs", node=peer.id)

    def took(self, node: NodeId, said: Doors) -> None:
        """Another member's words about the door."""
        if self.door.merge(said, node, self.daemon.trust.members.keys(), clock.now()):
            self._store.save()
            self._news.set()

    def frame(self) -> Doors:
        return self.door.frame(clock.now())

    def members_changed(self) -> None:
        d = self.daemon
        if not d.trust.belongs:  # whom to ask to be let back in, also where mDNS shows nobody
            for peer in d.peers.peers():
                if peer.id != d.id:
                    kept = msgspec.structs.replace(_sight_of(peer), mesh=d.trust.mesh_id, stance="closed")
                    self.driver.tell(kept)
        self.tell(events.Belong(self._others()))
        self.look()

    def look(self) -> None:
        """Brings everybody up to date: the machine, other members, the disk, people, mDNS."""
        now, home = clock.now(), self._present()
        if home != self._home:
            self._home = home
            self.driver.tell(home)
        if self.machine.settled and not self._store.settled:
            self._store.settled = self.door.changed = True
        if self.door.changed or now >= self._said_at + self.settings.told_every_s:
            if self.door.changed:
                self._store.save()
            self.door.changed, self._said_at = False, now
            self._spread(self.door.frame(now))
        self._say(now)
        if self.machine.stance != self._stance:
            self._stance = self.machine.stance
            self._looked()

    def _present(self) -> Home:
        t = self.daemon.trust
        others = len(t.members) - 1 if t.belongs else 0
        is_open = self.door.left_s(clock.now()) > 0
        return Home(mesh=t.mesh_id, others=others, open=is_open, kept=self.door.kept, removed=not t.belongs)

    def _others(self) -> frozenset[NodeId]:
        t = self.daemon.trust
        return frozenset(t.members) - {t.identity.id} if t.belongs else frozenset()

    def _say(self, now: float) -> None:
        """To membership: why others are not in; to the log: who is new."""
        d, why = self.daemon, dict[NodeId, str]()
        me = d.config.node_name
        removed = not d.trust.belongs
        waits = self.machine.waits
        check = self.waiting.check if self.waiting else ""
        sights = self.machine.sights()
        self.forbidden = {x.node: self.forbidden[x.node] for x in sights if x.node in self.forbidden}
        for sight in sights:
            if sight.node in self.forbidden:
                why[sight.node] = f"it cannot be asked to let this node in: {self.forbidden[sight.node]}"
            elif sight.mesh == (d.trust.mesh_id if removed else waits.mesh if waits else ""):
                why[sight.node] = join_words.outside(me, check=check, removed=removed)
            else:
                merges = self.machine.stance in ("open", "kept", "looking")
                why[sight.node] = join_words.of_sight(
                    sight, mesh=d.trust.mesh_id, name=d.config.mesh_name, merges=merges
                )
        hidden = set(d.trust.removed) if not removed else set()
        for waiter in self.door.waiting(now) if d.trust.belongs else ():
            why[waiter.node] = join_words.of_waiter(waiter)
            hidden.discard(waiter.node)
            if waiter.address:
                self.tell(events.Seen(PeerSeen(
                    id=waiter.node, name=waiter.name, mesh=d.config.mesh_name, addresses=(waiter.address,),
                    port=waiter.port, peer_port=waiter.peer_port, via="gossip",
                )))  # fmt: skip
            self._log_once(f"w{waiter.node}{waiter.check}", "waits", f"{waiter.name} {why[waiter.node]}", waiter.node)
        for x in self.door.newcomers():
            text = f"{x.name} joined by itself through {x.by}, check number {x.check}; accept or remove it"
            self._log_once(f"n{x.tag}", "newcomer", text, x.node)
        self.tell(events.Outsiders(why, frozenset(hidden)))

    def _log_once(self, key: str, kind: str, text: str, node: NodeId) -> None:
        if key not in self._known:
            self._known.add(key)
            log_event(_log, logging.WARNING, kind, text, node=node)

    def notes(self) -> list[str]:
        """What a person should know, and do."""
        d, machine, now = self.daemon, self.machine, clock.now()
        names = d.membership.view().names()
        notes = [self.problem] if self.problem else []
        removed = not d.trust.belongs
        if removed or machine.waits is not None:
            asked = machine.sight(machine.waits.node) if machine.waits else None
            notes.append(join_words.waits_note(
                d.config.node_name, mesh=machine.waits.mesh if machine.waits else d.trust.mesh_id,
                member=asked.name if asked else "others", check=self.waiting.check if self.waiting else "",
                removed=removed,
            ))  # fmt: skip
        else:
            notes += join_words.newcomers_note(self.door.newcomers(), names, d.id)
            notes += join_words.waiters_note(self.door.waiting(now))
            notes += join_words.others_note(machine.sights(), d.config.mesh_name, d.trust.mesh_id, machine.stance)
        if self.door.ended_invites:
            why = self.door.ended_invites
            notes.append(f"every open invite has ended: {why}; `mlx-stack mesh invite` makes another")
        return notes

    @property
    def stance(self) -> joining.Stance:
        """As mDNS tells it (mesh/advert.py)."""
        return self.machine.stance

    @property
    def settled(self) -> bool:
        """This node's mesh counts as founded."""
        return self.machine.settled and self.machine.stance != "out"

    # Asking to be let in

    def _perform(self, effect: Ask | Settle) -> None:
        match effect:
            case Ask(sight):
                if self.group is None:
                    self._begun.append(sight)
                else:
                    self.group.create_task(self._ask(sight))
            case Settle():
                self._news.set()
            case _:
                assert_never(effect)

    async def _ask(self, sight: Sight) -> None:
        came = await self._joiner.ask(sight, self._me(), self.addresses.ranked(sight.addresses))
        self._came(sight, came)

    def _came(self, sight: Sight, came: Came) -> None:
        if came.forbidden:
            self.forbidden[sight.node] = came.forbidden
        else:
            self.forbidden.pop(sight.node, None)
        if came.outcome == "joined" and came.way is not None:
            text = f"joins the mesh {came.way.mesh[:4]} of {came.way.name}" + (
                f", check number {came.check}" if came.check else ""
            )
            log_event(_log, logging.INFO, "joins", text, node=came.way.node)
            self.waiting = None
            if came.way.mesh != self.daemon.trust.mesh_id:
                self._tell_fellows(sight, came.way)
                self.daemon.mesh.move(came.way)  # this stay ends; until then nobody is let in here
                return
            self.daemon.trust.adopt(came.way.records, came.way.mesh)
        elif came.outcome == "waiting":
            if self.waiting is None or self.waiting.check != came.check:
                text = f"{sight.name} lets this node wait ({came.why}); it shows the check number {came.check}"
                log_event(_log, logging.WARNING, "waits", text, node=sight.node)
            self.waiting = came
        elif came.outcome != "busy":
            text = f"{sight.name} does not let this node in: {came.why}"
            log_event(_log, logging.INFO, "join", text, node=sight.node)
        revealed = came.outcome in ("waiting", "refused") or came.code in ("no_records", "no_answer")
        self.driver.tell(Call(sight.node, came.outcome, revealed))
        self._news.set()

    def _tell_fellows(self, sight: Sight, way: Way) -> None:
        """Members of the mesh that is left hear where this node goes, also those whom mDNS does not reach."""
        there = PeerSeen(
            id=way.node, name=way.name, mesh=self.daemon.config.mesh_name, addresses=sight.addresses, port=sight.port,
            peer_port=sight.peer_port, via="gossip", mesh_id=way.mesh, stance=sight.stance,
        )  # fmt: skip
        self._spread(Gossip((there,)))

    def _me(self) -> Me:
        config = self.daemon.config
        return Me(config.node_name, config.mesh_name, config.port, config.peer_port)

    async def use(self, token: Token, peer: PeerSeen | None) -> bool:
        """An invite: asks the node that made it, at `peer` or wherever it is seen. True: this stay ends, and the next
        is in the other mesh. Raises MeshError."""
        sights = [_sight_of(peer)] if peer is not None else await self._inviter(token)
        came = Came("failed", "unseen", "the node that made this invite is not seen here")
        for sight in sights:
            came = await self._joiner.ask(sight, self._me(), self.addresses.ranked(sight.addresses), token)
            if came.code != "not_the_inviter":
                break
        if came.outcome == "joined":
            before = self.daemon.trust.mesh_id
            self._came(sights[0], came)
            return came.way is not None and came.way.mesh != before
        hint = "`mlx-stack mesh add HOST --invite TOKEN` with its address" if came.code == "unseen" else ""
        code = {"bad_invite": "bad_invite", "unseen": "unseen"}.get(came.code, came.code or "not_let_in")
        raise MeshError(code, f"not let in: {came.why}", hint=hint, status=409)

    async def _inviter(self, token: Token) -> list[Sight]:
        """The node with that key among those that are seen; if none says so, all that are."""
        hint, end = token.hint.hex(), clock.now() + INVITED_S
        while True:
            sights = self.machine.sights()
            made = [s for s in sights if s.hint == hint]
            if made or clock.now() >= end:
                return made or [s for s in sights if not s.hint]
            await asyncio.sleep(0.1)

    def _knock(self) -> Knock:
        d = self.daemon
        return Knock(
            id=d.id, name=d.config.node_name, mesh=d.config.mesh_name, mesh_id=d.trust.mesh_id,
            stance=self.machine.stance, hint=d.trust.identity.fingerprint[:16], port=d.config.port,
            peer_port=d.config.peer_port,
        )  # fmt: skip

    async def knock(self, addresses: Sequence[str], peer_port: int) -> bool:
        """Tells a node where this one is."""
        return await self._joiner.knock(self.addresses.ranked(addresses), peer_port, self._knock())

    def waits_for(self, node: NodeId) -> bool:
        """This node waits to be let in by that one."""
        return self.machine.waits is not None and self.machine.waits.node == node


def _sight_of(peer: PeerSeen) -> Sight:
    return Sight(
        node=peer.id, name=peer.name, mesh=peer.mesh_id, stance=peer.stance or "open", addresses=peer.addresses,
        port=peer.port, peer_port=peer.peer_port,
    )  # fmt: skip
