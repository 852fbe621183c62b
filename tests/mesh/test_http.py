"""Where the daemon listens, and who may reach it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mesh.errors import MeshError
from mesh.http import UNSENT_BYTES, Server, guards, is_local, local_only, tcp_sockets
from mesh.settings import ServerSettings
from node.io.probe import Holder
from tests.mesh.machine import needs_ipv6


def nobody(_: int) -> None:
    return None


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *((a, True) for a in ("127.0.0.1", "::1", "10.1.2.3", "192.168.0.9", "172.16.0.1", "169.254.1.1")),
        *((a, True) for a in ("100.64.0.1", "100.127.255.254", "fe80::1%en0", "fd7a:115c:a1e0::1", "::ffff:10.0.0.1")),
        *((a, False) for a in ("8.8.8.8", "100.128.0.1", "2001:4860::1", "::ffff:8.8.8.8", "no address", "")),
    ],
)
def test_local_is_loopback_lan_and_tailnet(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_who_names_an_address_in_bind_means_it() -> None:
    assert guards(()) == [local_only]
    assert guards(("203.0.113.7",)) == []


async def test_a_taken_port_names_its_holder() -> None:
    with (await tcp_sockets(0, ["127.0.0.1"], nobody))[0] as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MeshError, match=rf"port {port} is taken by python3 \(pid 7\)") as refused:
            await tcp_sockets(port, ["127.0.0.1"], lambda _: Holder(pid=7, name="python3"))
        assert refused.value.code == "port_taken"
        with pytest.raises(MeshError, match="another process"):
            await tcp_sockets(port, ["127.0.0.1"], nobody)


async def test_who_holds_a_port_is_looked_up_beside_the_loop() -> None:
    asked: list[threading.Thread] = []

    def holder_of(_: int) -> None:
        asked.append(threading.current_thread())

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MeshError, match="is taken"):
        await tcp_sockets(taken.getsockname()[1], ["127.0.0.1"], holder_of)
    assert len(asked) == 1
    assert asked != [threading.main_thread()]


async def test_when_one_address_fails_none_is_kept() -> None:
    with (await tcp_sockets(0, ["127.0.0.1"], nobody))[0] as free:
        port = free.getsockname()[1]
    with pytest.raises(MeshError, match=r"192\.0\.2\.1 port .*`bind`"):  # a documentation address is nobody's
        await tcp_sockets(port, ["127.0.0.1", "192.0.2.1"], nobody)
    with (await tcp_sockets(port, ["127.0.0.1"], nobody))[0] as again:
        assert again.getsockname()[1] == port


async def test_an_address_given_twice_is_bound_once() -> None:
    sockets = await tcp_sockets(0, ["127.0.0.1", "127.0.0.1"], nobody)
    assert len(sockets) == 1
    sockets[0].close()


async def test_little_waits_in_the_system_for_a_client_that_does_not_read() -> None:
    (listening,) = await tcp_sockets(0, ["127.0.0.1"], nobody)
    with listening, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listening.getsockname())
        ours, _ = listening.accept()
        with ours:
            ours.setblocking(False)
            # Time can only add to what is taken, so a slow machine fails nothing.
            taken, end = 0, asyncio.get_running_loop().time() + 0.5
            while asyncio.get_running_loop().time() < end:
                try:
                    taken += ours.send(b"x" * 4096)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
    assert taken < 3 * UNSENT_BYTES


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    app = web.Application(middlewares=[local_only])
    app.add_routes([web.get("/", hello)])
    made = Server(app)
    yield made
    await made.close()
    await made.close()


async def test_a_server_answers_until_it_is_closed(server: Server) -> None:
    (listening,) = await tcp_sockets(0, ["127.0.0.1"], nobody)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    await server.listen([listening])
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            assert await answer.text() == "hello"
            assert server.connections == 1
        await server.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url)


async def test_what_arrives_at_a_public_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (listening,) = await tcp_sockets(0, ["127.0.0.1"], nobody)
    await server.listen([listening])
    monkeypatch.setattr("mesh.http.is_local", lambda address: address != "127.0.0.1")
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{listening.getsockname()[1]}/") as answer,
    ):
        assert answer.status == 403
        assert "bind" in await answer.text()


async def test_the_admin_socket_is_this_users_alone(tmp_path: Path) -> None:
    path, app = tmp_path / "daemon.sock", web.Application()
    app.add_routes([web.get("/", hello)])
    server = Server(app)
    await server.listen_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://localhost/") as answer,
    ):
        assert await answer.text() == "hello"
    await server.close()


@needs_ipv6
async def test_ipv6_loopback_where_there_is_one() -> None:
    for one in await tcp_sockets(0, ["::1"], nobody):
        assert one.getsockname()[0] == "::1"
        one.close()


async def test_connections_that_say_nothing_are_closed() -> None:
    app = web.Application()
    app.add_routes([web.get("/", hello)])
    made = Server(app, settings=ServerSettings(look_every_s=0.02, silent_s=0.5, silent_max=8))
    sockets = await tcp_sockets(0, ["127.0.0.1"], nobody)
    port = sockets[0].getsockname()[1]
    await made.listen(sockets)
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        async with session.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 200
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        slow_reader, slow_writer = await asyncio.open_connection("127.0.0.1", port)
        slow_writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Half-A-Head: ")
        for reader, _ in silent:
            assert await reader.read() == b""
        assert await slow_reader.read() == b""
        assert made.silent_closed == 21
        assert made.connections == 1, "one that has asked is kept"
        async with session.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 200
        for _, writer in (*silent, (slow_reader, slow_writer)):
            writer.close()
    await made.close()


async def test_of_many_silent_connections_the_newest_may_stay() -> None:
    made = Server(web.Application(), settings=ServerSettings(look_every_s=0.02, silent_s=60.0, silent_max=3))
    sockets = await tcp_sockets(0, ["127.0.0.1"], nobody)
    port = sockets[0].getsockname()[1]
    await made.listen(sockets)
    async with asyncio.timeout(20):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        await asyncio.gather(*(reader.read() for reader, _ in silent[:7]))
        assert made.silent_closed == 7
        for _, writer in silent:
            writer.close()
    await made.close()
