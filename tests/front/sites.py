"""A raw server on a real socket whose answers a test scripts: shared by the tests of the front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from node.http_reply import Answer
from node.http_request import Fault, Head
from node.io.front import Fronts
from node.io.turn import BrokenBodyError, Incoming, Outgoing
from node.settings import FrontSettings
from tests.mesh.waiting import until

HOST = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


def post(body: bytes = b"", *fields: bytes, path: bytes = b"/") -> bytes:
    lines = b"".join(field + b"\r\n" for field in (*fields, b"Content-Length: %d" % len(body)))
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + lines + b"\r\n" + body


async def body_of(incoming: Incoming) -> bytes:
    parts = incoming.take()
    while not incoming.whole:
        await incoming.more()
        parts += incoming.take()
    return b"".join(parts)


async def echo(incoming: Incoming, outgoing: Outgoing) -> None:
    try:
        body = await body_of(incoming)
    except BrokenBodyError as error:
        outgoing.whole(Answer(400, {}, str(error).encode()))
    else:
        outgoing.whole(Answer(200, {"x-path": incoming.head.target}, body))


class Framework(asyncio.Protocol):
    """Says what it was given, and ends."""

    def __init__(self, given: list[bytes]) -> None:
        self._given = given

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._given.append(data)
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nother")
        self._transport.close()


class Site:
    """Answers POSTs by `script`; everything else is the framework's."""

    def __init__(self) -> None:
        self.script: Callable[[Incoming, Outgoing], Awaitable[None]] = echo
        self.open = 0
        self.handed_over: list[bytes] = []
        self.fronts: Fronts
        self.port = 0

    def takes(self, head: Head) -> bool:
        return head.method == "POST"

    def malformed(self, fault: Fault) -> Answer:
        return Answer(fault.status, {}, fault.message.encode())

    async def answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        self.open += 1
        try:
            await self.script(incoming, outgoing)
        finally:
            self.open -= 1

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def says(self, *pieces: bytes) -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await self.connect()
        async with asyncio.timeout(30):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if len(pieces) > 1:
                    await asyncio.sleep(0)  # so that pieces are read apart
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def serving(settings: FrontSettings | None = None, *, local: bool = True) -> AsyncIterator[Site]:
    site = Site()
    site.fronts = Fronts(
        site,
        lambda: Framework(site.handed_over),
        settings=settings or FrontSettings(),
        carries_at=lambda _: local,
    )
    server = await asyncio.get_running_loop().create_server(site.fronts, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await site.fronts.close(5.0)
    await until(lambda: not site.fronts.connections)
    assert site.fronts.tasks == set()
    assert site.open == 0


async def one_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one that says its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await reader.readexactly(int(length.partition(b":")[2]))


async def streams(incoming: Incoming, outgoing: Outgoing) -> None:
    await body_of(incoming)
    outgoing.begin(200, {"content-type": "text/event-stream"})
    for block in (b"one ", b"two"):
        outgoing.write(block)
        await outgoing.drained()
    outgoing.end()
