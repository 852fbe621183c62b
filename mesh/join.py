"""Founding, joining and letting in at work, for one stay with the mesh on. mesh/joining.py and mesh/door.py decide."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, assert_never

import msgspec
from aiohttp import web

from mesh import clock, events, join_words, joining
from mesh.addresses import Addresses
from mesh.checks import Token
from mesh.dial import caller
from mesh.door import Caller, Door, Let, Members, Refuse, Verdict, Wait
from mesh.doors import Doors
from mesh.driver import Driver
from mesh.errors import MeshError
from mesh.join_call import Answer, Begin, Heard, Knock, Result, Reveal, decode_question, encode
from mesh.join_settings import JoinSettings
from mesh.joiner import Came, Joiner, Me, Way
from mesh.joining import Ask, Call, Home, Hurry, Joining, Settle, Sight, Stay, Tick
from mesh.log import event as log_event
from mesh.reception import Reception
from mesh.tls import JOIN
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
        self._daemon, self._addresses, self._tailscale = daemon, addresses, tailscale
        self._tell, self._spread, self._looked = tell, spread, looked
        self.settings = s = settings or JoinSettings()
        self._store = daemon.doors
        self._door: Door = daemon.doors.of(daemon.trust.mesh_id)
        rng = random.Random()  # noqa: S311 - spreads calls, keeps no secret
        self._home = self._present()
        self._machine = Joining(self._home, rng, clock.now(), settled=daemon.doors.settled, settings=s)
        self._driver: Driver[joining.Event, joining.Effect] = Driver(
            self._machine, Tick(), self._perform, failed=failed
        )
        self._reception = Reception(lambda: daemon.trust.identity.cert, self._door.shown, s)
        self._joiner = Joiner(lambda: daemon.trust.identity, daemon.tls.stranger, s, daemon.trust.own_records)
        self._introduced: dict[NodeId, float] = {}  # fellow members that were asked, and when
        self._group: asyncio.TaskGroup | None = None
        self._begun: list[Sight] = []  # calls to make once `run` has begun
        self._reading = 0
        self._news = asyncio.Event()
        self._said_at = float("-inf")
        self._stance = ""
        self._known: set[str] = set()  # newcomers and waiters that were logged
        self.waiting: Came | None = None  # the last word of whom this node waits for
        self.problem = ""

    # Its life

    def routes(self) -> list[web.RouteDef]:
        return [web.post(JOIN, self._answer)]

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._tell(events.Belong(self._others()))
                self._driver.tell(Tick())
                for sight in self._begun:
                    self._group.create_task(self._ask(sight))
                while True:
                    self._news.clear()
                    self.look()
                    left_s = self._door.left_s(clock.now())
                    pause_s = min(self.settings.told_every_s, left_s + 0.05 if left_s else float("inf"))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._news.wait()
        finally:
            self._group = None

    def close(self) -> None:
        self._driver.close()

    # What it is told

    def seen(self, peer: PeerSeen, *, by_hand: bool = False) -> None:
        """A node was found, of this mesh or another of its name."""
        d = self._daemon
        stance = peer.stance or "open"  # found by its address: its well-known says less; asking shows the rest
        if peer.mesh != d.config.mesh_name or not peer.mesh_id or peer.id == d.id:
            return
        if peer.mesh_id == d.trust.mesh_id and peer.id in d.trust.members and d.trust.belongs:
            self._introduce(peer)
            return
        if peer.via == "mdns" and stance in ("open", "kept", "closed") and self._door.gave_up(peer.id, d.id):
            self._news.set()
        self._driver.tell(
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
        if self._group is None or now < self._introduced.get(peer.id, float("-inf")) + self.settings.ask_max_s:
            return
        self._introduced[peer.id] = now
        self._group.create_task(self._introducing(peer))

    async def _introducing(self, peer: PeerSeen) -> None:
        d = self._daemon
        await asyncio.sleep(self.settings.linked_s)
        if peer.id in d.membership.alive() or peer.id not in d.trust.members:
            return
        came = await self._joiner.ask(_sight_of(peer), self._me(), self._addresses.ranked(peer.addresses))
        records = came.way.records if came.way is not None else came.records
        if records and d.trust.merge(records):
            log_event(_log, logging.INFO, "members", f"{peer.name} knew more of who belongs", node=peer.id)

    def took(self, node: NodeId, said: Doors) -> None:
        """Another member's words about the door."""
        if self._door.merge(said, node, self._daemon.trust.members.keys(), clock.now()):
            self._store.save()
            self._news.set()

    def frame(self) -> Doors:
        return self._door.frame(clock.now())

    def members_changed(self) -> None:
        d = self._daemon
        if not d.trust.belongs:  # whom to ask to be let back in, also where mDNS shows nobody
            for peer in d.peers.peers():
                if peer.id != d.id:
                    kept = msgspec.structs.replace(_sight_of(peer), mesh=d.trust.mesh_id, stance="closed")
                    self._driver.tell(kept)
        self._tell(events.Belong(self._others()))
        self.look()

    def look(self) -> None:
        """Brings everybody up to date: the machine, other members, the disk, people, mDNS."""
        now, home = clock.now(), self._present()
        if home != self._home:
            self._home = home
            self._driver.tell(home)
        if self._machine.settled and not self._store.settled:
            self._store.settled = self._door.changed = True
        if self._door.changed or now >= self._said_at + self.settings.told_every_s:
            if self._door.changed:
                self._store.save()
            self._door.changed, self._said_at = False, now
            self._spread(self._door.frame(now))
        self._say(now)
        if self._machine.stance != self._stance:
            self._stance = self._machine.stance
            self._looked()

    def _present(self) -> Home:
        t = self._daemon.trust
        others = len(t.members) - 1 if t.belongs else 0
        is_open = self._door.left_s(clock.now()) > 0
        return Home(mesh=t.mesh_id, others=others, open=is_open, kept=self._door.kept, removed=not t.belongs)

    def _others(self) -> frozenset[NodeId]:
        t = self._daemon.trust
        return frozenset(t.members) - {t.identity.id} if t.belongs else frozenset()

    def _say(self, now: float) -> None:
        """To membership: why others are not in; to the log: who is new."""
        d, why = self._daemon, dict[NodeId, str]()
        me = d.config.node_name
        removed = not d.trust.belongs
        waits = self._machine.waits
        check = self.waiting.check if self.waiting else ""
        for sight in self._machine.sights():
            if sight.mesh == (d.trust.mesh_id if removed else waits.mesh if waits else ""):
                why[sight.node] = join_words.outside(me, check=check, removed=removed)
            else:
                merges = self._machine.stance in ("open", "kept", "looking")
                why[sight.node] = join_words.of_sight(
                    sight, mesh=d.trust.mesh_id, name=d.config.mesh_name, merges=merges
                )
        hidden = set(d.trust.removed) if not removed else set()
        for waiter in self._door.waiting(now) if d.trust.belongs else ():
            why[waiter.node] = join_words.of_waiter(waiter)
            hidden.discard(waiter.node)
            if waiter.address:
                self._tell(events.Seen(PeerSeen(
                    id=waiter.node, name=waiter.name, mesh=d.config.mesh_name, addresses=(waiter.address,),
                    port=waiter.port, peer_port=waiter.peer_port, via="gossip",
                )))  # fmt: skip
            self._log_once(f"w{waiter.node}{waiter.check}", "waits", f"{waiter.name} {why[waiter.node]}", waiter.node)
        for x in self._door.newcomers():
            text = f"{x.name} joined by itself through {x.by}, check number {x.check}; accept or remove it"
            self._log_once(f"n{x.tag}", "newcomer", text, x.node)
        self._tell(events.Outsiders(why, frozenset(hidden)))

    def _log_once(self, key: str, kind: str, text: str, node: NodeId) -> None:
        if key not in self._known:
            self._known.add(key)
            log_event(_log, logging.WARNING, kind, text, node=node)

    def notes(self) -> list[str]:
        """What a person should know, and do."""
        d, machine, now = self._daemon, self._machine, clock.now()
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
            notes += join_words.newcomers_note(self._door.newcomers(), names, d.id)
            notes += join_words.waiters_note(self._door.waiting(now))
            notes += join_words.others_note(machine.sights(), d.config.mesh_name, d.trust.mesh_id, machine.stance)
        if self._door.ended_invites:
            why = self._door.ended_invites
            notes.append(f"every open invite has ended: {why}; `mlx-stack mesh invite` makes another")
        return notes

    @property
    def stance(self) -> joining.Stance:
        """As mDNS tells it (mesh/advert.py)."""
        return self._machine.stance

    @property
    def settled(self) -> bool:
        """This node's mesh counts as founded."""
        return self._machine.settled and self._machine.stance != "out"

    # Asking to be let in

    def _perform(self, effect: Ask | Settle) -> None:
        match effect:
            case Ask(sight):
                if self._group is None:
                    self._begun.append(sight)
                else:
                    self._group.create_task(self._ask(sight))
            case Settle():
                self._news.set()
            case _:
                assert_never(effect)

    async def _ask(self, sight: Sight) -> None:
        came = await self._joiner.ask(sight, self._me(), self._addresses.ranked(sight.addresses))
        self._came(sight, came)

    def _came(self, sight: Sight, came: Came) -> None:
        if came.outcome == "joined" and came.way is not None:
            text = f"joins the mesh {came.way.mesh[:4]} of {came.way.name}" + (
                f", check number {came.check}" if came.check else ""
            )
            log_event(_log, logging.INFO, "joins", text, node=came.way.node)
            self.waiting = None
            if came.way.mesh != self._daemon.trust.mesh_id:
                self._tell_fellows(sight, came.way)
                self._daemon.mesh.move(came.way)  # this stay ends; until then nobody is let in here
                return
            self._daemon.trust.adopt(came.way.records, came.way.mesh)
        elif came.outcome == "waiting":
            if self.waiting is None or self.waiting.check != came.check:
                text = f"{sight.name} lets this node wait ({came.why}); it shows the check number {came.check}"
                log_event(_log, logging.WARNING, "waits", text, node=sight.node)
            self.waiting = came
        elif came.outcome != "busy":
            text = f"{sight.name} does not let this node in: {came.why}"
            log_event(_log, logging.INFO, "join", text, node=sight.node)
        revealed = came.outcome in ("waiting", "refused") or came.code in ("no_records", "no_answer")
        self._driver.tell(Call(sight.node, came.outcome, revealed))
        self._news.set()

    def _tell_fellows(self, sight: Sight, way: Way) -> None:
        """Members of the mesh that is left hear where this node goes, also those whom mDNS does not reach."""
        there = PeerSeen(
            id=way.node, name=way.name, mesh=self._daemon.config.mesh_name, addresses=sight.addresses, port=sight.port,
            peer_port=sight.peer_port, via="gossip", mesh_id=way.mesh, stance=sight.stance,
        )  # fmt: skip
        self._spread(Gossip((there,)))

    def _me(self) -> Me:
        config = self._daemon.config
        return Me(config.node_name, config.mesh_name, config.port, config.peer_port)

    async def use(self, token: Token, peer: PeerSeen | None) -> bool:
        """An invite: asks the node that made it, at `peer` or wherever it is seen. True: this stay ends, and the next
        is in the other mesh. Raises MeshError."""
        sights = [_sight_of(peer)] if peer is not None else await self._inviter(token)
        came = Came("failed", "unseen", "the node that made this invite is not seen here")
        for sight in sights:
            came = await self._joiner.ask(sight, self._me(), self._addresses.ranked(sight.addresses), token)
            if came.code != "not_the_inviter":
                break
        if came.outcome == "joined":
            before = self._daemon.trust.mesh_id
            self._came(sights[0], came)
            return came.way is not None and came.way.mesh != before
        hint = "`mlx-stack mesh add HOST --invite TOKEN` with its address" if came.code == "unseen" else ""
        code = {"bad_invite": "bad_invite", "unseen": "unseen"}.get(came.code, came.code or "not_let_in")
        raise MeshError(code, f"not let in: {came.why}", hint=hint, status=409)

    async def _inviter(self, token: Token) -> list[Sight]:
        """The node with that key among those that are seen; if none says so, all that are."""
        hint, end = token.hint.hex(), clock.now() + INVITED_S
        while True:
            sights = self._machine.sights()
            made = [s for s in sights if s.hint == hint]
            if made or clock.now() >= end:
                return made or [s for s in sights if not s.hint]
            await asyncio.sleep(0.1)

    # Letting in

    async def _answer(self, request: web.Request) -> web.Response:
        """One question of a stranger. What cannot be read is answered with nothing."""
        s, length = self.settings, request.content_length
        if length is None or length > s.body_bytes:
            raise web.HTTPRequestEntityTooLarge(max_size=s.body_bytes, actual_size=length or 0)
        if self._reading >= s.calls_max:
            raise web.HTTPServiceUnavailable
        self._reading += 1
        try:
            async with asyncio.timeout(s.call_s):
                body = await request.content.readexactly(length)
                question = decode_question(body)
                answer = await self._judged(question, caller(request))
        except (TimeoutError, asyncio.IncompleteReadError, ValueError, RecursionError) as error:
            raise web.HTTPBadRequest(text="") from error
        finally:
            self._reading -= 1
        return web.Response(body=encode(answer), content_type="application/msgpack")

    async def _judged(self, question: object, address: str) -> Answer:
        now = clock.now()
        if isinstance(question, Knock):
            self._knocked(question, address)
            return Heard()
        if isinstance(question, Begin):
            return self._why_not(question) or self._reception.begin(question, address, now)
        assert isinstance(question, Reveal)
        found = self._reception.reveal(question, address, now)
        if isinstance(found, Result):
            return found
        begin, asks = found
        if question.records:
            self._daemon.trust.merge(question.records)
        near = not self._addresses.is_far(address)
        own = not near and await self._owns(address)
        asks = msgspec.structs.replace(asks, near=near, own=own)
        return self._why_not(begin) or self._decided(asks)

    def _why_not(self, begin: Begin) -> Result | None:
        d = self._daemon
        if not d.trust.belongs or self._machine.stance == "out":
            return Result(outcome="refused", code="not_a_member", why="this node is not in a mesh itself")
        if self._machine.calling:
            return Result(outcome="busy", code="joining", why="it is about to join another mesh itself")
        if begin.mesh != d.config.mesh_name and not begin.invited:
            why = f"it is in mesh '{d.config.mesh_name}', not '{begin.mesh}'"
            return self._reception.refuse("other_mesh", why)
        return None

    async def _owns(self, address: str) -> bool:
        with suppress(MeshError):
            return await self._tailscale.same_user(address)
        return False

    def _decided(self, asks: Caller) -> Result:
        d, now = self._daemon, clock.now()
        members = Members(
            {node: m.cert for node, m in d.trust.members.items()},
            d.trust.was_removed,
        )
        verdict: Verdict = self._door.judge(asks, members, now)
        result: Result
        match verdict:
            case Let(how, proof):
                result = self._let(asks, how, proof)
            case Wait(why):
                refused = self._door.waits(asks, why, d.id, now)
                told = d.trust.records() if d.trust.was_removed(asks.node, asks.cert) else ()  # it was away, perhaps
                waits = Result(outcome="waiting", why=why, mesh=d.trust.mesh_id, records=told)
                result = waits if refused is None else self._refused(refused)
            case Refuse():
                result = self._refused(verdict)
            case _:
                assert_never(verdict)
        self.look()
        return result

    def _refused(self, refuse: Refuse) -> Result:
        return self._reception.refuse(refuse.code, refuse.why)

    def _let(self, asks: Caller, how: str, proof: bytes) -> Result:
        d = self._daemon
        if how != "member":
            try:
                d.trust.admit(asks.node, asks.name, asks.cert)
            except MeshError as error:
                return self._reception.refuse(error.code, error.message)
            self._door.admitted(asks, how, d.config.node_name, time.time(), clock.now())  # type: ignore[arg-type]
            text = f"{asks.name} is let in ({how}), check number {asks.check}"
            log_event(_log, logging.INFO, "admitted", text, node=asks.node)
        far = self._addresses.is_far(asks.address)
        self._tell(events.Seen(PeerSeen(
            id=asks.node, name=asks.name, mesh=d.config.mesh_name, addresses=(asks.address,), port=asks.port,
            peer_port=asks.peer_port, via="gossip", far=far, added=far and how != "member",
        )))  # fmt: skip
        return Result(
            outcome="joined", how=how, mesh=d.trust.mesh_id, mesh_name=d.trust.mesh_name, node=d.id,
            name=d.config.node_name, records=d.trust.records(), doors=self.frame(), proof=proof,
        )  # fmt: skip

    def _knocked(self, knock: Knock, address: str) -> None:
        """Only a hint, and only from nearby, or from a machine of our own: a member whose mesh lets us in now, or a
        node that a person wants to be with ours."""
        if knock.mesh != self._daemon.config.mesh_name or self._addresses.is_far(address):
            return
        self.seen(PeerSeen(
            id=knock.id, name=knock.name, mesh=knock.mesh, mesh_id=knock.mesh_id, stance=knock.stance, hint=knock.hint,
            addresses=(address,), port=knock.port, peer_port=knock.peer_port,
        ))  # fmt: skip
        self._driver.tell(Hurry(knock.id))

    def _knock(self) -> Knock:
        d = self._daemon
        return Knock(
            id=d.id, name=d.config.node_name, mesh=d.config.mesh_name, mesh_id=d.trust.mesh_id,
            stance=self._machine.stance, hint=d.trust.identity.fingerprint[:16], port=d.config.port,
            peer_port=d.config.peer_port,
        )  # fmt: skip

    async def knock(self, addresses: Sequence[str], peer_port: int) -> bool:
        """Tells a node where this one is."""
        return await self._joiner.knock(self._addresses.ranked(addresses), peer_port, self._knock())

    # People

    def open(self, for_s: float | None) -> float:
        """`mesh open`; seconds that the window is open. On a node that waits outside: its own mesh begins. Raises
        MeshError."""
        if not self._daemon.trust.belongs:
            hint = f"`mlx-stack mesh accept {self._daemon.config.node_name}` on one of its nodes"
            raise MeshError("removed", "this node was removed from its mesh", hint=hint, status=409)
        self._door.open(for_s, clock.now())
        self._driver.tell(Stay())
        self.waiting = None
        self.look()
        return self._door.left_s(clock.now())

    def close_window(self) -> None:
        self._door.close()
        self.look()

    def invite(self) -> Token:
        """Raises MeshError(removed, waits)."""
        if not self._daemon.trust.belongs or self._machine.stance == "out":
            raise MeshError("not_a_member", "this node is in no mesh that it could invite into", status=409,
                            hint="`mlx-stack mesh status` says what it waits for")  # fmt: skip
        token = self._door.invite(self._daemon.trust.identity.cert, secrets.token_bytes, clock.now())
        self._driver.tell(Stay())
        self.look()
        return token

    def accept(self, name: str, check: str = "") -> tuple[NodeId, str, str]:
        """`mesh accept`: lets in who waits, or acknowledges who came by itself: its id, its name, and which of the two
        ("let in", "confirmed"). With `check` only if that is its number. Raises MeshError."""
        d, now = self._daemon, clock.now()
        if not d.trust.belongs:
            raise MeshError("not_a_member", "this node is no member of the mesh itself", status=409,
                            hint="run it on one that is")  # fmt: skip
        waiting = {w.node: w.name for w in self._door.waiting(now)}
        new = {x.node: x.name for x in self._door.newcomers()}
        node = _named({**new, **waiting}, name)
        if node is None:
            there = ", ".join(sorted({**new, **waiting}.values())) or "nobody"
            known = [m.name for m in d.trust.members.values() if name.lower() in (m.name.lower(), m.node)]
            why = f"{known[0]} is a member, and confirmed" if known else f"no node '{name}' asks to be let in"
            raise MeshError("nobody_waits", f"{why}; waiting or new: {there}", status=404,
                            hint="a node asks by itself, within a minute of its start or of a change")  # fmt: skip
        if check and self.checks().get(node) != check:
            why = (
                f"{name} shows the check number {self.checks().get(node)} here, not {check}: somebody may be in between"
            )
            raise MeshError("other_number", why, hint=f"`mlx-stack mesh remove {name}`, then look again", status=409)
        if node in waiting:
            waiter = next(w for w in self._door.waiting(now) if w.node == node)
            d.trust.admit(node, waiter.name, waiter.cert, again=True)
            self._door.let_in(node)
            log_event(_log, logging.INFO, "admitted", f"{waiter.name} is let in by a person here", node=node)
            if self._group is not None and waiter.address:
                self._group.create_task(self.knock((waiter.address,), waiter.peer_port))
            done = "let in"
        else:
            self._door.acknowledge(node)
            done = "confirmed"
        self.look()
        return node, waiting.get(node) or new[node], done

    def waits_for(self, node: NodeId) -> bool:
        """This node waits to be let in by that one."""
        return self._machine.waits is not None and self._machine.waits.node == node

    def forget(self, node: NodeId) -> bool:
        """`mesh remove`: it is new here no more, and does not wait. False: it did neither."""
        found = self._door.forget(node, clock.now())
        self.look()
        return found

    def checks(self) -> dict[NodeId, str]:
        """The numbers to compare, of who waits and who is new, this node's own included."""
        found = {w.node: w.check for w in self._door.waiting(clock.now())}
        found |= {x.node: x.check for x in self._door.newcomers()}
        if self.waiting is not None and self.waiting.check:
            found[self._daemon.id] = self.waiting.check
        return found


def _named(nodes: dict[NodeId, str], text: str) -> NodeId | None:
    """The node a person means: by name, `name~id4`, or the start of its id. Raises MeshError(ambiguous_node)."""
    wanted = text.strip().lower()
    name, _, start = wanted.rpartition("~")
    for found in (
        [n for n, known in nodes.items() if wanted in (known.lower(), n)],
        [n for n, known in nodes.items() if name == known.lower() and len(start) >= 4 and n.startswith(start)],
        [n for n in nodes if len(wanted) >= 4 and n.startswith(wanted)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{nodes[n]}~{n[:4]}" for n in sorted(found))
            why = f"'{text}' is more than one: {listed}"
            raise MeshError("ambiguous_node", why, hint="use one of these", status=409)
    return None


def _sight_of(peer: PeerSeen) -> Sight:
    return Sight(
        node=peer.id, name=peer.name, mesh=peer.mesh_id, stance=peer.stance or "open", addresses=peer.addresses,
        port=peer.port, peer_port=peer.peer_port,
    )  # fmt: skip
