"""mesh/peers.py: what is kept on disk, and every way in which `mesh add` can fail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from mesh.addresses import Address, Addresses
from mesh.errors import MeshError
from mesh.files import write_atomic
from mesh.peers import WELL_KNOWN, PeerStore, find_static, resolve_node, split_address
from mesh.settings import PeersSettings
from mesh.wire import PROTOCOL, PeerSeen, WellKnown
from node.types import NodeId

ME, A, B = NodeId("00" * 8), NodeId("aa" * 8), NodeId("bb" * 8)
QUICK = PeersSettings(connect_s=0.5, retry_first_s=0.01, retry_max_s=0.02)
PEER = PeerSeen(id=A, name="mini", addresses=("10.0.0.2", "fe80::1%en0"), via="static", far=True)


def test_what_was_reached_is_there_after_a_restart(tmp_path: Path) -> None:
    told: list[str] = []
    store = PeerStore(tmp_path, told.append, write_atomic)
    assert store.peers() == ()
    store.save([PEER], {B})
    again = PeerStore(tmp_path, told.append, write_atomic)
    assert again.peers() == (PEER,)
    assert again.removed == {B}
    assert told == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1,2]", b'{"peers": [{"peer": 3}]}', b"\xff\xfe", b'{"peers'])
def test_a_damaged_or_foreign_file_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "peers.json").write_bytes(content)
    told: list[str] = []
    store = PeerStore(tmp_path, told.append, write_atomic)
    assert store.peers() == ()
    assert len(told) == 1
    assert "peers.json" in told[0]
    [aside] = tmp_path.glob("peers.json.broken-*")
    assert aside.read_bytes() == content
    store.save([PEER], ())
    assert PeerStore(tmp_path, told.append, write_atomic).peers() == (PEER,)


def test_peers_not_reached_for_a_week_are_dropped(tmp_path: Path) -> None:
    other = msgspec.structs.replace(PEER, id=B)
    store = PeerStore(tmp_path, pytest.fail, write_atomic)
    store.save([PEER, other], ())
    file = msgspec.json.decode((tmp_path / "peers.json").read_bytes())
    file["peers"][0]["reached_at"] -= 7 * 86400 + 1
    (tmp_path / "peers.json").write_bytes(msgspec.json.encode(file))
    store = PeerStore(tmp_path, pytest.fail, write_atomic)
    assert store.peers() == (other,)
    old = [k["reached_at"] for k in msgspec.json.decode((tmp_path / "peers.json").read_bytes())["peers"]][1]
    store.save([other], ())
    assert msgspec.json.decode((tmp_path / "peers.json").read_bytes())["peers"][0]["reached_at"] == old
    store.save([other], (), alive={B})
    assert msgspec.json.decode((tmp_path / "peers.json").read_bytes())["peers"][0]["reached_at"] > old


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mini", ("mini", 4000)),
        ("mini.local:4100", ("mini.local", 4100)),
        ("10.0.0.2", ("10.0.0.2", 4000)),
        ("::1", ("::1", 4000)),
        ("[::1]", ("::1", 4000)),
        ("[fe80::1%en0]:4100", ("fe80::1%en0", 4100)),
        ("http://mini:4000/v1", ("mini", 4000)),
        (" mini ", ("mini", 4000)),
    ],
)
def test_addresses_as_people_write_them(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text, 4000) == expected


@pytest.mark.parametrize(
    "text", ["", ":4000", "mini:", "mini:x", "mini:0", "mini:70000", "[::1", "[::1]x", "a b", "a/b:1"]
)
def test_what_is_no_address_is_said(text: str) -> None:
    if text in ("mini:", "[::1"):  # generous: a forgotten number or bracket
        assert split_address(text, 4000)[1] == 4000
        return
    with pytest.raises(MeshError, match="no address") as caught:
        split_address(text, 4000)
    assert caught.value.code == "bad_address"


@given(text=st.text(max_size=40))
def test_any_text_is_an_address_or_a_mesh_error(text: str) -> None:
    try:
        host, port = split_address(text, 4000)
    except MeshError:
        return
    assert host
    assert 1 <= port <= 65535


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@asynccontextmanager
async def edge(answer: web.Response | None = None, **known: Any) -> AsyncIterator[int]:
    """Another node's edge (and, unless said otherwise, its peer port) on loopback; yields the edge's port."""
    port = free_port()
    body = WellKnown(**{
        "id": A, "name": "mini", "mesh_id": "m", "version": "0.1", "protocol": PROTOCOL, "peer_port": port, **known,
    })  # fmt: skip

    async def handler(_request: web.Request) -> web.Response:
        return answer or web.Response(body=msgspec.json.encode(body), content_type="application/json")

    app = web.Application()
    app.router.add_get(WELL_KNOWN, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


async def resolve(text: str, **more: Any) -> PeerSeen:
    async with aiohttp.ClientSession() as session:
        return await resolve_node(session, text, **{"me": ME, "settings": QUICK, **more})


async def failure(text: str, **more: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await resolve(text, **more)
    return caught.value


async def test_a_node_is_found_by_its_address() -> None:
    async with edge() as port:
        peer = await resolve(f"127.0.0.1:{port}")
    assert peer == PeerSeen(id=A, name="mini", addresses=("127.0.0.1",), port=port, peer_port=port, version="0.1",
                            via="static")  # fmt: skip


async def test_a_host_name_gives_all_its_addresses() -> None:
    async with edge() as port:
        peer = await resolve(f"localhost:{port}")
    assert peer.addresses[0] == "127.0.0.1"


async def test_another_protocol_is_found_and_left_to_membership() -> None:
    async with edge(protocol=PROTOCOL + 1) as port:
        assert (await resolve(f"127.0.0.1:{port}")).protocol == PROTOCOL + 1


async def test_every_failure_has_a_name_and_a_way_out() -> None:
    error = await failure("no-such-host.invalid")
    assert (error.code, "no-such-host.invalid" in error.message) == ("cannot_resolve", True)
    assert (await failure("x" * 300)).code == "cannot_resolve"
    port = free_port()
    error = await failure(f"127.0.0.1:{port}")
    assert (error.code, error.message) == ("refused", f"nothing listens at 127.0.0.1:{port}")
    assert "mlx-stack up" in error.hint
    async with edge(id=ME) as port:
        assert (await failure(f"127.0.0.1:{port}")).code == "self"
    async with edge(mesh="lab") as port:
        error = await failure(f"127.0.0.1:{port}")
        assert (error.code, "mesh 'lab'" in error.message) == ("other_mesh", True)
    async with edge(peer_port=free_port()) as port:
        error = await failure(f"127.0.0.1:{port}")
        assert (error.code, "peer port 127.0.0.1:" in error.message) == ("peer_port_unreachable", True)


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=404),
        web.Response(text="<html>"),
        web.Response(text='{"id": "x"}'),
        web.Response(body=b"x" * 200_000),
        web.Response(status=301, headers={"location": "http://127.0.0.1:1/"}),
    ],
)
async def test_http_that_is_no_node_is_said(answer: web.Response) -> None:
    async with edge(answer) as port:
        error = await failure(f"127.0.0.1:{port}")
    assert error.code == "not_a_node"
    assert "answers HTTP but is no mlx-stack node" in error.message


async def test_what_is_not_even_http_is_said() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.0\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        error = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert error.code == "not_a_node"


async def test_silence_is_unreachable() -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        error = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert error.code == "unreachable"


async def test_another_site_is_far_and_a_tailnet_address_is_named() -> None:
    elsewhere = Addresses(read=lambda: (Address("en0", 4, "10.0.0.5", 24),))
    assert elsewhere.is_far("192.168.7.2")
    async with edge() as port:
        assert not (await resolve(f"127.0.0.1:{port}", addresses=elsewhere)).far


async def test_a_static_address_is_asked_until_a_node_answers() -> None:
    found: list[PeerSeen] = []
    problems: list[tuple[str, str]] = []
    answers: list[PeerSeen | MeshError] = [MeshError("refused", "no"), MeshError("unreachable", "no"), PEER]

    async def resolved(_text: str) -> PeerSeen:
        answer = answers.pop(0)
        if isinstance(answer, MeshError):
            raise answer
        return answer

    def problem(text: str, error: MeshError) -> None:
        problems.append((text, error.code))

    async with asyncio.timeout(5):
        await find_static("mini", resolved, on_found=found.append, on_problem=problem, settings=QUICK)
    assert found == [PEER]
    assert problems == [("mini", "refused"), ("mini", "unreachable")]
