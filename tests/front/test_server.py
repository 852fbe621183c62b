"""What mesh/http.py keeps of its connections holds for raw ones: counted, closed when silent, ended with an address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from mesh.http import Server, local_only, tcp_sockets
from mesh.settings import ServerSettings
from node.http_reply import Answer
from node.http_request import Fault, Head
from node.io.turn import Incoming, Outgoing
from tests.mesh.waiting import until

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = ServerSettings(look_every_s=0.02, silent_s=0.5, silent_max=8)


class Raw:
    """Says where it is, and waits for `gate` when asked for /wait."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = 0

    def takes(self, head: Head) -> bool:
        return head.method == "POST"

    def malformed(self, fault: Fault) -> Answer:
        return Answer(fault.status, {}, b"malformed")

    async def answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        if incoming.head.target == "/wait":
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1
        outgoing.whole(Answer(200, {}, b"raw"))


async def framework(_: web.Request) -> web.Response:
    return web.Response(text="framework")


@asynccontextmanager
async def served(settings: ServerSettings | None = None) -> AsyncIterator[tuple[Server, Raw, int]]:
    app, raw = web.Application(middlewares=[local_only]), Raw()
    app.add_routes([web.get("/", framework)])
    server = Server(app, raw=raw, guarded=True, settings=settings or ServerSettings(stop_s=0.5))
    sockets = await tcp_sockets(0, ["127.0.0.1"], lambda _: None)
    await server.listen(sockets)
    try:
        yield server, raw, sockets[0].getsockname()[1]
    finally:
        await server.close()
        await server.close()
    assert server.connections == 0


async def asks(port: int, text: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    return reader, writer


async def test_both_kinds_of_connections_are_counted() -> None:
    async with served() as (server, raw, port):
        reader, writer = await asks(port, POST)
        await reader.readuntil(b"raw")
        assert server.connections == 1
        _, waiting = await asks(port, POST.replace(b"/ ", b"/wait "))
        await until(lambda: raw.waiting == 1)
        assert server.connections == 2
        writer.write(GET)
        answer = await reader.read()
        assert answer.endswith(b"framework")
        assert b"connection: close" in answer.lower()
        for each in (writer, waiting):
            each.close()
        await until(lambda: server.connections == raw.waiting == 0)


async def test_raw_connections_that_say_nothing_are_closed() -> None:
    async with served(QUICK) as (server, _, port):
        spoken, keeping = await asks(port, POST)
        await spoken.readuntil(b"raw")
        silent = [await asks(port, text) for text in [b""] * 20 + [POST[:20]]]
        async with asyncio.timeout(30):
            said = [await reader.read() for reader, _writer in silent]
        assert said[:-1] == [b""] * 20
        assert said[-1].startswith(b"HTTP/1.1 408 "), "who has begun to ask is told"
        assert server.silent_closed == 21
        assert server.connections == 1, "one that has asked is kept"
        keeping.write(POST)
        await spoken.readuntil(b"raw")
        for writer in (keeping, *(writer for _, writer in silent)):
            writer.close()


async def test_a_raw_connection_without_a_next_request_is_closed() -> None:
    async with served(ServerSettings(look_every_s=0.02, keepalive_s=0.2)) as (server, raw, port):
        reader, writer = await asks(port, POST)
        waiting_reader, waiting = await asks(port, POST.replace(b"/ ", b"/wait "))
        async with asyncio.timeout(30):
            assert (await reader.read()).endswith(b"raw")
        assert (server.connections, raw.waiting) == (1, 1), "one that is answered is not idle"
        raw.gate.set()
        assert (await waiting_reader.read()).endswith(b"raw")
        for each in (writer, waiting):
            each.close()


@pytest.mark.parametrize("side", ["here", "there"])
async def test_raw_connections_end_with_their_address(side: str) -> None:
    async with served() as (server, raw, port):
        reader, writer = await asks(port, POST.replace(b"/ ", b"/wait "))
        await until(lambda: raw.waiting == 1)
        end = server.end_at if side == "here" else server.end_of
        end(["127.0.0.1"] if side == "here" else ["192.0.2.1"])
        assert server.connections == 1
        end([] if side == "here" else ["127.0.0.1"])
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await until(lambda: raw.waiting == server.connections == 0)
        writer.close()


async def test_what_arrives_at_a_public_address_is_not_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.http.is_local", lambda address: address != "127.0.0.1")
    async with served() as (_, raw, port):
        for text in (POST, GET):
            reader, writer = await asks(port, text)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"connection: close" in answer.lower()
            writer.close()
        assert raw.waiting == 0


async def test_a_server_that_closes_cancels_what_does_not_end() -> None:
    async with served() as (server, raw, port):
        reader, writer = await asks(port, POST.replace(b"/ ", b"/wait "))
        await until(lambda: raw.waiting == 1)
        await server.close()
        assert (raw.waiting, server.connections) == (0, 0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
