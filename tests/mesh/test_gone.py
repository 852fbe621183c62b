"""Links and servers when an address is gone, or a peer dials that has lost its link: nothing stale is kept."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from aiohttp import web
from msgspec import structs

from bench.ports import free_port
from election.messages import Message, Rank, Reign, Role
from mesh.events import LinkClosed, LinkUp
from mesh.heartbeats import Heartbeats
from mesh.http import Server
from mesh.wire import Bye, decode, encode
from node.types import NodeId
from tests.keys import Circle
from tests.mesh.linking import A, B, C, Node, raw, stranger, world
from tests.mesh.waiting import until


async def linked(a: Node, b: Node) -> None:
    a.dial(b)
    await until(lambda: a.linked(b) and b.linked(a))


async def test_an_old_link_gives_way_at_once_to_a_peer_that_dials() -> None:
    """A dialled and is the smaller one, so of two young links the old one stays; B's dial can be none of those."""
    async with world(A, B, connect_s=30.0, hello_s=30.0, silence_s=60.0) as (a, b):
        await linked(a, b)
        again = encode(structs.replace(b.hello))
        async with raw(a) as young:
            await young.send_bytes(again)
            assert decode((await young.receive()).data) == Bye("duplicate")
        a.links._links[B].since -= 61.0
        async with raw(a) as dials:
            await dials.send_bytes(again)
            await until(lambda: a.of(LinkClosed))
            assert a.of(LinkClosed)[0].why == "replaced by a newer link"
            await until(lambda: len(a.of(LinkUp)) >= 2)


async def test_a_link_to_an_address_that_is_gone_ends() -> None:
    async with world(A, B) as (a, b):
        await linked(a, b)
        a.links.leave(B, ["10.0.0.1"])
        assert a.linked(b)
        a.links.leave(B, ["127.0.0.1", "10.0.0.1"])
        assert [closed.why for closed in a.of(LinkClosed)] == ["its address 127.0.0.1 is gone"]
        await until(lambda: len(a.of(LinkUp)) == 2 and a.linked(b))
        a.links.leave(NodeId("none"), ["127.0.0.1"])


async def test_a_link_in_doubt_that_says_nothing_ends() -> None:
    async with world(A, probe_s=0.1, silence_s=60.0, ping_s=60.0) as (a,), raw(a) as other:
        await other.send_bytes(encode(stranger()))
        await until(lambda: a.of(LinkUp))
        a.links.probe(B)
        a.links.probe(NodeId("none"))
        await until(lambda: a.of(LinkClosed))
        assert "no answer within" in a.of(LinkClosed)[0].why


@pytest.mark.parametrize("side", ["mine", "theirs"])
async def test_a_server_ends_what_runs_for_a_connection_whose_address_is_gone(side: str) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def serve(_: web.Request) -> web.Response:
        asked.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    app = web.Application()
    app.add_routes([web.post("/", serve)])
    server, listening = Server(app), socket.create_server(("127.0.0.1", 0))
    await server.listen([listening])
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    async with aiohttp.ClientSession() as session, asyncio.timeout(30.0):
        waiting = asyncio.ensure_future(session.post(url))
        await asked.wait()
        server.end_at({"127.0.0.1", "10.0.0.1"})
        server.end_of({"10.0.0.1", "fe80::1%eth0"})
        assert server.connections == 1
        if side == "mine":
            server.end_at({"10.0.0.1"})
        else:
            server.end_of({"10.0.0.1", "127.0.0.1"})
        await ended.wait()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], aiohttp.ClientError)
    await server.close()
    server.end_at(set())


async def test_who_is_not_heard_is_told_so_and_nobody_else() -> None:
    heard: list[tuple[NodeId, bool]] = []
    circle = Circle(A, B, C)

    def node(id_: NodeId) -> Heartbeats:
        return Heartbeats(seals=circle.seals(id_), on_message=lambda message, _: heard.append((id_, message.deaf)))

    nodes = {id_: node(id_) for id_ in (A, B, C)}
    ports = {id_: free_port() for id_ in nodes}
    for id_, beats in nodes.items():
        await beats.open(["127.0.0.1"], ports[id_])
    for id_ in (B, C):
        nodes[A].set_peer(id_, ["127.0.0.1"], ports[id_])
    beat = Message(
        kind="hb", sender=A, boot="b1", seq=1, mesh="default", reign=Reign(), coordinator=None, role=Role.FOLLOWER,
        rank=Rank(True, 100, 0, A, "b1"), uptime_s=1.0,
    )  # fmt: skip
    nodes[A].send(beat, None)
    await until(lambda: nodes[A].counts.answered == 2)  # from now on they believe each other
    nodes[A].send(structs.replace(beat, seq=2), None, {C})
    await until(lambda: len(heard) == 2)
    nodes[A].send(structs.replace(beat, seq=3), C, {C})
    await until(lambda: len(heard) == 3)
    for beats in nodes.values():
        beats.close()
    assert sorted(heard) == [(B, False), (C, True), (C, True)]
