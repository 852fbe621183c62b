"""HTTP/1.1 to model servers and peers: which connection a question goes by, and which are kept for the next.

aiohttp's client takes 50 of the 90 us that carrying a small request costs in Python (docs/adr/0011); this one does what
a node needs of it and no more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress

from node.io.dial import NoneConnectedError, Origin, SocketFactory, dial, plain_socket, reason
from node.io.http_wire import Answer, BrokenError, Connection, FullError, NotConnectedError
from node.settings import HttpSettings


class HttpClient:
    """Asks, and keeps connections for the next question. To be used in one event loop.

    `make` makes its sockets; whoever ends one of them ends its connection. `tls` is what `https` is checked with.
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
        self._closed = False

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """Open now, idle ones included."""
        return len(self._connections)

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
        bodiless: bool = False,
    ) -> Answer:
        """The answer of the server that `origins` lead to, best first, when its head is there.

        A connection takes at most `connect_s`; nothing is silent for longer than `silence_s`. Raises HttpError.
        Cancelling it ends the connection.
        """
        connection = self._kept(origins)
        while True:
            kept = connection is not None
            if connection is None:
                connection = await self._connected(origins, connect_s, beside_s)
            began = asyncio.get_running_loop().time()
            answer = Answer(connection, self._settings, silence_s, bodiless=bodiless)
            connection.answer = answer
            try:
                await answer.begin(head, body)
            except BrokenError:
                late = asyncio.get_running_loop().time() - began >= self._settings.stale_s
                if not kept or late or not answer.untouched:
                    raise
                connection = None  # it was closed while the question was on its way: nobody has seen that
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    async def close(self) -> None:
        """Ends every connection; returns when the system has them back. Idempotent."""
        self._closed = True
        for connection in tuple(self._connections):
            connection.transport.abort()
        for _ in range(100):  # a turn or two of the loop
            if not self._connections:
                return
            await asyncio.sleep(0)

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

    async def _connected(self, origins: Sequence[Origin], connect_s: float, beside_s: float | None) -> Connection:
        ranked = self._ranked(origins)
        room = [origin for origin in ranked if self._open.get(origin, 0) < self._settings.open_max]
        if origins and not room:
            raise FullError(f"{self._settings.open_max} connections to {origins[0].host} are open already")
        for origin in room:
            self._count(origin, 1)  # while it is dialled: those who dial at the same time see each other
        try:
            return await self._dialled(room, connect_s, self._settings.beside_s if beside_s is None else beside_s)
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
                tls = await self._context() if origin.tls else None
                await loop.create_connection(
                    lambda: connection, sock=made, ssl=tls, server_hostname=origin.host if tls else None
                )
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
