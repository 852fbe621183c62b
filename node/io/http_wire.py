"""One connection to an HTTP/1.1 server, and one answer on its way, handed on in the callbacks that bring it."""

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
    """What comes back, handed on in the callback that brings it: override `on_head`, `on_part` and `on_end`.

    `close` it when it is not wanted any more: before its end that ends the connection, which is how a server learns
    that nobody waits. No hook is called after `on_end`, `close` or `leave`.
    """

    def __init__(self, settings: HttpSettings, silence_s: float) -> None:
        """`silence_s` of silence are borne."""
        self.head: AnswerHead | None = None
        self.error: HttpError | None = None  # why it ended before its end
        self.silence_s = silence_s
        self.paused = False
        self.opening: asyncio.Future[None] | None = None  # what makes or fills its connection
        self.again: Callable[[Answer], None] | None = None  # asks once more: its connection was kept, and may be stale
        self._settings = settings
        self._connection: Connection | None = None
        self._reader = AnswerReader(settings)
        self._over = False  # hooks are not called any more
        self._began = 0.0

    # For whoever asks

    def on_head(self, head: AnswerHead) -> None:
        """It is there."""

    def on_part(self, body: bytes) -> None:
        """A part of the body, not empty."""

    def on_end(self, error: HttpError | None) -> None:
        """Its end, or why there will be none. Exactly once, unless it was closed or left before."""

    def bear(self, silence_s: float) -> None:
        """So much silence is borne, from now on."""
        self.silence_s = silence_s
        if self._connection is not None and not self._over:
            self._connection.bear(silence_s)

    def pause(self) -> None:
        """No more for now: the system's buffers fill, and the server has to wait."""
        if not self.paused and self._connection is not None and self._connection.usable:
            self.paused = True
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self.paused:
            self.paused = False
            if self._connection is not None and self._connection.usable:
                self._connection.bear(self.silence_s)
                self._connection.transport.resume_reading()

    def leave(self) -> None:
        """Nothing more is wanted and little can be left: if the end comes soon, the connection is used again."""
        if not self._over:
            self.resume()
            self._over = True
            if self._connection is not None:
                self._connection.bear(self._settings.end_s)

    def close(self) -> None:
        """Idempotent, and nothing at all after the end or `leave`."""
        if self._over:
            return
        self._over = True
        if self.opening is not None:
            self.opening.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    # What its client and its connection call

    @property
    def wanted(self) -> bool:
        """It has not ended, and nobody has closed or left it."""
        return not self._over

    def begin(self, connection: Connection) -> None:
        """The question goes there now."""
        self._connection, connection.answer = connection, self
        self._began = connection.bear(self.silence_s)

    def heard(self, data: bytes) -> None:
        """Bytes have come."""
        reader, connection = self._reader, self._connection
        if connection is None:
            return
        headless = self.head is None
        body = reader.feed(data)
        if not self._over:
            connection.bear(self.silence_s)
            if headless and reader.head is not None:
                self.head = reader.head
                self.on_head(reader.head)
            if body and not self._over:
                self.on_part(body)
        if (reader.over or reader.fault) and self._connection is not None:
            self._ended(connection)

    def lost(self, error: Exception | None) -> None:
        """The connection has ended, cleanly if `error` is None."""
        connection = self._connection
        if connection is None:
            return
        untouched = self._reader.untouched
        if error is not None:
            failure = BrokenError(str(error) or type(error).__name__)
        else:
            self._reader.eof()
            failure = BrokenError(self._reader.fault)
        if untouched and self.again is not None and connection.age_s(self._began) < self._settings.stale_s:
            self._connection, self._reader = None, AnswerReader(self._settings)
            again, self.again = self.again, None
            again(self)  # it was closed while the question was on its way: nobody has seen that
        elif error is None and not self._reader.fault:
            self._ended(connection)
        else:
            self.fail(failure)

    def silent(self) -> None:
        """What was borne has passed."""
        connection = self._connection
        if connection is None:
            return
        if self.paused:
            connection.bear(self.silence_s)  # it cannot say anything
            return
        connection.end()
        self.fail(SilentError(self.silence_s))

    def fail(self, error: HttpError) -> None:
        """There will be no more of it."""
        self._connection = None
        if not self._over:
            self._over, self.error = True, error
            self.on_end(error)

    def _ended(self, connection: Connection) -> None:
        reader = self._reader
        if reader.fault:
            connection.end()
            self.fail(BrokenError(reader.fault))
            return
        self.resume()
        self._connection = None
        connection.free(lasting=reader.lasting)
        if not self._over:
            self._over = True
            self.on_end(None)


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
        self._writable: asyncio.Future[None] | None = None  # while it is not
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
        self._writable = self._writable or asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    @property
    def usable(self) -> bool:
        return not self._ended and not self.transport.is_closing()

    def bear(self, silence_s: float) -> float:
        """From now on, which is the time that it returns."""
        now = self._time()
        self._alarm.set(now + silence_s)
        return now

    def age_s(self, at: float) -> float:
        """Since then."""
        return self._time() - at

    async def send(self, head: bytes, body: bytes, size: int) -> None:
        """Slice by slice, each when the one before it is with the system; no further than to an early answer."""
        answer, slices = self.answer, memoryview(body)
        self.whole = False
        self.transport.write(head)
        for at in range(0, len(body), size):
            while self._writable is not None and not self._ended:
                await asyncio.shield(self._writable)
            if self._ended or answer is None or answer.head is not None or self.answer is not answer:
                return
            self.bear(answer.silence_s)
            self.transport.write(slices[at : at + size])
        self.whole = True

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
