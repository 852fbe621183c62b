"""Three HTTP applications, never one: where each listens, and who may reach it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler

from mesh.addresses import plain
from mesh.errors import MeshError
from mesh.handshakes import Handshakes
from mesh.settings import ServerSettings
from mesh.tls import PeerTls, cert_at, members_only
from node.io.front import Application, Front, Fronts
from node.io.probe import Holder
from node.types import NodeId

_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598; Tailscale's addresses
BACKLOG = 1024
UNSENT_BYTES = 128 * 1024  # kept by the system beyond what is on its way; the rest waits, bounded, where we see it


@lru_cache(maxsize=1024)
def is_local(address: str) -> bool:
    """Is this one of loopback, LAN (private, link-local) or tailnet? What nodes listen on unless `bind` says more."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_private or ip.is_link_local or ip.is_loopback or (ip.version == 4 and ip in _SHARED)


@web.middleware
async def local_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answers only what arrived at a local address of ours. Addresses come and go, so a wildcard socket with this check
    stays right where a list of sockets made at the start would not."""
    here = request.transport.get_extra_info("sockname") if request.transport else None
    if here is not None and not is_local(str(here[0])):
        raise web.HTTPForbidden(text="this node serves its LAN, its tailnet and itself; see `bind`\n")
    return await handler(request)


def guards(bind: Sequence[str]) -> list[Middleware]:
    """Middlewares of an app on these addresses: who names them in `bind` means them, public ones too."""
    return [] if bind else [local_only]


async def tcp_sockets(port: int, bind: Sequence[str], holder_of: Callable[[int], Holder | None]) -> list[socket.socket]:
    """Listening sockets for `port`: on each address of `bind`, or on all when it is empty.

    Raises MeshError naming who holds the port, or the address that is not ours. `holder_of` is asked in a thread: it
    looks at every process, while a node whose mesh cannot begin serves on.
    """
    sockets: list[socket.socket] = []
    try:
        for address in dict.fromkeys(bind) or [""]:
            sockets.append(_listen(address, port, dualstack=not bind and socket.has_dualstack_ipv6()))
    except OSError as e:
        for s in sockets:
            s.close()
        holder = await asyncio.to_thread(holder_of, port) if e.errno == errno.EADDRINUSE else None
        raise _why_not(e, address, port, holder) from e
    return sockets


def _listen(address: str, port: int, *, dualstack: bool = False) -> socket.socket:
    family = socket.AF_INET6 if dualstack or ":" in address else socket.AF_INET
    host, _, scope = address.partition("%")
    where: tuple[str, int] | tuple[str, int, int, int] = (host, port)
    if scope:
        where = (host, port, 0, socket.if_nametoindex(scope))
    made = socket.create_server(where, family=family, backlog=BACKLOG, dualstack_ipv6=dualstack)
    # Each connection of it has the same. Else the system takes megabytes for a client that does not read.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return made


def _why_not(e: OSError, address: str, port: int, holder: Holder | None) -> MeshError:
    if e.errno == errno.EADDRINUSE:
        who = f"{holder.name} (pid {holder.pid})" if holder else "another process"
        hint = "stop it, or choose another port with `mlx-stack config set`"
        return MeshError("port_taken", f"port {port} is taken by {who}", hint=hint)
    if e.errno == errno.EACCES:
        return MeshError("port_forbidden", f"port {port} needs root", hint="choose one above 1023")
    where = f"{address or 'any address'} port {port}"
    return MeshError("bad_bind", f"cannot listen on {where}: {e.strerror or e}", hint="correct `bind` in config.yaml")


class Server:
    """One application on its sockets. With `cancels` a handler is cancelled when its client leaves: that is how a
    cancellation reaches the worker; without, what was asked for is carried out to its end. A connection on which nobody
    asks anything is closed after a while, and sooner when there are many (`silent_closed` so far).

    `raw` takes what it carries before the application sees it; other connections are handed over, and end with the
    answer to what made them so: the next request may be `raw`'s. `guarded`: what arrives at a public address is all the
    application's, which has `guards`. `limited` hears the name of each limit that ends a connection.

    With `tls` (and `raw`) it is a peer port: who is a member, or shows no certificate, gets in, and the application
    hears of strangers' join calls only (mesh/tls.py). Call `members_changed` when they have.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        cancels: bool = True,
        settings: ServerSettings | None = None,
        raw: Application | None = None,
        guarded: bool = False,
        tls: PeerTls | None = None,
        limited: Callable[[str], None] = lambda _: None,
    ) -> None:
        assert tls is None or raw is not None
        self._tls = tls
        self._settings = settings or ServerSettings()
        self._limited = limited
        self._runner = web.AppRunner(
            app,
            handler_cancellation=cancels,
            access_log=None,
            shutdown_timeout=self._settings.stop_s,
            keepalive_timeout=self._settings.keepalive_s,
        )
        if tls is not None:
            app.middlewares.insert(0, members_only(tls))
        app.middlewares.insert(0, self._noted)
        self._fronts: Fronts | None = None
        self._handshakes: Handshakes | None = None
        if raw is not None:
            self._fronts = Fronts(
                raw,
                self._framework,
                settings=self._settings.front,
                carries_at=is_local if guarded else lambda _: True,
                member_at=None if tls is None else self._member_at,
                limited=limited,
            )
            if tls is not None:
                self._handshakes = Handshakes(self._fronts, context=tls.server)
        self._listening: list[asyncio.Server] = []  # of `raw`
        self._spoke: set[RequestHandler] = set()  # connections that have made a request
        self._silent: dict[RequestHandler, float] = {}  # those that have not, and since when: oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None  # more of them are to be closed
        self.silent_closed = 0

    async def listen(self, sockets: Sequence[socket.socket], context: ssl.SSLContext | None = None) -> None:
        """With `context` `raw`, and the application behind it, speak TLS."""
        assert context is None or self._fronts is not None
        handshake_s = self._settings.silent_s if context is not None else None
        await self._set_up()
        loop = asyncio.get_running_loop()
        for s in sockets:
            if self._handshakes is not None:
                self._handshakes.listen(s)
            elif self._fronts is not None:
                self._listening.append(
                    await loop.create_server(
                        self._fronts, sock=s, backlog=BACKLOG, ssl=context, ssl_handshake_timeout=handshake_s
                    )
                )
            else:
                await web.SockSite(self._runner, s, backlog=BACKLOG).start()

    async def listen_unix(self, path: Path) -> None:
        """The path must be free (home.prepare_socket); only this user may connect."""
        await self._set_up()
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            s.bind(str(path))
        finally:
            os.umask(mask)
        await web.SockSite(self._runner, s, backlog=BACKLOG).start()

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._open())

    def _open(self) -> list[RequestHandler | Front]:
        handed_over = self._runner.server.connections if self._runner.server is not None else ()
        return [*handed_over, *(self._fronts.connections if self._fronts is not None else ())]

    def _framework(self) -> RequestHandler:
        assert self._runner.server is not None
        handler = self._runner.server()
        assert isinstance(handler, RequestHandler)
        return handler

    def members_changed(self) -> None:
        """Ends the connections of who is no member any more: requests at once, links when they have said why."""
        assert self._fronts is not None
        for front in list(self._fronts.connections):
            if front.transport is not None:
                self._member_at(front.transport)
        asyncio.get_running_loop().call_later(self._settings.put_out_s, self._put_out)

    def _put_out(self) -> None:
        for connection in self._open():
            if (transport := connection.transport) is not None:
                self._member_at(transport)

    def _member_at(self, transport: asyncio.Transport) -> NodeId | None:
        """Who it is with; it ends at once if that was a member, or passed for one in the moment of its removal."""
        assert self._tls is not None
        node = self._tls.member_at(transport)
        if node is None and cert_at(transport) is not None:
            transport.abort()
        return node

    def end_at(self, mine: Collection[str]) -> None:
        """Ends connections to an address that is not one of `mine`, this machine's, any more: no answer reaches whoever
        asked, who asks elsewhere, so nothing may go on running for it."""
        self._end("sockname", lambda here: here not in mine)

    def end_of(self, addresses: Collection[str]) -> None:
        """Ends connections from these addresses, which whoever asked has no longer."""
        gone = {plain(address.partition("%")[0]) for address in addresses}
        self._end("peername", lambda there: there in gone)

    def _end(self, side: str, gone: Callable[[str], bool]) -> None:
        for connection in self._open():
            transport = connection.transport
            name = transport.get_extra_info(side) if transport is not None else None
            if transport is not None and isinstance(name, tuple) and gone(plain(str(name[0]))):
                transport.abort()

    async def close(self) -> None:
        """Takes no more connections, ends those that are there. Idempotent."""
        for timer in (self._timer, self._closing):
            if timer is not None:
                timer.cancel()
        self._timer = self._closing = None
        for listening in self._listening:
            listening.close()
        self._listening.clear()
        if self._handshakes is not None:
            await self._handshakes.close()
        if self._fronts is not None:
            await self._fronts.close(self._settings.stop_s)
        await self._runner.cleanup()

    async def _set_up(self) -> None:
        await self._runner.setup()
        if self._timer is None:
            self._look()

    @web.middleware
    async def _noted(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._fronts is None:
            self._spoke.add(request.protocol)
        try:
            response = await handler(request)
        except web.HTTPException as refused:
            if self._fronts is not None:
                refused.force_close()
            raise
        if self._fronts is not None:
            response.force_close()
        return response

    def _look(self) -> None:
        """aiohttp has no limit for the time to the first request: whoever opens a thousand connections and says nothing
        would keep a thousand of our file descriptors."""
        s, loop = self._settings, asyncio.get_running_loop()
        now = loop.time()
        if self._fronts is not None:
            self._fronts.look(now, s.keepalive_s)
            self._close_silent(self._fronts.entrance.silent)
        else:  # What a front hands over is a request already.
            open_now = dict.fromkeys(self._runner.server.connections if self._runner.server is not None else ())
            self._spoke.intersection_update(open_now)
            self._silent = {c: since for c, since in self._silent.items() if c in open_now and c not in self._spoke}
            self._silent |= {c: now for c in open_now if c not in self._spoke and c not in self._silent}
            self._close_silent(self._silent)
        self._timer = loop.call_later(s.look_every_s, self._look)

    def _close_silent(self, silent: Mapping[Any, float]) -> None:
        """Those that have asked for nothing for too long, and the oldest of too many. `silent`: oldest first. A few at
        a time: a thousand in one turn of the loop would keep everybody else waiting."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        s, too_many = self._settings, len(silent) - self._settings.silent_max
        loop = asyncio.get_running_loop()
        now = loop.time()
        closing: list[Any] = []
        for number, (connection, since) in enumerate(silent.items()):
            if now - since < (s.silent_least_s if number < too_many else s.silent_s):
                break
            if len(closing) == s.close_at_once:
                self._closing = loop.call_later(s.close_pause_s, self._close_silent, silent)
                break
            closing.append(connection)
        for connection in closing:
            connection.force_close()
            self.silent_closed += 1
            if self._fronts is None:
                self._limited("silent")
