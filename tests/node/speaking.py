"""A server on loopback that says exactly these bytes, and the client that asks it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from node.io.dial import Origin
from node.io.http_client import HttpClient
from node.io.http_read import ReadAnswer
from node.io.http_wire import question
from node.settings import HttpSettings
from tests.mesh.waiting import until

ASK = question("GET", "x", "/", {}, None)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Speaker:
    """Reads a head (and the body its length says), then says the next of `says`; `then` has the socket afterwards."""

    def __init__(self) -> None:
        self.says: list[bytes] = [OK]
        self.then: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
        self.port = self.connections = self.open = 0
        self.asked: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.asked.append(head + await reader.readexactly(int(length or 0)))
                writer.write(self.says[min(len(self.asked), len(self.says)) - 1])
                await writer.drain()
                if self.then is not None:
                    await self.then(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def ask(self, client: HttpClient, body: bytes = b"", **more: Any) -> ReadAnswer:
        head = question("POST", "x", "/", {}, len(body)) if body else ASK
        limits = {"connect_s": 5.0, "silence_s": 30.0, **more}
        return await client.ask([Origin("127.0.0.1", self.port)], head, body, **limits)

    async def all(self, client: HttpClient, body: bytes = b"", **more: Any) -> bytes:
        answer = await self.ask(client, body, **more)
        try:
            found = await answer.whole(10**9)
        finally:
            answer.close()
        assert found is not None
        return found


@asynccontextmanager
async def spoken(**bounds: Any) -> AsyncIterator[tuple[Speaker, HttpClient]]:
    speaker, client = Speaker(), HttpClient(HttpSettings(**bounds))
    server = await asyncio.start_server(speaker, "127.0.0.1", 0)
    speaker.port = server.sockets[0].getsockname()[1]
    try:
        yield speaker, client
    finally:
        await client.close()
        assert client.connections == client.idle == 0
        server.close()
        await until(lambda: speaker.open == 0)


@contextmanager
def black_hole(host: str, port: int = 0) -> Iterator[int]:
    """A listener whose queue is full: it swallows what comes, like an address that nobody has."""
    with socket.socket() as full:
        full.bind((host, port))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]
        for filler in fillers:
            filler.close()


async def closing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
