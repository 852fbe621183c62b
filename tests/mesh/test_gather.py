"""What only other nodes know, asked over the peer port: two gatherers on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import web

from bench.ports import free_port
from mesh import gather
from mesh.gather import Gatherer
from node.types import NodeId, NodeReport
from router.account import Account, NodeAccount
from router.view import NodeState, NodeView, View
from tests.keys import Circle
from tests.mesh.linking import Port

A, B, C = NodeId("a" * 16), NodeId("b" * 16), NodeId("c" * 16)
CIRCLE = Circle(A, B, C)


class Store:
    """What one edge keeps."""

    def __init__(self, *routes: dict[str, Any]) -> None:
        self.routes = list(routes)

    def last(self, count: int) -> list[dict[str, Any]]:
        return sorted(self.routes, key=lambda r: r["at"], reverse=True)[:count]

    def find(self, id_: str) -> dict[str, Any] | None:
        return next((r for r in self.routes if r["id"] == id_), None)


class Peer:
    """A daemon as far as a Gatherer looks, answering on a port of its own."""

    def __init__(self, id_: NodeId, session: aiohttp.ClientSession) -> None:
        self.id, self.session, self.store = id_, session, Store()
        self.port = 0
        self.view = View(self_id=id_, coordinator=A, term=4)
        self.account = Account(0, {})
        self.membership = SimpleNamespace(view=lambda: self.view)
        self.dispatch = SimpleNamespace(account=lambda: self.account)
        self.overlay: Any = SimpleNamespace(last_account=None)
        self.peer_tls = CIRCLE.tls(id_)
        self.gatherer = Gatherer(cast("Any", self))

    async def listen(self) -> Port:
        return await self.listens_to(self.gatherer.routes_defs())

    async def listens_to(self, routes: Sequence[web.RouteDef]) -> Port:
        port, self.port = Port(CIRCLE.tls(self.id), routes), free_port()
        await port.at(self.port)
        return port


def node(peer: Peer, state: NodeState = NodeState.OK, addresses: tuple[str, ...] = ("127.0.0.1",)) -> NodeView:
    report = NodeReport(
        id=peer.id, boot="1", name=peer.id[0] * 3, version="1", protocol=1, priority=1, uptime_s=1, peer_port=peer.port
    )
    return NodeView(report=report, state=state, addresses=addresses)


def route(id_: str, second: int) -> dict[str, Any]:
    return {"id": id_, "at": f"2026-01-01T00:00:{second:02d}.000Z"}


@pytest.fixture
async def three() -> AsyncIterator[list[Peer]]:
    """a coordinates; each sees all three."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        peers = [Peer(id_, session) for id_ in (A, B, C)]
        for peer in peers:
            port = await peer.listen()
            stack.push_async_callback(port.cleanup)
        see(peers)
        yield peers


def see(peers: list[Peer], **states: NodeState) -> None:
    nodes = tuple(node(p, states.get(p.id[0], NodeState.OK)) for p in peers)
    for peer in peers:
        peer.view = View(self_id=peer.id, coordinator=A, term=4, nodes=nodes)


async def test_routes_of_all_edges_newest_first(three: list[Peer]) -> None:
    a, b, c = three
    a.store.routes = [route("a1", 1), route("a4", 4)]
    b.store.routes = [route("b2", 2)]
    c.store.routes = [route("c3", 3), route("c5", 5)]
    for asked in three:
        found = await asked.gatherer.routes(4)
        assert [r["id"] for r in found["routes"]] == ["c5", "a4", "c3", "b2"]
        assert found["unreachable"] == []


