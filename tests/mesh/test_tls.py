"""mesh/tls.py and a peer port with it: who gets what, and what is left of who was put out."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web

from bench.ports import free_port
from mesh.http import Server, tcp_sockets
from mesh.settings import ServerSettings
from mesh.tls import JOIN, MEMBER, PeerTls, cert_at
from node.errors import NodeError
from node.io.calls import ALIVE, Call
from node.io.http_client import HttpClient
from node.io.serve import Door
from node.openai import DONE
from node.types import NodeId, RequestId
from router.io.carry import HttpHop
from router.settings import EdgeSettings
from tests.keys import Circle, identity_of
from tests.mesh.waiting import until
from tests.node.scripted import served
from tests.node.test_serve import FakeHost

A, B, C = NodeId("aa" * 8), NodeId("bb" * 8), NodeId("cc" * 8)
CALL = Call(id=RequestId("r1"), attempt=1, edge=B, model="m", path="chat/completions", body=b"{}", deadline_s=60.0)


class Peer:
    """A's peer port: `/who` answers members with their id, the join call anybody, and the door serves `host`."""

    def __init__(self, *blocks: bytes | NodeError | None) -> None:
        self.circle, self.port = Circle(A, B), free_port()
        self.tls = self.circle.tls(A)
        self.host = FakeHost(*blocks)
        app = web.Application()
        app.add_routes([web.get("/who", self.who), web.post(JOIN, self.join), web.get(JOIN, self.join)])
        self.server = Server(app, raw=Door(self.host), tls=self.tls, settings=ServerSettings(put_out_s=0.01))

    async def who(self, request: web.Request) -> web.Response:
        return web.Response(text=request[MEMBER])

    async def join(self, request: web.Request) -> web.Response:
        assert cert_at(request.transport) is None or MEMBER in request
        return web.Response(text=f"join {request.get(MEMBER)}")

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.port}{path}"

    def remove(self, node: NodeId) -> None:
        self.circle.remove(node)
        self.tls.renew()
        self.server.members_changed()

    def hop(self, http: HttpClient, tls: ssl.SSLContext) -> HttpHop:
        return HttpHop(
            http,
            addresses=("127.0.0.1",),
            port=self.port,
            tls=tls,
            settings=EdgeSettings(),
            count=lambda _what, _size: None,
        )


@asynccontextmanager
async def peer(*blocks: bytes | NodeError | None) -> AsyncIterator[Peer]:
    made = Peer(*blocks)
    await made.server.listen(await tcp_sockets(made.port, ["127.0.0.1"], lambda _: None))
    try:
        yield made
    finally:
        await made.server.close()


async def said(session: aiohttp.ClientSession, method: str, url: str, tls: ssl.SSLContext) -> tuple[int, str]:
    async with session.request(method, url, ssl=tls) as answer:
        assert "aiohttp" not in answer.headers.get("Server", "") or answer.status != 403
        return answer.status, await answer.text()


async def test_a_member_is_known_by_its_certificate() -> None:
    async with peer() as a, aiohttp.ClientSession() as session:
        assert await said(session, "GET", a.url("/who"), a.circle.client(B, A)) == (200, B)
        assert await said(session, "POST", a.url(JOIN), a.circle.client(B, A)) == (200, f"join {B}")
        assert await said(session, "GET", a.url("/who"), a.circle.client(A, A)) == (200, A), "a copied disk"


async def test_a_stranger_may_ask_to_join_and_learns_nothing_else() -> None:
    async with peer(DONE) as a, aiohttp.ClientSession() as session:
        stranger = a.tls.stranger()
        assert await said(session, "POST", a.url(JOIN), stranger) == (200, "join None")
        silence = (403, "members only\n")
        for method, path in (
            *(("GET", p) for p in (JOIN, "/who", "/mesh/v1/status", "/mesh/v1/link", "/nothing", "/")),
            *(("POST", p) for p in ("/mesh/v1/serve/chat/completions", JOIN + "/", "/who")),
        ):
            assert await said(session, method, a.url(path), stranger) == silence, (method, path)
        assert a.host.calls == []


