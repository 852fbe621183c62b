"""This node's side of a join call: asks a member of another mesh to be let in, and believes only what was proven."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable, Sequence

from msgspec import Struct

from mesh import checks
from mesh.checks import Seen, Token
from mesh.dial import fails
from mesh.doors import Doors
from mesh.errors import MeshError
from mesh.join_call import Begin, Knock, Line, Offer, Result, Reveal
from mesh.join_settings import JoinSettings
from mesh.joining import Outcome, Sight
from mesh.records import Record
from mesh.roll import settle
from mesh.settings import TrustSettings
from node.io import identity as keys
from node.io.identity import Identity
from node.types import NodeId


class Way(Struct, frozen=True):
    """Into another mesh: what its member gave this node, and the number to compare ("": nothing is to be compared)."""

    mesh: str
    mesh_name: str
    node: NodeId
    name: str
    how: str
    records: tuple[Record, ...]
    doors: Doors | None
    check: str


class Came(Struct, frozen=True):
    """How a call ended. `check` is shown while this node waits; `records` say why, if it was removed."""

    outcome: Outcome
    code: str = ""
    why: str = ""
    check: str = ""
    way: Way | None = None
    records: tuple[Record, ...] = ()
    forbidden: str = ""  # what a person must allow, on this machine


class Me(Struct, frozen=True):
    """What this node says of itself."""

    name: str
    mesh_name: str
    port: int
    peer_port: int


class Joiner:
    """Makes join calls with this identity. `numbers` of members (by certificate) that let this node wait are kept, so
    that the number which people compare stays the same. `own` are the records that let this node in; `near` says
    whether an address is in one of this machine's own networks."""

    def __init__(
        self,
        identity: Callable[[], Identity],
        context: Callable[[], ssl.SSLContext],
        settings: JoinSettings,
        own: Callable[[], tuple[Record, ...]] = tuple,
        near: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._near = near
        self._identity, self._context, self._settings, self._own = identity, context, settings, own
        self._numbers: dict[str, str] = {}

    async def ask(self, sight: Sight, me: Me, addresses: Sequence[str], token: Token | None = None) -> Came:
        """At each of these addresses in turn, until somebody says something. Raises nothing but CancelledError."""
        came = Came("failed", "unreachable", f"{sight.name} has no address")
        for address in addresses:
            try:
                async with asyncio.timeout(self._settings.call_s):
                    line = Line(address, sight.peer_port, self._context(), self._settings)
                    await line.open()
                    return await self._asked(line, sight, me, token)
            except MeshError as error:
                came = Came("failed", error.code, error.message)
            except OSError as error:
                failure = fails(address, sight.peer_port, error, near=self._near(address))
                came = Came("failed", "unreachable", failure.why, forbidden=failure.forbidden)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                came = Came("failed", "unreachable", f"{address} port {sight.peer_port}: {error}")
        return came

    async def _asked(self, line: Line, sight: Sight, me: Me, token: Token | None) -> Came:
        identity = self._identity()
        member = keys.fingerprint(line.cert)
        if token is not None and not token.made_by(line.cert):
            return Came("refused", "not_the_inviter", f"{sight.name} is not the node that made this invite: either "
                        "another one is, or somebody is in between")  # fmt: skip
        if sight.hint and token is None and not member.startswith(sight.hint):
            return Came("failed", "other_key", f"{sight.name} has another key than it announces")
        nonce = secrets.token_bytes(checks.NONCE_BYTES)
        begin = Begin(
            id=identity.id, name=me.name, mesh=me.mesh_name, cert=identity.cert,
            commit=checks.commitment(nonce, identity.cert), check=self._numbers.get(member, ""),
            invited=token is not None, port=me.port, peer_port=me.peer_port,
        )  # fmt: skip
        offer = await line.ask(begin)
        if isinstance(offer, Result):
            return Came("busy" if offer.outcome == "busy" else "refused", offer.code, offer.why)
        if not isinstance(offer, Offer) or offer.cert != line.cert:
            return Came("refused", "in_between", f"{sight.name} speaks for another key than it holds: somebody is in "
                        "between")  # fmt: skip
        seen = Seen(identity.cert, line.cert, nonce, offer.nonce)
        proof = token.proof("newcomer", seen) if token is not None else b""
        reveal = Reveal(session=offer.session, nonce=nonce, signature=identity.sign(seen.signed()), proof=proof,
                        records=self._own())  # fmt: skip
        check = self._numbers[member] if offer.known and member in self._numbers else seen.number()
        result = await line.ask(reveal)
        if not isinstance(result, Result):
            raise MeshError("no_answer", f"{sight.name} does not say whether this node is let in")
        if result.outcome == "waiting":
            self._remember(member, check)
            return Came("waiting", result.code, result.why, check, records=result.records)
        if result.outcome != "joined":
            return Came("busy" if result.outcome == "busy" else "refused", result.code, result.why)
        return self._joined(result, line.cert, seen, check, token)

    def _joined(self, result: Result, cert: bytes, seen: Seen, check: str, token: Token | None) -> Came:
        """Only if the records say so, of this node and of who has spoken; of an invite, only if both know it."""
        identity = self._identity()
        if token is not None and result.how != "member" and result.proof != token.proof("member", seen):
            return Came("refused", "in_between", "who answers does not know the invite")
        _, roll = settle(result.records, result.mesh, keys.verify, keys.owner, TrustSettings())
        me, member = roll.members.get(identity.id), roll.members.get(NodeId(keys.owner(cert)))
        if me is None or me.cert != identity.cert or member is None or member.cert != cert:
            return Came("failed", "no_records", f"the records of {result.name} do not let this node in")
        shown = check if result.how in ("window", "tailnet") else ""
        way = Way(result.mesh, roll.name, member.node, member.name, result.how, result.records, result.doors, shown)
        return Came("joined", check=shown, way=way)

    def _remember(self, member: str, check: str) -> None:
        self._numbers[member] = check
        if len(self._numbers) > self._settings.sights_max:
            del self._numbers[next(iter(self._numbers))]

    async def knock(self, addresses: Sequence[str], peer_port: int, knock: Knock) -> bool:
        """Says where this node is. False: nobody heard it."""
        for address in addresses:
            try:
                async with asyncio.timeout(self._settings.call_s):
                    await Line(address, peer_port, self._context(), self._settings).ask(knock)
            except (MeshError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                continue
            return True
        return False
