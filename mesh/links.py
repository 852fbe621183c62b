"""One WebSocket per pair of members, dialled again for as long as the peer is wanted.

Both sides dial; of two links between the same processes the one dialled by the smaller id stays, and the other ends
with `bye: duplicate`. What happens is told as membership's events, LinkUp and LinkClosed strictly in turn per node.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext, suppress

import aiohttp
from aiohttp import web

from mesh.clones import Met, Spoke
from mesh.dial import Connected, Failed, caller, fails, race
from mesh.events import Event, LinkClosed, LinkUp, Tried, Unfit
from mesh.link import Counts, Link, Ways, closing, first_frame, now
from mesh.settings import LinkSettings
from mesh.tls import MEMBER
from mesh.wanted import Wanted
from mesh.wire import FRAME_BYTES_MAX, PROTOCOL, Bye, Frame, Gossip, Hello, PeerSeen, WireError, encode
from node.types import NodeId

PATH = "/mesh/v1/link"


class Links:
    """`hello` is asked for each link, so that it is up to date; `tls` for each dial: None when that node is no member;
    `tell` gets membership's events; `on_frame` every frame but hello, bye, ping and pong, after its Framed; `on_other`
    hears of a process that has the id of this node, or of a linked one. All callbacks are synchronous. `ranked` puts
    addresses into the order to dial them."""

    def __init__(
        self,
        *,
        hello: Callable[[], Hello],
        session: aiohttp.ClientSession,
        tls: Callable[[NodeId], ssl.SSLContext | None],
        tell: Callable[[Event], None],
        on_frame: Callable[[NodeId, Frame], None],
        rng: random.Random,
        is_far: Callable[[str], bool] = lambda _address: False,
        ranked: Callable[[Iterable[str]], Sequence[str]] = tuple,
        on_other: Callable[[Spoke | Met], None] = lambda _: None,
        on_noise: Callable[[str, str], None] = lambda _address, _code: None,
        settings: LinkSettings | None = None,
    ) -> None:
        self._hello, self._session, self._tls, self._tell = hello, session, tls, tell
        self._rng, self._is_far, self._settings = rng, is_far, settings or LinkSettings()
        self._on_other = on_other
        self._ranked = ranked
        self._links: dict[NodeId, Link] = {}
        self._carried = 0  # links that still have a socket, dropped ones too
        self._idle = asyncio.Event()
        self._wanted: dict[NodeId, Wanted] = {}
        self._group: asyncio.TaskGroup | None = None
        self._closing = False
        self._strangers = asyncio.Semaphore(self._settings.strangers_max)
        self.forbidden: dict[NodeId, str] = {}  # what a person must allow before this peer can be reached
        self.counts = Counts()
        self._ways = Ways(tell=tell, on_frame=on_frame, over=self._drop, noise=on_noise)
        self._on_noise = on_noise

    # The face

    def routes(self) -> list[web.RouteDef]:
        """For the peer port's app."""
        return [web.get(PATH, self._accept)]

    async def run(self) -> None:
        """Dials and accepts until cancelled; close() first lets the others know."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for wanted in self._wanted.values():
                    group.create_task(self._keep(wanted))
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    async def close(self, reason: str) -> None:
        """Says bye on every link, dials and accepts no more; returns when all are closed, at most 2 x close_s later."""
        self._closing = True
        for node in set(self._wanted) | set(self._links):
            self.forget(node, reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self._settings.close_s):
                while self._carried:
                    self._idle.clear()
                    await self._idle.wait()

    def dial(self, node: NodeId, addresses: Sequence[str], peer_port: int, *, at_once: bool) -> None:
        """Keep a link with `node` from now on, at these addresses, best first; `at_once` skips the back-off."""
        if self._closing:  # membership wants every lost link back
            return
        wanted = self._wanted.get(node)
        if wanted is None:
            wanted = self._wanted[node] = Wanted(node, tuple(addresses), peer_port)
            if self._group is not None:
                self._group.create_task(self._keep(wanted))
        wanted.addresses, wanted.port = tuple(addresses), peer_port
        link = self._links.get(node)
        if link is not None and link.address in wanted.addresses:  # it dialled us before we knew of it
            wanted.good = link.address
        if at_once:
            wanted.at_once = True
            wanted.wake.set()

    def forget(self, node: NodeId, reason: str) -> None:
        """Dial no more, and close the link, if any, with this bye."""
        wanted = self._wanted.pop(node, None)
        self.forbidden.pop(node, None)
        if wanted is not None:
            wanted.forgotten = True
            wanted.wake.set()
        link = self._links.get(node)
        if link is not None:
            self._drop(link, reason, False, Bye(reason))

    def members_changed(self, came: Iterable[NodeId], gone: Iterable[NodeId]) -> None:
        """Who is no member any more has no link from now on; who has become one is dialled now, if it is wanted."""
        for node in gone:
            if (link := self._links.get(node)) is not None:
                self._drop(link, "it is no member any more", False, Bye("no member of this mesh", leaves=False))
        for node in came:
            if (wanted := self._wanted.get(node)) is not None:
                wanted.at_once, wanted.failures = True, 0
                wanted.wake.set()

    def renew(self, mine: Collection[str] | None = None) -> None:
        """After a sleep, or when the network here has changed: links from an address that is not in `mine` any more
        end (None: all are still there), the others must show life within probe_s, and who has none is dialled now."""
        for link in list(self._links.values()):
            if mine is not None and link.local and link.local not in mine:
                self._drop(link, f"this node's address {link.local} is gone", False, None)
            else:
                link.probe()
        for wanted in self._wanted.values():
            if wanted.node not in self._links:
                wanted.at_once, wanted.failures = True, 0
                wanted.wake.set()

    def leave(self, node: NodeId, addresses: Collection[str]) -> None:
        """The link with `node`, if it goes to one of these addresses, ends: they are no longer its own."""
        link = self._links.get(node)
        if link is not None and link.address in addresses:
            self._drop(link, f"its address {link.address} is gone", False, None)

    def probe(self, node: NodeId) -> None:
        """The link with `node`, if any, must show life within probe_s."""
        if (link := self._links.get(node)) is not None:
            link.probe()

    def ask_who(self, address: str, peer_port: int) -> None:
        """Says hello there, once, and hangs up: whoever has this node's id is told to `on_other`, and hears of us."""
        if self._group is not None and not self._closing:
            self._group.create_task(self._asked_who(address, peer_port))

    def send(self, node: NodeId, frame: Frame) -> bool:
        """Puts it into the outbox. False: no link now (or no longer: a full outbox closes it). Raises WireError."""
        return self._send(node, encode(frame))

    def send_all(self, frame: Frame) -> int:
        """To every linked node; how many. Raises WireError."""
        data = encode(frame)
        return sum(self._send(node, data) for node in list(self._links))

    def linked(self) -> frozenset[NodeId]:
        return frozenset(self._links)

    def _send(self, node: NodeId, data: bytes) -> bool:
        link = self._links.get(node)
        return link is not None and link.offer(data)

    # Dialling

    async def _keep(self, wanted: Wanted) -> None:
        """Dials whenever there is no link, until forgotten."""
        while not wanted.forgotten:
            if wanted.node in self._links:
                wanted.wake.clear()
                await wanted.wake.wait()
                continue
            larger = self._hello().id > wanted.node
            await wanted.pause(self._settings, larger=larger, jitter=self._rng.uniform(0.5, 1.0))
            if wanted.forgotten or wanted.node in self._links:
                continue
            wanted.tried_at = now()
            link = await self._dialled(wanted)
            if link:
                await self._carry(link)
            lasted = link is not None and now() - wanted.tried_at > self._settings.backoff_max_s
            wanted.failures = 0 if lasted else wanted.failures + 1  # who says hello and bye each time is not hurried

    async def _dialled(self, wanted: Wanted) -> Link | None:
        """One attempt at all its addresses; every failure is told."""

        def failed(failure: Failed) -> None:
            last_good = failure.address == wanted.good
            if failure.forbidden:
                self.forbidden[wanted.node] = failure.forbidden
            self._tell(Tried(wanted.node, failure.address, failure.kind, failure.why, last_good))

        won = await self._raced(wanted, failed)
        if won is None:
            wanted.wrong.clear()
            return None
        link = None
        try:
            if not wanted.forgotten and wanted.node not in self._links:
                link = await self._introduced(won, wanted)
        except (TimeoutError, WireError, OSError, aiohttp.ClientError) as error:
            failed(fails(won.address, wanted.port, error))
        if link is None:
            async with closing(won.ws, self._settings.close_s):
                pass
        return link

    async def _asked_who(self, address: str, peer_port: int) -> None:
        tls = self._tls(self._hello().id)  # a copied disk has this node's key
        if tls is None:
            return
        won = await race(
            self._session, [address], peer_port, PATH, tls=tls, settings=self._settings, failed=lambda _: None
        )
        if won is None:
            return
        async with closing(won.ws, self._settings.close_s):
            with suppress(TimeoutError, WireError, OSError, aiohttp.ClientError):
                mine = self._hello()
                await won.ws.send_bytes(encode(mine))
                theirs = await first_frame(won.ws, self._settings.hello_s)
                if isinstance(theirs, Hello):
                    self._objection(mine, theirs, None, won.address)

    async def _raced(self, wanted: Wanted, failed: Callable[[Failed], None]) -> Connected | None:
        """The first of its addresses that opens. Peers that were never reached wait for each other: anybody on the
        network may say that there are hundreds. None of who is no member."""
        tls = self._tls(wanted.node)
        if tls is None:
            failed(Failed("", "rejected", "is no member of this mesh"))
            return None
        good = (wanted.good,) if wanted.good in wanted.addresses else ()
        order = [a for a in self._ranked(dict.fromkeys((*good, *wanted.addresses))) if a]
        order = [a for a in order if a not in wanted.wrong] or order  # it would open first each time
        async with self._strangers if wanted.good is None else nullcontext():
            return await race(
                self._session, order, wanted.port, PATH, tls=tls, settings=self._settings, failed=failed,
                near=lambda address: not self._is_far(address),
            )  # fmt: skip

    async def _introduced(self, won: Connected, wanted: Wanted) -> Link | None:
        """Hello there and back. None: this pair has another link. Raises what first_frame raises, and WireError."""
        mine = self._hello()
        await won.ws.send_bytes(encode(mine))
        theirs = await first_frame(won.ws, self._settings.hello_s)
        if theirs == Bye("duplicate"):
            self.counts.duplicates += 1
            return None
        if isinstance(theirs, Bye):
            raise WireError("garbled", f"says {theirs.reason}")
        why = self._objection(mine, theirs, wanted.node, won.address)
        if theirs.id != wanted.node:
            wanted.wrong.add(won.address)
        if why:
            raise WireError("garbled", why)
        return self._admit(won, theirs, dialler=self._hello().id)

    def _objection(self, mine: Hello, theirs: Hello, expected: NodeId | None, address: str) -> str:
        """Why there is no link with who said `theirs` and heard `mine`; "" when there may be."""
        if theirs.id == mine.id and theirs.boot != mine.boot:
            self._on_other(Met(mine, theirs, address))
            return f"it has this node's id: {theirs.name} ({theirs.id}) is a copied disk"
        if theirs.id == mine.id:
            return "it is this node itself"
        if expected is not None and theirs.id != expected:
            return f"another node answers there: {theirs.name} ({theirs.id})"
        if theirs.protocol != PROTOCOL:
            self._tell(Unfit(theirs, "other_version"))
            return f"speaks protocol {theirs.protocol}, not {PROTOCOL}"
        if theirs.mesh != mine.mesh:
            self._tell(Unfit(theirs, "other_mesh"))
            return f"belongs to mesh '{theirs.mesh}', not '{mine.mesh}'"
        return ""

    # Accepting

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        if self._group is None or self._closing:
            raise web.HTTPServiceUnavailable(text="the mesh is switched off on this node")
        ws = web.WebSocketResponse(
            max_msg_size=FRAME_BYTES_MAX, compress=False, timeout=self._settings.close_s, autoclose=False
        )
        link = None
        try:
            await ws.prepare(request)
            theirs = await first_frame(ws, self._settings.hello_s)
            if isinstance(theirs, Hello):
                if theirs.id != request.get(MEMBER):
                    raise WireError("forged", f"it says that it is {theirs.id}, which its key is not")
                link = await self._answered(ws, theirs, caller(request))
        except (TimeoutError, WireError, OSError) as error:
            code = error.code if isinstance(error, WireError) else "no_hello"
            self.counts.drop(code)
            self._on_noise(caller(request), code)
        if link:
            await self._carry(link)
        else:
            async with closing(ws, self._settings.close_s):
                pass
        return ws

    async def _answered(self, ws: web.WebSocketResponse, theirs: Hello, address: str) -> Link | None:
        """Our hello, and with it the link; or our hello and a bye that says why not."""
        mine = self._hello()
        why = self._objection(mine, theirs, None, address)
        if why:
            await ws.send_bytes(encode(mine))
            await ws.send_bytes(encode(Bye(f"no link: {why}")))
            return None
        link = self._admit(Connected(address, ws), theirs, dialler=theirs.id)
        if link is None:
            self.counts.duplicates += 1
            await ws.send_bytes(encode(Bye("duplicate")))
        return link

    # A link's life

    def _admit(self, connected: Connected, hello: Hello, *, dialler: NodeId) -> Link | None:
        """Puts it into the list, in place of an older one if need be; None if the older one stays."""
        old = self._links.get(hello.id)
        if old is not None:
            if old.hello.boot != hello.boot:
                self._on_other(Spoke(hello.id, hello.boot, f"{hello.name} at {connected.address}"))
                elsewhere = PeerSeen.by_hello(hello, connected.address)
                old.offer(encode(Gossip((elsewhere,))))  # should it live, it asks there itself
            if self._stays(old, hello, dialler):
                old.probe()  # its peer would not dial if it still had it: a new address, a sleep, a cable
                return None
            self.counts.duplicates += 1
            self._drop(old, "replaced by a newer link", False, Bye("duplicate"))
        link = Link(
            connected.ws, hello, connected.address, dialler=dialler, ways=self._ways, counts=self.counts,
            settings=self._settings,
        )  # fmt: skip
        mine = self._hello()
        if dialler != mine.id:
            link.offer(encode(mine))  # before anything else is sent
        self._links[hello.id] = link
        self.forbidden.pop(hello.id, None)
        wanted = self._wanted.get(hello.id)
        if wanted is not None and (dialler == mine.id or connected.address in wanted.addresses):
            wanted.good = connected.address
        self._tell(LinkUp(hello, connected.address, self._is_far(connected.address)))
        return link

    def _stays(self, old: Link, hello: Hello, dialler: NodeId) -> bool:
        """Of two links with the same process the one dialled by the smaller id stays, unless nothing is heard on it or
        the other side has evidently lost it: its dialler dials again, or it is older than any dial under way. Of two
        processes with one id the present one stays while it is heard: a copied disk must not break what runs there.
        One that was restarted has closed its old link."""
        if old.hello.boot != hello.boot:
            return old.lively
        both_dialled = old.dialler < dialler and now() - old.since <= self._settings.connect_s + self._settings.hello_s
        return old.lively and both_dialled

    def _drop(self, link: Link, why: str, eof: bool, bye: Bye | None) -> None:
        """Out of the list, told, and its own task closes it. Idempotent."""
        if self._links.get(link.node) is not link:
            return
        del self._links[link.node]
        link.end(bye)
        wanted = self._wanted.get(link.node)
        if wanted is not None:
            wanted.wake.set()
        self._tell(LinkClosed(link.node, why, eof))

    async def _carry(self, link: Link) -> None:
        self._carried += 1
        try:
            await link.carry()
        finally:
            self._drop(link, "closed here", False, None)
            self._carried -= 1
            self._idle.set()
