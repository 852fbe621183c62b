"""Connections to or from an address that is gone end at once, and whoever waits on one learns it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from node.errors import NodeError, NodeErrorCode
from node.io.http_client import HttpClient
from router.io.carry import HttpHop
from router.io.sockets import PeerSockets, bare
from router.settings import EdgeSettings
from tests.mesh.waiting import until
from tests.router.test_carry import CALL, CLIENT, SERVER, take


class Node:
    """Answers the n-th request only when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.callers: set[object] = set()  # connections
        self.answers = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self.callers.add(request.protocol)
        await request.read()
        await self.answers.wait()
        return web.Response(body=b"data: [DONE]\n\n", content_type="text/event-stream")


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Node, PeerSockets, HttpHop]]:
    node, sockets, app = Node(), PeerSockets(), web.Application()
    app.router.add_post("/mesh/v1/serve/{path:.+}", node.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=SERVER).start()
    port = runner.addresses[0][1]
    async with HttpClient(make=sockets.make) as http:
        yield node, sockets, HttpHop(
            http, addresses=("127.0.0.1",), port=port, tls=CLIENT, settings=EdgeSettings(silence_s=60.0),
            count=lambda _, __: None,
        )  # fmt: skip
    await runner.cleanup()


@pytest.mark.parametrize("way", ["to", "from"])
async def test_a_request_on_a_connection_whose_address_is_gone_fails_at_once(way: str) -> None:
    async with asking() as (node, sockets, hop), asyncio.timeout(30.0):
        waiting = asyncio.ensure_future(take(hop))
        await until(lambda: node.asked == 1)
        assert sockets.end_to(["10.9.9.9", "fe80::1%eth0"]) == sockets.end_from(["127.0.0.1"]) == 0
        assert not waiting.done()
        assert (sockets.end_to(["127.0.0.1"]) if way == "to" else sockets.end_from(["10.9.9.9"])) == 1
        with pytest.raises(NodeError) as failed:
            await waiting
        assert failed.value.code is NodeErrorCode.UNREACHABLE
        node.answers.set()
        assert await take(hop) == [b"data: [DONE]\n\n"], "the next one gets a connection of its own"


async def test_an_idle_connection_whose_address_is_gone_is_not_used_again() -> None:
    async with asking() as (node, sockets, hop):
        node.answers.set()
        for _ in range(2):
            await take(hop)
        assert len(node.callers) == 1
        assert sockets.end_to(["127.0.0.1"]) == 1
        await until(lambda: all(made.fileno() < 0 for made in sockets._made))
        await take(hop)
        assert (node.asked, len(node.callers)) == (3, 2)
        assert sockets.end_to(["127.0.0.1"]) == 1, "what has ended is forgotten"


@pytest.mark.parametrize(
    ("address", "known"),
    [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%en0", "fe80::1"), ("host", "host")],
)
def test_an_address_is_the_same_in_every_writing(address: str, known: str) -> None:
    assert bare(address) == known


def test_the_call_is_one_that_waits() -> None:
    assert CALL.path == "chat/completions", "a stream: its silence is borne for long"


async def test_an_address_that_is_gone_while_it_is_dialled_is_given_up() -> None:
    """A listener whose queue is full answers no more, as an address that nobody has."""
    sockets, full = PeerSockets(), socket.create_server(("127.0.0.1", 0), backlog=0)
    port = full.getsockname()[1]
    waiting = [socket.socket() for _ in range(3)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
    async with HttpClient(make=sockets.make) as http, asyncio.timeout(30.0):
        hop = HttpHop(
            http, addresses=("127.0.0.1",), port=port, tls=CLIENT, settings=EdgeSettings(connect_cap_s=60.0),
            count=lambda _, __: None,
        )  # fmt: skip
        dialling = asyncio.ensure_future(take(hop))
        await until(lambda: sockets._made)
        assert sockets.end_to(["10.9.9.9"]) == 0
        await until(lambda: sockets.end_to(["127.0.0.1"]))
        with pytest.raises(NodeError) as failed:
            await dialling
        assert "no connection to 127.0.0.1" in failed.value.message
    for sock in (*waiting, full):
        sock.close()
