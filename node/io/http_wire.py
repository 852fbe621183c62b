"""One connection to an HTTP/1.1 server, and one answer on its way: read part by part, or pushed into a function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from node.http_answer import AnswerHead, AnswerReader
from node.io.alarm import Alarm
from node.io.dial import Origin
from node.settings import HttpSettings


class HttpError(Exception):
    """No answer, or not all of it."""


class NotConnectedError(HttpError):
    """The question has certainly not arrived. `late`: nobody refused it, nobody answered either. `why` is the last
    address's reason."""

    def __init__(self, message: str, why: str, *, late: bool) -> None:
        super().__init__(message)
        self.why, self.late = why, late


class SilentError(HttpError):
    """Nothing has come for `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"silent for {limit_s:g} s")
        self.limit_s = limit_s


class BrokenError(HttpError):
    """The connection ended before the answer did, or what came is no answer."""


class FullError(HttpError):
    """So many connections are open to that address that there shall be no other."""


def question(method: str, host: str, target: str, fields: Mapping[str, str], length: int | None) -> bytes:
    """The head of a request. Raises ValueError when something in it would be read as more than it is."""
    said = {"host": host, "accept-encoding": "identity", **fields}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
    if length is not None:
        lines.append(f"content-length: {length}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text or " " in target:
        raise ValueError("a header of the request holds what none may hold")
    return f"{text}\r\n\r\n".encode()


class Answer:
    """What comes back. Its head is there; the rest is `read` part by part, or pushed `into` a function.

    `close` it in any case: before its end that ends the connection, which is how a server learns that nobody waits.
    """

    __slots__ = (
        "_connection", "_error", "_held", "_left", "_on_part", "_parts", "_paused", "_reader", "_settings", "_waiter",
        "head", "silence_s",
    )  # fmt: skip

    head: AnswerHead

    def __init__(self, connection: Connection, settings: HttpSettings, silence_s: float, *, bodiless: bool) -> None:
        self._connection: Connection | None = connection  # None: this answer has nothing to do with it any more
        self._settings, self.silence_s = settings, silence_s
        self._reader = AnswerReader(settings, bodiless=bodiless)
        self._parts: list[bytes] = []
        self._held = 0  # bytes in them
        self._paused = self._left = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_part: Callable[[bytes], None] | None = None

    @property
    def status(self) -> int:
        return self.head.status

    async def read(self) -> bytes:
        """What has come since the last call; waits for it. Empty at the end. Raises HttpError."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._connection is None:
                return b""
            await self._news()
        return self._taken()

    async def whole(self, limit_bytes: int) -> bytes | None:
        """All of the body, None when it is longer. Raises HttpError."""
        parts, size = [], 0
        while part := await self.read():
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                return None
        return b"".join(parts)

    async def start(self, limit_bytes: int) -> bytes:
        """The first bytes of the body, or all of it. Raises HttpError."""
        found = b""
        while len(found) < limit_bytes and (part := await self.read()):
            found += part
        return found[:limit_bytes]

    async def into(self, take: Callable[[bytes], None]) -> None:
        """Calls `take` with each part, in the callback that brings it, and returns at the end of the answer, or when
        `take` has called `leave` or `close`. Raises HttpError and whatever `take` raises."""
        if self._parts:
            take(self._taken())
        self._on_part = take
        try:
            while self._connection is not None and not self._left:
                await self._news()
        finally:
            self._on_part = None
        if self._error is not None:
            raise self._error

    def bear(self, silence_s: float) -> None:
        """So much silence is borne, from now on."""
        self.silence_s = silence_s
        if self._connection is not None and not self._left:
            self._connection.bear(silence_s)

    def pause(self) -> None:
        """No more for now: the system's buffers fill, and the server has to wait."""
        if not self._paused and self._connection is not None and self._connection.usable:
            self._paused = True
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._paused:
            self._paused = False
            if self._connection is not None and self._connection.usable:
                self._connection.bear(self.silence_s)
                self._connection.transport.resume_reading()

    def leave(self) -> None:
        """Nothing more is wanted and little can be left: if the end comes soon, the connection is used again."""
        if self._connection is not None and not self._left:
            self.resume()
            self._left = True
            self._connection.bear(self._settings.end_s)
            self._wake()

    def close(self) -> None:
        """Idempotent, and nothing at all at the end of the answer."""
        if self._connection is not None and not self._left:
            self._connection.end()
            self._off(BrokenError("it was closed here"))

    # What its connection calls

    def heard(self, data: bytes) -> None:
        """Bytes have come."""
        reader, connection = self._reader, self._connection
        if connection is None:
            return
        headless = reader.head is None
        body = reader.feed(data)
        if not self._left:
            connection.bear(self.silence_s)
            if body:
                self._part(body)
            if headless and reader.head is not None:
                self._wake()
        if (reader.over or reader.fault) and self._connection is not None:
            self._ended(connection)

    def lost(self, error: Exception | None) -> None:
        """The connection has ended, cleanly if `error` is None."""
        connection = self._connection
        if connection is None:
            return
        if error is None:
            self._reader.eof()
            self._ended(connection)
        else:
            self._off(BrokenError(str(error) or type(error).__name__))

    def silent(self) -> None:
        """What was borne has passed."""
        connection = self._connection
        if connection is None:
            return
        if self._paused:
            connection.bear(self.silence_s)  # it cannot say anything
            return
        connection.end()
        self._off(SilentError(self.silence_s))

    # Within

    def _part(self, body: bytes) -> None:
        take = self._on_part
        if take is None:
            self._parts.append(body)
            self._held += len(body)
            if self._held > self._settings.buffer_bytes:
                self.pause()
            self._wake()
            return
        try:
            take(body)
        except Exception as error:  # noqa: BLE001 - it goes to whoever waits in `into`
            if self._connection is not None:
                self._connection.end()
            self._off(error)

    def _taken(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        self.resume()
        return data

    def _ended(self, connection: Connection) -> None:
        reader = self._reader
        if reader.fault:
            connection.end()
            self._off(BrokenError(reader.fault))
            return
        self.resume()
        self._off(None)
        connection.free(lasting=reader.lasting)

    def _off(self, error: BaseException | None) -> None:
        """Nothing more comes."""
        self._connection, self._error = None, error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def begin(self, head: bytes, body: bytes) -> None:
        """Sends the question and returns when the head of its answer is there. Raises HttpError."""
        connection = self._connection
        assert connection is not None
        connection.bear(self.silence_s)
        if len(body) <= self._settings.slice_bytes:
            connection.transport.write(head + body)
        else:
            connection.whole = False
            await self._send(connection, head, body)
        while self._reader.head is None and self._error is None:
            await self._news()
        if self._reader.head is not None:
            self.head = self._reader.head
            return
        assert self._error is not None
        raise self._error

    async def _send(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Slice by slice, each when the one before it is with the system; no further than to an early answer."""
        connection.transport.write(head)
        size, slices = self._settings.slice_bytes, memoryview(body)
        for at in range(0, len(body), size):
            while connection.writing_paused and self._error is None and self._reader.head is None:
                connection.on_writable = self._wake
                await self._news()
            if self._error is not None or self._reader.head is not None:
                return
            connection.bear(self.silence_s)
            connection.transport.write(slices[at : at + size])
        connection.whole = True

    @property
    def untouched(self) -> bool:
        """It is lost and no byte of it has come."""
        return isinstance(self._error, BrokenError) and self._reader.untouched


class Keeper(Protocol):
    """Whose connections these are: node/io/http_client.py."""

    def keep(self, connection: Connection) -> bool:
        """Its answer is over. False: it shall end."""

    def forget(self, connection: Connection, *, gone: bool = False) -> None:
        """It will end, or is `gone`."""


class Connection(asyncio.Protocol):
    """One socket. It answers one question at a time, and is kept for the next when the answer has a certain end."""

    transport: asyncio.Transport

    def __init__(self, keeper: Keeper, origin: Origin) -> None:
        self.origin = origin
        self.answer: Answer | None = None
        self.counted = False  # by its keeper
        self.whole = True  # the question has been sent to its end
        self.writing_paused = False
        self.on_writable: Callable[[], None] | None = None
        self._keeper = keeper
        self._time = asyncio.get_running_loop().time
        self._alarm = Alarm(self._rang)
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        if self.answer is not None:
            self.answer.heard(data)
        else:
            self.end()  # nobody asked for it; the next question would get it for an answer

    def eof_received(self) -> None:
        if self.answer is not None:
            self.answer.lost(None)
        self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._alarm.close()
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.lost(exc or ConnectionError("the connection was closed"))
        self._keeper.forget(self, gone=True)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        on_writable, self.on_writable = self.on_writable, None
        if on_writable is not None:
            on_writable()

    @property
    def usable(self) -> bool:
        return not self._ended and not self.transport.is_closing()

    def bear(self, silence_s: float) -> None:
        """From now on."""
        self._alarm.set(self._time() + silence_s)

    def free(self, *, lasting: bool) -> None:
        """Its answer is over."""
        self.answer = None
        if lasting and self.whole and self.usable and self._keeper.keep(self):
            return
        self.end()

    def end(self) -> None:
        """At once: what is not sent yet is not worth sending."""
        if not self._ended:
            self._ended = True
            self._keeper.forget(self)
            self.transport.abort()

    def _rang(self) -> None:
        answer = self.answer
        if answer is None:
            self.end()
        else:
            answer.silent()
