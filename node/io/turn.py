"""One request and its answer on a raw connection (node/io/front.py): what its application reads, and writes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Protocol

from node.http_reply import CONTINUE, LAST_CHUNK, Answer, chunk, reply_head
from node.http_request import Fault, Head
from node.types import NodeId


class Line(Protocol):
    """The connection, as its present answer sees it."""

    full: bool

    @property
    def keeping(self) -> bool: ...
    def write(self, data: bytes, *, more: bool = True) -> None: ...
    async def drained(self) -> None: ...
    def when_room(self, call: Callable[[], None]) -> None: ...
    def answered(self) -> None: ...
    def last(self) -> None: ...
    def abort(self) -> None: ...


class BrokenBodyError(Exception):
    """The body breaks the rules; its text says how."""


class Incoming:
    """One request: its head, and its body as it comes. One reader, which takes at once what is there. `member`: which
    node the connection proves to be its other end."""

    __slots__ = ("_expects", "_fault", "_parts", "_waiter", "_write", "client", "head", "member", "whole")

    def __init__(self, head: Head, client: str, write: Callable[[bytes], None], member: NodeId | None = None) -> None:
        self.head, self.client, self.member = head, client, member
        self.whole = False  # nothing follows what was taken and what is there to take
        self._parts: list[bytes] = []
        self._write = write
        self._expects = head.expects
        self._fault: Fault | None = None
        self._waiter: asyncio.Future[None] | None = None

    def take(self) -> list[bytes]:
        """What has come since."""
        parts, self._parts = self._parts, []
        return parts

    async def more(self) -> None:
        """Waits for more to take, or the end. A client that asked whether it may send its body is told so here.
        Raises BrokenBodyError."""
        if self._fault is not None:
            raise BrokenBodyError(self._fault.message)
        if self._parts or self.whole:
            return
        if self._expects:
            self._expects = False
            self._write(CONTINUE)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        if self._fault is not None:
            raise BrokenBodyError(self._fault.message)

    def feed(self, data: bytes) -> None:
        """Of the connection: a part of the body."""
        self._expects = False  # it did not wait for an answer to that
        self._parts.append(data)
        self._wake()

    def end(self) -> None:
        self.whole = True
        self._wake()

    def fail(self, fault: Fault) -> None:
        self._fault = fault
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Outgoing:
    """One answer. Writing raises ConnectionResetError when the client is gone; `drained` waits for a slow one."""

    __slots__ = ("_begun", "_chunked", "_head", "_line", "also", "ended", "status")

    def __init__(self, line: Line, head: Head) -> None:
        self._line, self._head = line, head
        self._chunked = False
        self._begun = b""  # a head that waits for the first part
        self.also: Mapping[str, str] = {}  # fields of the head, whatever the answer is
        self.status = 0  # sent; 0 = none yet
        self.ended = False

    def whole(self, answer: Answer) -> None:
        """All of it."""
        head = self._begin(answer.status, answer.fields, len(answer.body))
        self._line.write(head + answer.body, more=False)
        self._end()

    def begin(self, status: int, fields: Mapping[str, str]) -> None:
        """The head of one that is written in parts. It goes out with the first of them."""
        self._chunked = self._head.minor > 0
        if not self._chunked:
            self._line.last()  # nothing but the end of the connection can say where the answer ends
        self._begun = self._begin(status, fields, None)

    def write(self, data: bytes) -> None:
        """A part, not empty. Only after `begin`."""
        assert self.status
        part = chunk(data) if self._chunked else data
        if self._begun:
            part, self._begun = self._begun + part, b""
        self._line.write(part)

    def end(self, data: bytes = b"") -> None:
        """The answer that was begun is whole, with `data` as its last part."""
        assert self.status
        rest = self._begun
        if self._chunked:
            rest += (chunk(data) if data else b"") + LAST_CHUNK
        else:
            rest += data
        self._begun = b""
        if rest:
            self._line.write(rest)
        self._end()

    @property
    def full(self) -> bool:
        """So much waits for the client that `drained` would not return at once."""
        return self._line.full

    async def drained(self) -> None:
        """Returns when little of what was written is still here. Raises ConnectionResetError."""
        await self._line.drained()

    def when_room(self, call: Callable[[], None]) -> None:
        """`full` now: `call` once it is not any more, or when the client has gone."""
        self._line.when_room(call)

    def last(self) -> None:
        """The connection closes after this answer."""
        if not self.ended:
            self._line.last()

    def abort(self) -> None:
        """The connection ends now, and what was written and not sent is lost."""
        self._line.abort()

    def _begin(self, status: int, fields: Mapping[str, str], length: int | None) -> bytes:
        assert not self.status
        self.status = status
        keeps = self._line.keeping
        if self.also:
            fields = {**fields, **self.also}
        return reply_head(
            status, fields, date=_date(int(time.time())), length=length, minor=self._head.minor, keeps=keeps
        )

    def _end(self) -> None:
        self.ended = True
        self._line.answered()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """RFC 9110, 5.6.7; made once a second."""
    return formatdate(second, usegmt=True)
