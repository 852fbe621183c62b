"""The daemon when something goes wrong around it: ports, files, callers that leave, and what peers say."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yaml

from bench.ports import free_port
from mesh import switch
from mesh.addresses import read_interfaces
from mesh.client import MeshClient
from mesh.daemon import Daemon
from mesh.errors import MeshError
from mesh.name_owner import NameOwner
from mesh.wire import PROTOCOL, Drain, Gossip, Hello, PeerSeen, decode, encode
from node.types import NodeId, RequestId
from router.events import Request
from router.frames import Ask
from tests.keys import Circle, Member, identity_of
from tests.mesh.daemons import edit, home_of, mesh_name, running
from tests.mesh.waiting import until

STRANGER = NodeId("0123456789abcdef")

pytestmark = pytest.mark.usefixtures("bare_environment")


def daemon_of(folder: Path, name: str = "solo", **settings: Any) -> AbstractAsyncContextManager[Daemon]:
    return running(home_of(folder, name, **settings))


async def founded(daemon: Daemon) -> None:
    """Its mesh counts, so that whoever starts now comes to it, and does not rule where it then comes to."""
    await until(lambda: daemon.overlay is not None and daemon.overlay.joins.settled)


async def test_an_edit_in_the_same_second_as_a_command_is_not_overlooked(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as daemon:
        stack = {"schema_version": 1, "tiers": [{"name": "t", "model": "nowhere"}]}
        daemon.home.stack.write_text(yaml.safe_dump(stack))
        await daemon.control.enable(None, None)
        await until(lambda: [m.name for m in daemon.host.models()] == ["nowhere"])


async def test_bind_may_name_an_interface(tmp_path: Path) -> None:
    loopback = next(a.interface for a in read_interfaces() if a.ip == "127.0.0.1")
    async with daemon_of(tmp_path, bind=[loopback], mesh_enabled=True) as daemon:
        assert "127.0.0.1" in daemon.report().addresses
        tls = member_of(daemon)
        async with aiohttp.ClientSession() as session:
            for url in (f"http://127.0.0.1:{daemon.config.port}/health",
                        f"https://127.0.0.1:{daemon.config.peer_port}/mesh/v1/status"):  # fmt: skip
                async with session.get(url, ssl=tls) as answer:
                    assert answer.status == 200


async def test_a_mesh_name_that_is_no_host_name_is_a_mesh_all_the_same(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, mesh_enabled=True, mesh_name="ü" * 63) as daemon:
        await until(lambda: daemon.membership.view().coordinator == daemon.id)
        overlay = daemon.overlay
        await until(lambda: overlay is not None and overlay._title.name)
        assert daemon.overlay is overlay


async def test_a_port_edited_while_it_runs_is_not_told_before_it_is_open(tmp_path: Path) -> None:
    async with daemon_of(tmp_path, mesh_enabled=True) as daemon:
        port, peer_port = daemon.config.port, daemon.config.peer_port
        edit(daemon.home, port=free_port(), peer_port=free_port(), node_name="renamed")
        await daemon.reload()
        report = daemon.report()
        assert (report.port, report.peer_port, report.name) == (port, peer_port, "renamed")


async def test_a_mesh_that_cannot_begin_is_off_and_a_free_port_mends_it(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as daemon:
        with socket.create_server(("127.0.0.1", daemon.config.peer_port)):
            with pytest.raises(MeshError, match="is taken by"):
                await daemon.control.enable(None, None)
            status = await daemon.control.mesh_status()
            assert (status["mesh"]["enabled"], daemon.config.mesh_enabled) == (False, False)
            edit(daemon.home, peer_port=free_port())
            assert (await daemon.control.enable(None, None))["mesh"]["enabled"] is True


async def test_a_fault_of_the_mesh_while_its_port_is_taken_costs_the_mesh_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(switch, "REJOIN_S", 0.05)
    async with daemon_of(tmp_path, mesh_enabled=True) as daemon:
        first = daemon.overlay
        assert first is not None
        monkeypatch.setattr(first._election._election, "step", lambda *_: 1 / 0)  # at the next heartbeat
        await until(lambda: daemon.overlay is None)
        with socket.create_server(("127.0.0.1", daemon.config.peer_port)):
            await until(lambda: caplog.text.count("the mesh cannot be begun") >= 3)
            assert daemon.overlay is None
        await until(lambda: daemon.overlay is not None)
        await until(lambda: daemon.membership.view().coordinator == daemon.id)


async def test_a_fault_in_telling_the_mesh_costs_the_mesh_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "REJOIN_S", 0.05)
    async with daemon_of(tmp_path, mesh_enabled=True) as daemon:
        first = daemon.overlay
        assert first is not None
        monkeypatch.setattr(first._title, "look", lambda: 1 / 0)
        daemon.publish()
        await until(lambda: daemon.overlay is not None and daemon.overlay is not first)
        await until(lambda: daemon.membership.view().coordinator == daemon.id)


async def test_who_asks_and_leaves_does_not_stop_half_way_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon_of(tmp_path, mesh_enabled=True) as daemon:
        busy = True
        monkeypatch.setattr(daemon.mesh, "of_peers", lambda: (object(),) if busy else ())

        _, caller = await asyncio.open_unix_connection(daemon.home.running_socket())
        caller.write(b"POST /v1/mesh/disable HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        await until(lambda: daemon.mesh.leaving)
        caller.close()
        asked = daemon._servers["admin"]._runner.server
        assert asked is not None
        await until(lambda: all(connection.transport is None for connection in asked.connections))
        busy = False
        daemon.changed()
        await until(lambda: daemon.overlay is None and not daemon.mesh.leaving)
        assert daemon.membership.view().enabled is False


async def test_a_full_disk_stops_no_election(tmp_path: Path) -> None:
    mesh = {"mesh_name": mesh_name()}
    async with (
        daemon_of(tmp_path, "one", mesh_enabled=True, mesh_priority=200, **mesh) as one,
        daemon_of(tmp_path, "two", **mesh) as two,
    ):
        await founded(one)
        two.home.mesh.rmdir()
        two.home.mesh.write_text("no folder: whoever writes below it fails")
        await two.control.enable(None, None)
        await until(lambda: two.membership.view().coordinator == one.id and two.membership.view().term > 0)


async def test_a_node_that_leaves_takes_the_name_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims: list[NameOwner] = []
    really = NameOwner.claim

    def claim(self: NameOwner, *args: Any, **kwargs: Any) -> None:
        claims.append(self)
        really(self, *args, **kwargs)

    monkeypatch.setattr(NameOwner, "claim", claim)
    mesh = {"mesh_enabled": True, "mesh_name": mesh_name()}
    async with daemon_of(tmp_path, "one", mesh_priority=200, **mesh) as one:
        await founded(one)
        async with daemon_of(tmp_path, "two", **mesh) as two:
            await until(lambda: two.membership.view().coordinator == one.id and one.membership.alive() and claims)
            claims.clear()
            owner = two.overlay._discovery.name if two.overlay else None
            await two.control.disable()
            assert owner is not None
            assert owner not in claims
            assert two.membership.view().coordinator is None


async def test_following_ends_with_the_daemon_and_with_the_caller(tmp_path: Path) -> None:
    async with daemon_of(tmp_path) as daemon:
        gone = http.client.HTTPConnection("x")
        gone.sock = socket.socket(socket.AF_UNIX)
        gone.sock.connect(str(daemon.home.running_socket()))
        await asyncio.to_thread(gone.request, "GET", "/v1/mesh/routes/follow")
        await until(lambda: len(daemon.observer.routes._queues) == 1)
        gone.close()
        await until(lambda: not daemon.observer.routes._queues)
        stays = asyncio.create_task(asyncio.to_thread(list, MeshClient.of(daemon.home).follow()))
        await until(lambda: daemon.observer.routes._queues)
    assert await stays == []


def member_of(daemon: Daemon) -> ssl.SSLContext:
    """STRANGER is a member of its mesh from now on; how it speaks with the peer port."""
    daemon.trust.admit(STRANGER, "stranger", identity_of(STRANGER).cert)
    circle = Circle(STRANGER)
    circle.members[daemon.id] = Member(daemon.trust.identity.cert)
    return circle.client(STRANGER, daemon.id)


async def link_of(session: aiohttp.ClientSession, daemon: Daemon) -> aiohttp.ClientWebSocketResponse:
    """A link as a peer of the same mesh has it, hellos said."""
    tls = member_of(daemon)
    hello = Hello(id=STRANGER, boot="b", name="stranger", mesh=daemon.config.mesh_name, mesh_id="", version="0",
                  protocol=PROTOCOL, peer_port=free_port(), port=4000)  # fmt: skip
    ws = await session.ws_connect(f"https://127.0.0.1:{daemon.config.peer_port}/mesh/v1/link", ssl=tls)
    await ws.send_bytes(encode(hello))
    assert isinstance(decode((await ws.receive()).data), Hello)
    return ws


@pytest.mark.parametrize(
    "frame",
    [
        Gossip((PeerSeen(id=NodeId("ff" * 8), name="x", addresses=("127.0.0.1",), peer_port=99_999),)),
        Gossip((PeerSeen(id=NodeId("ff" * 8), name="x", addresses=("127.0.0.1",), peer_port=0),)),
        Gossip((PeerSeen(id=NodeId("ff" * 8), name="x", addresses=("a" * 65,)),)),
        Ask(Request(id=RequestId("r"), models=()), 0, 0.0),
        Drain(True, float("nan")),
        Drain(True, float("inf")),
        Drain(True, -1.0),
    ],
)
async def test_what_no_socket_and_no_timer_takes_is_dropped_where_it_comes_in(tmp_path: Path, frame: Any) -> None:
    async with (
        daemon_of(tmp_path, mesh_enabled=True) as daemon,
        aiohttp.ClientSession() as session,
        await link_of(session, daemon) as ws,
    ):
        await ws.send_bytes(msgspec.msgpack.encode({"v": PROTOCOL, "frame": frame}))
        assert daemon.overlay is not None
        await until(lambda: daemon.overlay is not None and daemon.overlay.dropped().get("garbled") == 1)
        assert [n.report.name for n in daemon.membership.view().nodes] == ["solo", "stranger"]
        assert not daemon.host.draining


@pytest.mark.parametrize("kept", ["-3", str(2**70), "seven", "9" * 10_000])
async def test_a_term_that_is_none_is_set_aside(tmp_path: Path, kept: str) -> None:
    folder = tmp_path / "solo" / "mesh"
    folder.mkdir(parents=True)
    (folder / "term").write_text(kept)
    async with daemon_of(
        tmp_path,
        mesh_enabled=True,
    ) as solo:
        await until(lambda: solo.membership.view().coordinator == solo.id)
        assert solo.membership.view().term == 0
    assert [p.read_text() for p in folder.glob("term.broken-*")] == [kept]


async def test_who_was_removed_rules_itself_and_those_that_stay_follow_each_other(tmp_path: Path) -> None:
    """Also when it was the coordinator, and the founder: all hear of it, and it hears why."""
    same = {"mesh_enabled": True, "mesh_name": mesh_name()}
    async with (
        daemon_of(tmp_path, "ann", mesh_priority=200, **same) as ann,
        daemon_of(tmp_path, "ben", mesh_priority=100, **same) as ben,
        daemon_of(tmp_path, "cat", mesh_priority=50, **same) as cat,
    ):
        three = (ann, ben, cat)

        def rules() -> list[NodeId | None]:
            return [d.membership.view().coordinator for d in three]

        await until(lambda: all(len(d.membership.alive()) == 2 for d in three), 60)
        await until(lambda: len({*rules()}) == 1 and None not in rules(), 60)
        first = next(d for d in three if d.id == rules()[0])
        stay = [d for d in three if d is not first]
        assert stay[0].overlay
        stay[0].overlay.remove(first.id)
        await until(lambda: all(first.id in d.trust.removed for d in three), 30)
        assert not first.trust.belongs
        await until(lambda: first.membership.view().alone and first.membership.view().coordinator == first.id, 30)
        ids = {d.id for d in stay}
        await until(lambda: len({d.membership.view().coordinator for d in stay} & ids) == 1, 30)
        await until(lambda: all(d.membership.alive() == ids - {d.id} for d in stay), 30)
        assert first.membership.alive() == frozenset()
        shown = {d: d.membership.view().node(first.id) for d in stay}
        assert all(node is None or not node.member for node in shown.values())
