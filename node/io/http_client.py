"""HTTP/1.1 to model servers and peers: which connection a question goes by, and which are kept for the next.

aiohttp's client takes 50 of the 90 us that carrying a small request costs in Python (docs/adr/0011); this one does what
a node needs of it and no more.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from node.io.dial import NoneConnectedError, Origin, SocketFactory, dial, plain_socket, reason
from node.io.http_read import ReadAnswer
from node.io.http_wire import Answer, BrokenError, Connection, FullError, HttpError, NotConnectedError
from node.settings import HttpSettings

log = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """A question, for as long as it may have to be sent again."""

    origins: Sequence[Origin]
    head: bytes
    body: bytes
    connect_s: float
    beside_s: float


class HttpClient:
    """Asks, and keeps connections for the next question. To be used in one event loop.

    `make` makes its sockets; whoever ends one of them ends its connection. `tls` is what `https` is checked with where
    an origin has no context of its own.
    """

    def __init__(
        self,
        settings: HttpSettings | None = None,
        *,
        make: SocketFactory = plain_socket,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._settings = settings or HttpSettings()
        self._make, self._make_tls = make, tls
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: dict[Origin, int] = {}
        self._connections: set[Connection] = set()
        self._shunned: dict[Origin, float] = {}  # until when; oldest first
        self._opening: set[asyncio.Future[None]] = set()
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None  # awaited by close()

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """Open now, idle ones included."""
        return len(self._connections)

    @property
    def settings(self) -> HttpSettings:
        """For the Answers that are pushed."""
        return self._settings

    @property
    def idle(self) -> int:
        return sum(map(len, self._idle.values()))

    async def ask(
        self,
        origins: Sequence[Origin],
        head: bytes,
        body: bytes = b"",
        *,
        connect_s: float,
        silence_s: float,
        beside_s: float | None = None,
    ) -> ReadAnswer:
        """The answer of the server that `origins` lead to, when its head is there. Raises HttpError.

        Cancelling it ends the connection.
        """
        answer = ReadAnswer(self._settings, silence_s)
        self.push(origins, head, body, answer, connect_s=connect_s, beside_s=beside_s)
        try:
            await answer.headed()
        except BaseException:
            answer.close()
            raise
        return answer

    def push(
        self,
        origins: Sequence[Origin],
        head: bytes,
        body: bytes,
        answer: Answer,
        *,
        connect_s: float,
        beside_s: float | None = None,
    ) -> None:
        """Asks the server that `origins` lead to, best first; `answer` gets what comes. Raises nothing.

        A connection to one of them takes at most `connect_s`, and none waits longer than `beside_s` for the one before
        it. On a kept connection the question leaves before this returns, without a task.
        """
        asked = _Asked(origins, head, body, connect_s, self._settings.beside_s if beside_s is None else beside_s)
        kept = None if self._closed else self._kept(origins)
        if kept is not None:
            answer.again = partial(self._bring, asked=asked, kept=None)
            if len(body) <= self._settings.slice_bytes:
                answer.begin(kept)
                kept.transport.write(head + body)
                return
        self._bring(answer, asked, kept)

    def _bring(self, answer: Answer, asked: _Asked, kept: Connection | None) -> None:
        """What takes a while: a connection, if none is `kept`, and a large body."""
        answer.opening = task = asyncio.ensure_future(self._brought(answer, asked, kept))
        self._opening.add(task)

        def done(_: asyncio.Future[None]) -> None:
            self._opening.discard(task)
            if kept is not None and task.cancelled():
                kept.end()  # also when it was cancelled before its first step: nobody else knows that connection

        task.add_done_callback(done)

    async def _brought(self, answer: Answer, asked: _Asked, connection: Connection | None) -> None:
        try:
            connection = connection or await self._connected(asked)
            answer.begin(connection)
            await connection.send(asked.head, asked.body, self._settings.slice_bytes)
        except HttpError as error:
            answer.fail(error)
        except asyncio.CancelledError:
            if connection is not None:
                connection.end()
            raise
        except Exception as error:
            log.exception("a connection to %s could not be made", asked.origins[0].host if asked.origins else "nobody")
            if connection is not None:
                connection.end()
            answer.fail(BrokenError(f"{type(error).__name__}: {error}"))

    def end(self, contexts: Collection[ssl.SSLContext]) -> int:
        """Ends the connections that were made with these, and what is asked on them; how many."""
        ended = [c for c in self._connections if isinstance(c.origin.tls, ssl.SSLContext) and c.origin.tls in contexts]
        for connection in ended:
            connection.transport.abort()
        return len(ended)

    async def close(self) -> None:
        """Ends every connection; returns when the system has them back. Idempotent."""
        self._closed = True
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in tuple(self._connections):
            connection.transport.abort()
        if self._connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    # What its connections call

    def keep(self, connection: Connection) -> bool:
        """Whether it is kept for the next question."""
        idle = self._idle.setdefault(connection.origin, [])
        if self._closed or len(idle) >= self._settings.idle_max:
            return False
        idle.append(connection)
        connection.bear(self._settings.idle_s)
        return True

    def forget(self, connection: Connection, *, gone: bool = False) -> None:
        """It will end, or has."""
        if connection.counted:
            connection.counted = False
            self._count(connection.origin, -1)
            idle = self._idle.get(connection.origin)
            if idle is not None:
                with suppress(ValueError):
                    idle.remove(connection)
                if not idle:
                    del self._idle[connection.origin]
        if gone:
            self._connections.discard(connection)
            if self._emptied is not None and not self._connections and not self._emptied.done():
                self._emptied.set_result(None)

    # Within

    def _kept(self, origins: Sequence[Origin]) -> Connection | None:
        """The one used last: the others may come to their end."""
        for origin in origins if len(origins) == 1 else self._ranked(origins):
            idle = self._idle.get(origin)
            while idle:
                connection = idle.pop()
                if connection.usable:
                    return connection
        return None

    def _ranked(self, origins: Sequence[Origin]) -> Sequence[Origin]:
        """In their order, but those that did not answer lately come last."""
        if not self._shunned:
            return origins
        now = asyncio.get_running_loop().time()
        return sorted(origins, key=lambda origin: self._shunned.get(origin, 0.0) > now)

    def _shun(self, origins: Sequence[Origin], winner: Origin | None) -> None:
        until = asyncio.get_running_loop().time() + self._settings.shun_s
        for origin in origins:
            self._shunned.pop(origin, None)
            if origin == winner:
                return  # those behind it were not needed
            self._shunned[origin] = until
            if len(self._shunned) > self._settings.shunned_max:
                del self._shunned[next(iter(self._shunned))]

    async def _connected(self, asked: _Asked) -> Connection:
        if self._closed:
            raise BrokenError("it was closed here")
        ranked = self._ranked(asked.origins)
        room = [origin for origin in ranked if self._open.get(origin, 0) < self._settings.open_max]
        if ranked and not room:
            raise FullError(f"{self._settings.open_max} connections to {ranked[0].host} are open already")
        for origin in room:
            self._count(origin, 1)  # while it is dialled: those who dial at the same time see each other
        try:
            return await self._dialled(room, asked.connect_s, asked.beside_s)
        finally:
            for origin in room:
                self._count(origin, -1)

    async def _dialled(self, origins: Sequence[Origin], connect_s: float, beside_s: float) -> Connection:
        try:
            origin, made = await dial(origins, limit_s=connect_s, beside_s=beside_s, make=self._make)
        except NoneConnectedError as error:
            self._shun(origins, None)
            raise _not_connected(error) from error
        self._shun(origins, origin)
        loop = asyncio.get_running_loop()
        connection = Connection(self, origin)
        try:
            async with asyncio.timeout(connect_s):
                tls = await self._context() if origin.tls is True else origin.tls or None
                name = None if tls is None else origin.host if tls.check_hostname else ""
                await loop.create_connection(lambda: connection, sock=made, ssl=tls, server_hostname=name)
        except OSError as error:  # TLS refused, or the peer has gone again
            made.close()
            why = reason(error)
            raise NotConnectedError(f"{origin.host} ({why})", why, late=isinstance(error, TimeoutError)) from error
        except BaseException:
            made.close()
            raise
        self._connections.add(connection)
        self._count(origin, 1)
        connection.counted = True
        if self._closed or not connection.usable:
            connection.end()
            raise BrokenError("the connection was closed")
        return connection

    async def _context(self) -> ssl.SSLContext:
        """Made when it is first needed: reading the system's certificates takes a while."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(self._make_tls)
        return self._tls

    def _count(self, origin: Origin, more: int) -> None:
        count = self._open.get(origin, 0) + more
        if count:
            self._open[origin] = count
        else:
            self._open.pop(origin, None)


def _not_connected(error: NoneConnectedError) -> NotConnectedError:
    if not error.failures:
        return NotConnectedError("no address is known", "no address is known", late=False)
    late = all(isinstance(why, TimeoutError) and why.errno is None for _, why in error.failures)
    return NotConnectedError(str(error), reason(error.failures[-1][1]), late=late)
