"""A raw HTTP server: requests that its application carries are read and answered on the transport itself, in the
callback their bytes came in; any other connection is handed to a framework, with the bytes that were read.

docs/adr/0010-hot-path.md says why. A connection serves one request at a time: what a client sends ahead waits, bounded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, cast

from node.http_reply import Answer
from node.http_request import Data, End, Fault, Head, RequestReader
from node.io.entrance import Entrance, HandedOver, reset
from node.io.turn import Incoming, Outgoing
from node.settings import FrontSettings
from node.types import NodeId

log = logging.getLogger(__name__)

_HELD_BYTES = 16 * 1024  # of one turn; more is written before its end
_TLS_BYTES = 64 * 1024  # waiting each way, as without TLS: event loops let it have 512 KiB and 256 KiB


class Application(Protocol):
    """What carried requests are answered by."""

    def takes(self, head: Head) -> bool:
        """Whether it answers this one; all others are the framework's."""

    def answer(self, incoming: Incoming, outgoing: Outgoing) -> Coroutine[Any, Any, None]:
        """Answers one, to its end. Cancelled when the client leaves."""

    def malformed(self, fault: Fault) -> Answer:
        """To what is no request. The connection closes after it."""


class Front(asyncio.Protocol):
    """One connection, until it ends or is handed over."""

    __slots__ = (
        "_carries",
        "_client",
        "_corked",
        "_head_since",
        "_held",
        "_incoming",
        "_inside",
        "_member",
        "_outgoing",
        "_reader",
        "_reading",
        "_site",
        "_taken",
        "_taken_at",
        "_task",
        "_waiters",
        "_written",
        "full",
        "idle_since",
        "keeps",
        "lingers_until",
        "transport",
    )

    def __init__(self, site: Fronts) -> None:
        self._site = site
        self._reader = RequestReader(site.settings)
        self._incoming: Incoming | None = None  # the request that is read or answered
        self._outgoing: Outgoing | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[Callable[[], None]] = []  # for the client to take what was written
        self._corked = False  # something was written in this turn of the loop: what follows is held to its end
        self._held = b""
        self._carries = False
        self._client = ""
        self._member: NodeId | None = None
        self._inside = True  # its place is taken, or that of one that is refused
        self._reading = True
        self._written = 0  # bytes, in all
        self._taken = -1  # bytes of them that were not in the transport any more at the last look,
        self._taken_at = 0.0  # and since when there are not more of them, loop's time; `_taken` -1: nothing waits
        self.transport: asyncio.Transport | None = None
        self.full = False  # enough waits in the transport
        self.keeps = True  # the connection may serve another request
        self.idle_since: float | None = None  # loop's time; None: a request is open, or none has come yet
        self._head_since: float | None = None  # loop's time of the look that found a part of the next head
        self.lingers_until: float | None = None  # loop's time; all was said, and what comes is thrown away

    # Of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        here, there = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._carries = not isinstance(here, tuple) or self._site.carries_at(str(here[0]))
        self._client = str(there[0]) if isinstance(there, tuple) else ""
        if self._site.member_at is not None:
            self._member = self._site.member_at(self.transport)
            self._carries = self._carries and self._member is not None
            self.transport.set_write_buffer_limits(_TLS_BYTES)
            if (limit := getattr(self.transport, "set_read_buffer_limits", None)) is not None:
                limit(_TLS_BYTES)
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a small block never waits for an ACK
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        site, now = self._site, asyncio.get_running_loop().time()
        site.connections.add(self)
        if (full := site.entrance.come(self, self._client, now)) is not None:
            self._inside = site.entrance.tells(self)
            if not self._inside:
                self.abort()
                return
            self._refuse(full)
            self.lingers_until = now + site.settings.refused_s

    def data_received(self, data: bytes) -> None:
        if self.lingers_until is not None:
            return
        self._reader.feed(data)
        self._read()

    def eof_received(self) -> None:
        """A client that says no more has left: nothing tells it from one that was closed. What waits for it is sent
        first, which a client that does not read may keep from its end: little is left to `look`."""
        if self.full:
            self.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.transport = None
        self._site.connections.discard(self)
        if self._inside:
            self._site.entrance.gone(self, self._client)
        if self._task is not None and self._outgoing is not None:
            self._task.cancel()
        self._wake()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._wake()
        if self._outgoing is None and self._reader.waiting:
            asyncio.get_running_loop().call_soon(self._read_on)

    # Reading

    def _read(self) -> None:
        takes_none = self.full and self._outgoing is None  # else who asks on and on would have all answers kept here
        while not takes_none and (event := self._reader.next()) is not None:
            match event:
                case Data(data):
                    assert self._incoming is not None
                    self._incoming.feed(data)
                case Head():
                    if not (self._carries and self._site.application.takes(event)):
                        self._hand_over()
                        return
                    self._begin(event)
                case End():
                    assert self._incoming is not None
                    self._incoming.end()
                case Fault():
                    self._refuse(event)
                    return
        ahead = self._reader.waiting > self._site.settings.ahead_bytes
        if ahead and self._reading and (takes_none or self._reader.whole):
            assert self.transport is not None
            self.transport.pause_reading()  # from now on, that the client leaves shows by writing only
            self._reading = False

    def _begin(self, head: Head) -> None:
        self._site.entrance.asks(self)
        self.idle_since, self._head_since, self.keeps = None, None, head.keeps and not self._site.closing
        self._incoming = incoming = Incoming(head, self._client, self.write, self._member)
        self._outgoing = outgoing = Outgoing(self, head)
        # Owned by this connection: it ends with it, and with its server.
        self._task = task = asyncio.get_running_loop().create_task(self._answer(incoming, outgoing))
        self._site.tasks.add(task)
        task.add_done_callback(self._site.tasks.discard)  # one that is cancelled before it begins, too

    async def _answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        try:
            await self._site.application.answer(incoming, outgoing)
        except ConnectionError:
            log.debug("a client left before its answer was written")
        except Exception:
            log.exception("an answer failed")
        finally:
            if not outgoing.ended:
                self.abort()

    def _refuse(self, fault: Fault) -> None:
        self.keeps = False
        if self._incoming is not None:
            self._incoming.fail(fault)  # who reads the body answers
            return
        self._outgoing = Outgoing(self, Head("GET", "", {}, 0, False, 1, False))
        try:
            self._outgoing.whole(self._site.application.malformed(fault))
        except ConnectionResetError:  # it sent this ahead, and has left since
            self.abort()

    def _hand_over(self) -> None:
        """The framework goes on as if it had been there from the start."""
        transport, other = self.transport, self._site.framework()
        assert transport is not None
        site, self.transport = self._site, None
        site.connections.discard(self)
        site.entrance.asks(self)
        transport.set_protocol(HandedOver(other, partial(site.entrance.crowd.leave, self._client)))
        other.connection_made(transport)
        if self.full:
            other.pause_writing()
        other.data_received(self._reader.unread())

    # Writing, for Outgoing

    @property
    def keeping(self) -> bool:
        """Whether the connection stays after this answer. It cannot when the answer comes before the whole request."""
        return self.keeps and self._reader.whole

    def write(self, data: bytes, *, more: bool = True) -> None:
        """At once; what follows in the same turn of the loop (`more` may) goes out together, as one write each is the
        most that a burst of small blocks costs."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if self._corked:
            self._held += data
            if len(self._held) >= _HELD_BYTES:
                self._flush()
        else:
            self._send(data)
            if more:
                self._corked = True
                asyncio.get_running_loop().call_soon(self._uncork)

    def _uncork(self) -> None:
        self._corked = False
        self._flush()

    def _flush(self) -> None:
        if self._held and self.transport is not None and not self.transport.is_closing():
            self._send(self._held)
        self._held = b""

    def _send(self, data: bytes) -> None:
        assert self.transport is not None
        self._written += len(data)
        self.transport.write(data)

    async def drained(self) -> None:
        self._flush()
        if self.full and self.transport is not None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_room(partial(_wake, waiter))
            await waiter
        if self.transport is None:
            raise ConnectionResetError("the client has gone")

    def when_room(self, call: Callable[[], None]) -> None:
        self._waiters.append(call)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for call in waiters:
            call()

    def answered(self) -> None:
        """The answer is written to its end."""
        self._incoming = self._outgoing = None
        if self.transport is None:
            return
        self._flush()
        loop = asyncio.get_running_loop()
        reader = self._reader
        if not self.keeps or not reader.whole:
            if reader.whole and not reader.waiting:
                self.transport.close()
            else:  # Closed with bytes unread, the system would tell the client to forget what it has not read yet.
                self._linger(loop.time() + self._site.settings.linger_s)
            return
        reader.again()
        self.idle_since = now = loop.time()
        self._site.entrance.rests(self, now)
        if reader.waiting:
            loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """What the client sent ahead."""
        if self.transport is None or self._outgoing is not None or self.lingers_until is not None:
            return
        self._resume()
        self._read()

    def _linger(self, until: float) -> None:
        assert self.transport is not None
        self.lingers_until = until
        self._site.entrance.rests(self, until)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._resume()

    def _resume(self) -> None:
        if not self._reading and self.transport is not None:
            self._reading = True
            self.transport.resume_reading()

    # Of the server

    def look(self, now: float, keepalive_s: float) -> None:
        """Ends it when its time is over: an idle connection's, one's that lingers, and that of a client which takes
        nothing more of what waits for it. Closing would wait for that client, with all of it in memory."""
        if self.transport is None:
            return
        if self._neglected(self.transport, now) and self._site.entrance.cuts():
            reset(self.transport)
        elif self.lingers_until is not None:
            if now >= self.lingers_until:
                self.abort()
        elif self.idle_since is not None and self._taken < 0:
            if self._head_since is None and self._reader.waiting:
                self._head_since = now
            if now - self.idle_since >= keepalive_s:
                self.transport.close()
            elif self._head_since is not None and now - self._head_since >= self._site.settings.head_s:
                self.force_close()

    def _neglected(self, transport: asyncio.Transport, now: float) -> bool:
        """Whether something waits for the client, and it has taken nothing of it for too long."""
        unsent = transport.get_write_buffer_size()
        if not unsent:
            self._taken = -1
            return False
        if self.idle_since is not None:
            self.idle_since = now  # it still reads
        taken = self._written - unsent
        if taken != self._taken:
            self._taken, self._taken_at = taken, now
        return now - self._taken_at >= self._site.settings.untaken_s

    def last(self) -> None:
        """The connection closes after this answer, or now when none is open."""
        self.keeps = False
        if self._outgoing is None and self.lingers_until is None and self.transport is not None:
            self.transport.close()

    def force_close(self) -> None:
        """Nothing has been asked for too long. Who has begun to is told."""
        if self.transport is None or self.lingers_until is not None:
            return
        begun = self._reader.waiting > 0 and self._outgoing is None
        self._site.entrance.rests(self, 0.0)  # it is looked at no more, and its end may take a while
        self._site.entrance.limited("slow_head" if begun else "silent")
        if begun:
            self._refuse(Fault(408, "the head of the request did not arrive in time"))
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Fronts:
    """The connections of one server, and what they share. A protocol factory. `carries_at` is told at which address of
    ours a connection arrived: where it says no, all is the framework's. `framework` makes a protocol of its own. Behind
    TLS between nodes `member_at` says which one a connection is with: all of who is none is the framework's.
    `limited` hears the name of each limit that ends a connection."""

    def __init__(
        self,
        application: Application,
        framework: Callable[[], asyncio.Protocol],
        *,
        settings: FrontSettings,
        carries_at: Callable[[str], bool],
        member_at: Callable[[asyncio.Transport], NodeId | None] | None = None,
        limited: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.application, self.framework = application, framework
        self.settings, self.carries_at, self.member_at = settings, carries_at, member_at
        self.connections: set[Front] = set()
        self.entrance = Entrance(settings, limited)
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    def __call__(self) -> Front:
        return Front(self)

    def look(self, now: float, keepalive_s: float) -> None:
        """Ends connections that are idle for longer than that, those whose time to linger is over, and those whose
        clients do not read. To be called every now and then: what a client takes shows from one look to the next."""
        self.entrance.may_cut = self.settings.cut_at_once
        for front in list(self.connections):
            front.look(now, keepalive_s)

    async def close(self, grace_s: float) -> None:
        """Ends all connections: idle ones now, others after their answer, or after so many seconds."""
        self.closing = True
        for front in list(self.connections):
            front.last()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)
        for front in list(self.connections):
            front.abort()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