async def test_who_does_not_answer_is_named(three: list[Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "ROUTES_S", 0.2)
    a, b, _ = three
    a.store.routes = [route("a1", 1)]
    monkeypatch.setattr(b.store, "last", Mock(side_effect=ValueError("a defect there")))
    see(three, c=NodeState.DEAD)
    found = await a.gatherer.routes(10)
    assert [r["id"] for r in found["routes"]] == ["a1"]
    assert found["unreachable"] == ["bbb", "ccc"], "one fails, one is dead"
    see(three, b=NodeState.INCOMPATIBLE, c=NodeState.WAITING)
    assert (await a.gatherer.routes(10))["unreachable"] == [], "strangers are no part of the history"


async def test_a_node_that_hangs_costs_a_bounded_time(three: list[Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "ROUTES_S", 0.2)
    a, *_ = three
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    three[1].port = silent.sockets[0].getsockname()[1]
    see(three)
    async with asyncio.timeout(5):
        assert (await a.gatherer.routes(10))["unreachable"] == ["bbb"]
    silent.close()


async def test_the_next_address_is_tried(three: list[Peer]) -> None:
    a, b, _ = three
    b.store.routes = [route("b1", 1)]
    a.view = View(self_id=A, nodes=(node(a), node(b, addresses=("127.1.2.3.4", "127.0.0.1"))))
    assert [r["id"] for r in (await a.gatherer.routes(10))["routes"]] == ["b1"]


async def test_one_route_from_whoever_keeps_it(three: list[Peer]) -> None:
    a, _, c = three
    c.store.routes = [route("c1", 1)]
    assert await a.gatherer.route("c1") == route("c1", 1)
    assert await c.gatherer.route("c1") == route("c1", 1)
    assert await a.gatherer.route("nothing") is None


async def test_a_clients_own_id_may_hold_what_urls_mean_something_by(three: list[Peer]) -> None:
    a, _, c = three
    c.store.routes = [route("trace/7?x=1", 1)]
    assert await a.gatherer.route("trace/7?x=1") == route("trace/7?x=1", 1)


async def test_a_silent_node_with_many_addresses_costs_no_more_than_one(
    three: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "ROUTES_S", 0.3)
    a, b, _ = three
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    b.port = silent.sockets[0].getsockname()[1]
    a.view = View(self_id=A, nodes=(node(a), node(b, addresses=("127.0.0.1",) * 16)))
    async with asyncio.timeout(2):
        assert (await a.gatherer.routes(10))["unreachable"] == ["bbb"]
    silent.close()


@pytest.mark.parametrize("answer", [{}, {"account": 5}, {"account": {"queue_depth": "many", "nodes": {}}}])
async def test_a_coordinator_that_answers_something_else_is_like_one_that_does_not(
    three: list[Peer], answer: dict[str, Any]
) -> None:
    a, b, _ = three

    async def status(_: web.Request) -> web.Response:
        return web.json_response(answer)

    port = await a.listens_to([web.get("/mesh/v1/status", status)])
    see(three)
    assert await b.gatherer.account() == b.account
    await port.cleanup()


async def test_counts_are_the_coordinators(three: list[Peer]) -> None:
    a, b, _ = three
    a.account = Account(3, {B: NodeAccount(1, 2)})
    b.account = Account(0, {B: NodeAccount(9, 9)})
    assert await a.gatherer.account() == a.account
    assert await b.gatherer.account() == a.account, "asked now, not from its own view"


async def test_without_an_answer_the_last_account_stands(three: list[Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "ACCOUNT_S", 0.2)
    a, b, _ = three
    a.port = 1
    see(three)
    b.account = Account(0, {B: NodeAccount(0, 1)})
    assert await b.gatherer.account() == b.account, "its own, if it never heard one"
    b.overlay = SimpleNamespace(last_account=Account(7, {}))
    assert await b.gatherer.account() == Account(7, {})
    b.overlay = None
    assert await b.gatherer.account() == b.account
    b.view = View(self_id=B, coordinator=None, nodes=b.view.nodes)
    assert await b.gatherer.account() == b.account, "nobody coordinates: this node decides alone"


@pytest.mark.parametrize("last", ["0", "-3", "many", "999999999", ""])
async def test_a_peer_that_asks_for_nonsense_gets_an_answer(three: list[Peer], last: str) -> None:
    a, b, _ = three
    url = f"https://127.0.0.1:{b.port}/mesh/v1/routes"
    async with a.session.get(url, params={"last": last}, ssl=CIRCLE.client(A, B)) as answer:
        assert (answer.status, await answer.json()) == (200, [])


async def test_nothing_is_asked_of_who_is_no_member_nor_believed_of_who_has_another_key(three: list[Peer]) -> None:
    a, b, c = three
    b.store.routes, c.store.routes = [route("b1", 1)], [route("c1", 1)]
    stranger = Peer(NodeId("d" * 16), a.session)
    stranger.port = b.port
    a.view = View(self_id=A, nodes=(node(a), node(stranger)))
    assert (await a.gatherer.routes(9))["unreachable"] == ["ddd"]
    b.port = c.port  # what answers where b should be is c
    see(three)
    assert await a.gatherer.route("c1") == route("c1", 1)
    a.view = View(self_id=A, nodes=(node(a), node(b)))
    assert await a.gatherer.route("c1") is None
