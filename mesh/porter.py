"""Letting in at work: answers strangers' join calls, and does what people say of who belongs. mesh/door.py judges."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, assert_never

import msgspec
from aiohttp import web

from mesh import clock, events
from mesh.checks import Token
from mesh.dial import caller
from mesh.door import Caller, How, Let, Members, Refuse, Verdict, Wait
from mesh.errors import MeshError
from mesh.join_call import Answer, Begin, Heard, Knock, Result, Reveal, decode_question, encode
from mesh.joining import Hurry, Stay
from mesh.log import event as log_event
from mesh.reception import Reception
from mesh.tls import JOIN
from mesh.wire import PeerSeen
from node.types import NodeId

if TYPE_CHECKING:
    from mesh.join import Joins

_log = logging.getLogger("mesh.join")


class Porter:
    """At the door of one stay in a mesh."""

    def __init__(self, stay: Joins) -> None:
        self._stay = stay
        self._reception = Reception(lambda: stay.daemon.trust.identity.cert, stay.door.shown, stay.settings)
        self._reading = 0

    def routes(self) -> list[web.RouteDef]:
        return [web.post(JOIN, self._answer)]

    # Letting in

    async def _answer(self, request: web.Request) -> web.Response:
        """One question of a stranger. What cannot be read is answered with nothing."""
        s, length = self._stay.settings, request.content_length
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
            self._stay.daemon.trust.merge(question.records)
        near = not self._stay.addresses.is_far(address)
        own = not near and await self._owns(address)
        asks = msgspec.structs.replace(asks, near=near, own=own)
        return self._why_not(begin) or self._decided(asks)

    def _why_not(self, begin: Begin) -> Result | None:
        d = self._stay.daemon
        if not d.trust.belongs or self._stay.machine.stance == "out":
            return Result(outcome="refused", code="not_a_member", why="this node is not in a mesh itself")
        if self._stay.machine.calling:
            return Result(outcome="busy", code="joining", why="it is about to join another mesh itself")
        if begin.mesh != d.config.mesh_name and not begin.invited:
            why = f"it is in mesh '{d.config.mesh_name}', not '{begin.mesh}'"
            return self._reception.refuse("other_mesh", why)
        return None

    async def _owns(self, address: str) -> bool:
        with suppress(MeshError):
            return await self._stay.tailscale.same_user(address)
        return False

    def _decided(self, asks: Caller) -> Result:
        d, now = self._stay.daemon, clock.now()
        members = Members(
            {node: m.cert for node, m in d.trust.members.items()},
            d.trust.was_removed,
        )
        verdict: Verdict = self._stay.door.judge(asks, members, now)
        result: Result
        match verdict:
            case Let(how, proof):
                result = self._let(asks, how, proof)
            case Wait(why):
                refused = self._stay.door.waits(asks, why, d.id, now)
                told = d.trust.records() if d.trust.was_removed(asks.node, asks.cert) else ()  # it was away, perhaps
                waits = Result(outcome="waiting", why=why, mesh=d.trust.mesh_id, records=told)
                result = waits if refused is None else self._refused(refused)
            case Refuse():
                result = self._refused(verdict)
            case _:
                assert_never(verdict)
        self._stay.look()
        return result

    def _refused(self, refuse: Refuse) -> Result:
        return self._reception.refuse(refuse.code, refuse.why)

    def _let(self, asks: Caller, how: How, proof: bytes) -> Result:
        d = self._stay.daemon
        if how != "member":
            try:
                d.trust.admit(asks.node, asks.name, asks.cert)
            except MeshError as error:
                return self._reception.refuse(error.code, error.message)
            self._stay.door.admitted(asks, how, d.config.node_name, time.time(), clock.now())
            text = f"{asks.name} is let in ({how}), check number {asks.check}"
            log_event(_log, logging.INFO, "admitted", text, node=asks.node)
        far = self._stay.addresses.is_far(asks.address)
        self._stay.tell(events.Seen(PeerSeen(
            id=asks.node, name=asks.name, mesh=d.config.mesh_name, addresses=(asks.address,), port=asks.port,
            peer_port=asks.peer_port, via="gossip", far=far, added=far and how != "member",
        )))  # fmt: skip
        return Result(
            outcome="joined", how=how, mesh=d.trust.mesh_id, mesh_name=d.trust.mesh_name, node=d.id,
            name=d.config.node_name, records=d.trust.records(), doors=self._stay.frame(), proof=proof,
        )  # fmt: skip

    def _knocked(self, knock: Knock, address: str) -> None:
        """Only a hint, and only from nearby, or from a machine of our own: a member whose mesh lets us in now, or a
        node that a person wants to be with ours."""
        if knock.mesh != self._stay.daemon.config.mesh_name or self._stay.addresses.is_far(address):
            return
        self._stay.seen(PeerSeen(
            id=knock.id, name=knock.name, mesh=knock.mesh, mesh_id=knock.mesh_id, stance=knock.stance, hint=knock.hint,
            addresses=(address,), port=knock.port, peer_port=knock.peer_port,
        ))  # fmt: skip
        self._stay.driver.tell(Hurry(knock.id))

    # People

    def open(self, for_s: float | None) -> float:
        """`mesh open`; seconds that the window is open. On a node that waits outside: its own mesh begins. Raises
        MeshError."""
        if not self._stay.daemon.trust.belongs:
            hint = f"`mlx-stack mesh accept {self._stay.daemon.config.node_name}` on one of its nodes"
            raise MeshError("removed", "this node was removed from its mesh", hint=hint, status=409)
        self._stay.door.open(for_s, clock.now())
        self._stay.driver.tell(Stay())
        self._stay.waiting = None
        self._stay.look()
        return self._stay.door.left_s(clock.now())

    def close_window(self) -> None:
        self._stay.door.close()
        self._stay.look()

    def invite(self) -> Token:
        """Raises MeshError(removed, waits)."""
        if not self._stay.daemon.trust.belongs or self._stay.machine.stance == "out":
            raise MeshError("not_a_member", "this node is in no mesh that it could invite into", status=409,
                            hint="`mlx-stack mesh status` says what it waits for")  # fmt: skip
        token = self._stay.door.invite(self._stay.daemon.trust.identity.cert, secrets.token_bytes, clock.now())
        self._stay.driver.tell(Stay())
        self._stay.look()
        return token

    def accept(self, name: str, check: str = "") -> tuple[NodeId, str, str]:
        """`mesh accept`: lets in who waits, or acknowledges who came by itself: its id, its name, and which of the two
        ("let in", "confirmed"). With `check` only if that is its number. Raises MeshError."""
        d, now = self._stay.daemon, clock.now()
        if not d.trust.belongs:
            raise MeshError("not_a_member", "this node is no member of the mesh itself", status=409,
                            hint="run it on one that is")  # fmt: skip
        waiting = {w.node: w.name for w in self._stay.door.waiting(now)}
        new = {x.node: x.name for x in self._stay.door.newcomers()}
        node = _named({**new, **waiting}, name)
        if node is None:
            there = ", ".join(sorted({**new, **waiting}.values())) or "nobody"
            known = [m.name for m in d.trust.members.values() if name.lower() in (m.name.lower(), m.node)]
            why = f"{known[0]} is a member, and confirmed" if known else f"no node '{name}' asks to be let in"
            raise MeshError("nobody_waits", f"{why}; waiting or new: {there}", status=404,
                            hint="a node asks by itself, within a minute of its start or of a change")  # fmt: skip
        alike = [m.node for m in d.trust.members.values() if m.name.lower() == name.lower() and m.node != node]
        if node in waiting and alike:
            raise MeshError("ambiguous", f"a member is called {name}, too ({alike[0]})", status=409,
                            hint=f"`mlx-stack mesh accept {node}` lets in the one that waits")  # fmt: skip
        if check and self.checks().get(node) != check:
            why = (
                f"{name} shows the check number {self.checks().get(node)} here, not {check}: somebody may be in between"
            )
            raise MeshError("other_number", why, hint=f"`mlx-stack mesh remove {name}`, then look again", status=409)
        if node in waiting:
            waiter = next(w for w in self._stay.door.waiting(now) if w.node == node)
            d.trust.admit(node, waiter.name, waiter.cert, again=True)
            self._stay.door.let_in(node)
            log_event(_log, logging.INFO, "admitted", f"{waiter.name} is let in by a person here", node=node)
            if self._stay.group is not None and waiter.address:
                self._stay.group.create_task(self._stay.knock((waiter.address,), waiter.peer_port))
            done = "let in"
        else:
            self._stay.door.acknowledge(node)
            done = "confirmed"
        self._stay.look()
        return node, waiting.get(node) or new[node], done

    def forget(self, node: NodeId) -> bool:
        """`mesh remove`: it is new here no more, and does not wait. False: it did neither."""
        found = self._stay.door.forget(node, clock.now())
        self._stay.look()
        return found

    def checks(self) -> dict[NodeId, str]:
        """The numbers to compare, of who waits and who is new, this node's own included."""
        found = {w.node: w.check for w in self._stay.door.waiting(clock.now())}
        found |= {x.node: x.check for x in self._stay.door.newcomers()}
        if self._stay.waiting is not None and self._stay.waiting.check:
            found[self._stay.daemon.id] = self._stay.waiting.check
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