async def test_a_certificate_of_nobody_here_does_not_even_get_to_the_join_call() -> None:
    async with peer() as a, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await said(session, "POST", a.url(JOIN), a.circle.client(C, A))
        with pytest.raises(aiohttp.ClientError):
            await said(session, "GET", a.url("/who"), a.circle.tls(B, key=1).client(A) or a.tls.stranger())


async def test_a_client_believes_the_member_it_means_and_no_other() -> None:
    async with peer() as a, aiohttp.ClientSession() as session:
        to_itself = a.circle.client(B, B)  # B means B; there is A
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await said(session, "GET", a.url("/who"), to_itself)


async def test_who_was_removed_has_no_connection_from_then_on_and_gets_none() -> None:
    async with peer(None) as a, aiohttp.ClientSession() as session, HttpClient() as http:
        tls = a.circle.client(B, A)
        async with aclosing(served(a.hop(http, tls), CALL)) as stream:
            assert await anext(stream) == ALIVE
            a.remove(B)
            with pytest.raises(NodeError, match="connection"):
                await anext(stream)
        await until(lambda: a.host.closed and a.server.connections == 0)
        with pytest.raises(NodeError):
            await anext(served(a.hop(http, tls), CALL))
        with pytest.raises(aiohttp.ClientError):
            await said(session, "GET", a.url("/who"), tls)
        a.circle.add(B)
        a.tls.renew()
        assert await said(session, "GET", a.url("/who"), tls) == (200, B)


async def test_who_is_removed_in_the_moment_of_its_handshake_does_not_get_in() -> None:
    """The context still believed it; what is looked at afterwards is who is a member now."""
    async with peer() as a, aiohttp.ClientSession() as session:
        a.tls.server()
        a.circle.remove(B)
        tls = PeerTls(a.circle.trust(B)).client(A)
        assert tls is not None
        with pytest.raises(aiohttp.ClientError):
            await said(session, "GET", a.url("/who"), tls)
        await until(lambda: a.server.connections == 0)
        assert a.server._handshakes is not None
        assert a.server._handshakes.failed == 0, "its handshake was good"


async def test_ending_what_was_made_with_a_dropped_context_ends_what_was_asked_on_it() -> None:
    async with peer(None) as a, HttpClient() as http:
        ours = a.circle.tls(B)
        tls = ours.client(A)
        assert tls is not None
        async with aclosing(served(a.hop(http, tls), CALL)) as stream:
            await anext(stream)
            assert http.end(ours.renew()) == 0, "nothing has changed"
            a.circle.add(A, key=1)  # A has another key by now
            gone = ours.renew()
            assert gone == [tls]
            assert ours.client(A) is not tls
            assert http.end(gone) == 1
            with pytest.raises(NodeError):
                await anext(stream)
        await until(lambda: a.host.closed)


async def test_a_connection_made_for_one_node_is_used_for_no_other_at_the_same_address() -> None:
    """An address that went from one node to another: B's edge has a kept connection to A there, and means C now."""
    async with peer(DONE) as a, HttpClient() as http:
        a.circle.add(C)
        for_a, for_c = a.circle.client(B, A), a.circle.client(B, C)
        assert [block async for block in served(a.hop(http, for_a), CALL)] == [ALIVE, DONE]
        assert http.idle == 1
        with pytest.raises(NodeError, match="no connection"):
            await anext(served(a.hop(http, for_c), CALL))
        assert len(a.host.calls) == 1
        assert [block async for block in served(a.hop(http, for_a), CALL)] == [ALIVE, DONE]
        assert http.idle == 1


async def test_a_request_in_the_name_of_another_member_is_refused() -> None:
    async with peer(DONE) as a, HttpClient() as http:
        a.circle.add(C)
        a.tls.renew()
        with pytest.raises(NodeError, match="x-mesh-edge"):
            await anext(served(a.hop(http, a.circle.client(C, A)), CALL))
        assert a.host.calls == []


