"""Nodes with keys, links of their own and real sockets on loopback, and another member's bare WebSocket."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from msgspec import structs

from bench.ports import free_port
from mesh.clones import Met, Spoke
from mesh.events import Event, Framed, LinkClosed, LinkUp, Rtt, SaidBye
from mesh.http import Server
from mesh.links import PATH, Links
from mesh.settings import LinkSettings, ServerSettings
from mesh.tls import PeerTls
from mesh.wire import PROTOCOL, Frame, Gossip, Hello, PeerSeen
from node.http_reply import Answer
from node.http_request import Fault, Head
from node.io.turn import Incoming, Outgoing
from node.types import NodeId
from tests.keys import Circle

A, B, C = NodeId("aa" * 8), NodeId("bb" * 8), NodeId("cc" * 8)
QUICK = LinkSettings(connect_s=0.5, hello_s=0.5, backoff_first_s=0.02, backoff_max_s=0.1, ping_s=0.1, silence_s=0.6)
GOSSIP = Gossip((PeerSeen(id=C, name="third"),))
T = TypeVar("T", bound=Event)


class NoDoor:
    """Of the raw front: nothing is carried."""

    def takes(self, _: Head) -> bool:
        return False

    def malformed(self, fault: Fault) -> Answer:
        raise AssertionError(fault)

    async def answer(self, _incoming: Incoming, _outgoing: Outgoing) -> None:
        raise AssertionError


class Port:
    """A node's peer port."""

    def __init__(self, tls: PeerTls, routes: Sequence[web.RouteDef]) -> None:
        app = web.Application()
        app.add_routes(routes)
        self.server = Server(app, raw=NoDoor(), tls=tls, settings=ServerSettings(stop_s=0.1))

    async def at(self, port: int, host: str = "127.0.0.1") -> None:
        await self.server.listen([socket.create_server((host, port))])

    async def cleanup(self) -> None:
        await self.server.close()


class Node:
    """Links with a peer port of its own."""

    def __init__(
        self,
        id_: NodeId,
        session: aiohttp.ClientSession,
        settings: LinkSettings = QUICK,
        circle: Circle | None = None,
        **hello: Any,
    ) -> None:
        self.circle = circle or Circle(A, B, C, id_)
        self.tls = self.circle.tls(id_)
        self.port = free_port()
        self.hello = Hello(
            **{
                "id": id_, "boot": "b1", "name": id_[:4], "mesh": "default", "mesh_id": "", "version": "0.1",
                "protocol": PROTOCOL, "peer_port": self.port, "port": 4000, **hello,
            }
        )  # fmt: skip
        self.events: list[Event] = []
        self.frames: list[tuple[NodeId, Frame]] = []
        self.others: list[Spoke | Met] = []
        self.links = Links(
            hello=lambda: self.hello, session=session, tls=self.tls.client, tell=self.events.append,
            on_frame=lambda node, frame: self.frames.append((node, frame)), rng=random.Random(1), settings=settings,
            on_other=self.others.append,
        )  # fmt: skip
        self.server: Port | None = None

    def of(self, kind: type[T]) -> list[T]:
        return [e for e in self.events if isinstance(e, kind)]

    async def listen(self) -> None:
        self.server = Port(self.tls, self.links.routes())
        await self.server.at(self.port)

    def dial(self, other: Node, *addresses: str) -> None:
        self.links.dial(other.hello.id, addresses or ("127.0.0.1",), other.port, at_once=True)

    def linked(self, *others: Node) -> bool:
        return self.links.linked() == {o.hello.id for o in others}


@asynccontextmanager
async def world(*ids: NodeId, **settings: Any) -> AsyncIterator[list[Node]]:
    """Nodes that listen and run; at the end each pair's events must have been in turn."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        circle = Circle(A, B, C, *ids)
        nodes = [Node(id_, session, structs.replace(QUICK, **settings), circle) for id_ in ids]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(node.links.run()) for node in nodes]
            for node in nodes:
                await node.listen()
            try:
                await asyncio.sleep(0)  # their tasks have begun
                yield nodes
            finally:
                for node in nodes:
                    await node.links.close("test over")
                for task in running:
                    task.cancel()
                for node in nodes:
                    if node.server:
                        await node.server.cleanup()
    for node in nodes:
        check_turns(node.events)


def check_turns(events: Iterable[Event]) -> None:
    linked: set[NodeId] = set()
    for event in events:
        match event:
            case LinkUp(hello):
                assert hello.id not in linked
                linked.add(hello.id)
            case LinkClosed(node):
                linked.remove(node)
            case Framed(node) | Rtt(node) | SaidBye(node):
                assert node in linked
    assert linked == set()


@asynccontextmanager
async def raw(node: Node, me: NodeId = B) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The member `me`, as the node at the other end sees it."""
    tls = node.circle.client(me, node.hello.id)
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"https://127.0.0.1:{node.port}{PATH}", ssl=tls) as ws:
            yield ws


def stranger(id_: NodeId = B, **more: Any) -> Hello:
    return structs.replace(
        Hello(
            id=id_, boot="b1", name="b", mesh="default", mesh_id="", version="", protocol=PROTOCOL, peer_port=1, port=1
        ),
        **more,
    )