async def test_big_bodies_and_long_streams_pass_whole_through_tls() -> None:
    blocks = [b"data: " + bytes([65 + n % 26]) * 1000 + b"\n\n" for n in range(3000)]

    async def take(stream: AsyncGenerator[bytes, None]) -> list[bytes]:
        return [block async for block in stream]

    async with peer(*blocks, DONE) as a, HttpClient() as http:
        big = Call(id=CALL.id, attempt=1, edge=B, model="m", path=CALL.path, body=b"x" * 8_000_000, deadline_s=60.0)
        hop = a.hop(http, a.circle.client(B, A))
        assert await asyncio.gather(*(take(served(hop, big)) for _ in range(3))) == [[ALIVE, *blocks, DONE]] * 3
        assert {len(call.body) for call in a.host.calls} == {8_000_000}


def test_contexts_are_made_once_and_anew_when_their_keys_change() -> None:
    circle = Circle(A, B)
    tls = circle.tls(A)
    server, client = tls.server(), tls.client(B)
    assert (tls.server(), tls.client(B)) == (server, client)
    assert tls.client(C) is None
    assert tls.renew() == []
    assert tls.server() is not server
    assert tls.client(B) is client
    circle.remove(B)
    assert tls.client(B) is None
    assert tls.renew() == [client]
    assert tls.renew() == []


def test_a_new_key_of_our_own_ends_every_context() -> None:
    circle = Circle(A, B)
    trust = circle.trust(A)
    tls = PeerTls(trust)
    server, client = tls.server(), tls.client(B)
    trust.identity = identity_of(A, 1)
    assert tls.renew() == [client]
    assert tls.client(B) is not client
    assert tls.server() is not server


def test_on_uvloop_too() -> None:
    """The daemon's loop has a TLS of its own."""
    for test in (
        test_a_member_is_known_by_its_certificate,
        test_a_stranger_may_ask_to_join_and_learns_nothing_else,
        test_a_certificate_of_nobody_here_does_not_even_get_to_the_join_call,
        test_a_client_believes_the_member_it_means_and_no_other,
        test_who_was_removed_has_no_connection_from_then_on_and_gets_none,
        test_who_is_removed_in_the_moment_of_its_handshake_does_not_get_in,
        test_ending_what_was_made_with_a_dropped_context_ends_what_was_asked_on_it,
        test_a_connection_made_for_one_node_is_used_for_no_other_at_the_same_address,
        test_big_bodies_and_long_streams_pass_whole_through_tls,
    ):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test())


CLOCK = """
#include <stdlib.h>
#include <time.h>
time_t time(time_t *out) {
    time_t said = atoll(getenv("SAID"));
    if (out) *out = said;
    return said;
}
"""
MEETS = """
import asyncio
from tests.keys import Circle
circle = Circle("aa" * 8, "bb" * 8)
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=circle.server("aa" * 8))
    port = server.sockets[0].getsockname()[1]
    await asyncio.open_connection("127.0.0.1", port, ssl=circle.client("bb" * 8, "aa" * 8), server_hostname="")
    print("met")
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs LD_PRELOAD and a compiler")
@pytest.mark.parametrize("year", [2001, 2026, 2099, 2101])
async def test_a_wrong_clock_keeps_nobody_out(tmp_path: Path, year: int) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    said = str(int(datetime(year, 6, 1, tzinfo=UTC).timestamp()))
    env = {**os.environ, "LD_PRELOAD": str(tmp_path / "clock.so"), "SAID": said, "PYTHONPATH": ":".join(sys.path)}

    argv = [sys.executable, "-c", MEETS]
    met = subprocess.run(argv, env=env, check=False, capture_output=True, text=True, timeout=60)
    if year < 2100:
        assert met.stdout == "met\n"
    else:
        assert "certificate has expired" in met.stderr, "a control: that clock is believed"
