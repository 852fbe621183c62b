"""mesh/discovery.py with real zeroconf on the loopback interface, and mesh/advert.py beside it."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from zeroconf.asyncio import AsyncServiceInfo

from mesh import mdns as multicast
from mesh.addresses import Address, Addresses
from mesh.advert import TXT_BYTES_MAX, Advert, seen_of, txt_bytes
from mesh.discovery import Discovery, multicast_problem
from mesh.flood import FloodGate
from mesh.interfaces import Kind
from mesh.mdns import SERVICE
from mesh.settings import DiscoverySettings, FloodSettings
from mesh.wire import PROTOCOL, PeerSeen
from node.types import NodeId
from tests.mesh.listener import listener
from tests.mesh.waiting import until

# Other daemons and other test runs may share this machine's loopback mDNS: every run has ids and names of its own.
A, B = (NodeId(secrets.token_hex(8)) for _ in "ab")
RUN = secrets.token_hex(4)
MESH = f"test-{RUN}"
MESH_ID = "bbbb" * 4
QUICK = DiscoverySettings(
    interfaces_every_s=0.05, interfaces_told_every_s=0.05, update_at_least_s=0.3, update_every_s=0.6, retry_s=0.1
)
LOOPBACK = Address("lo", 1, "127.0.0.1", 8)


def advert(id_: NodeId = A, **more: Any) -> Advert:
    base: dict[str, Any] = {"boot": "b1", "name": "mini", "mesh": MESH, "mesh_id": MESH_ID, "priority": 100}
    return Advert(**{**base, "id": id_, "port": 4000, "peer_port": 4001, "version": "0.1", **more})


class Node:
    def __init__(self, id_: NodeId, interfaces: list[Address], settings: DiscoverySettings = QUICK) -> None:
        self.id, self.found, self.interfaces = id_, list[PeerSeen](), interfaces
        self.discovery = Discovery(
            id_, on_found=self.found.append, settings=settings,
            addresses=Addresses(["127.0.0.1"], read=lambda: tuple(self.interfaces)),
        )  # fmt: skip

    def knows(self, id_: NodeId) -> PeerSeen | None:
        return next((p for p in reversed(self.found) if p.id == id_), None)


@asynccontextmanager
async def running(*nodes: Node, **more: Any) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(n.discovery.run(advert(n.id, **more))) for n in nodes]
        try:
            yield
        finally:
            for node in nodes:
                await node.discovery.close(successor=False)
            for task in tasks:
                task.cancel()


async def test_two_nodes_find_each_other_on_loopback() -> None:
    a, b = Node(A, [LOOPBACK]), Node(B, [LOOPBACK])
    async with running(a, b, models=("qwen", "llama"), headroom_bytes=12 << 30, queue_depth=3):
        await until(lambda: a.knows(B) and b.knows(A))
        assert a.knows(B) == PeerSeen(
            id=B, name="mini", mesh=MESH, mesh_id=MESH_ID, stance="closed",
            addresses=("127.0.0.1",), port=4000, peer_port=4001, boot="b1", version="0.1",
        )  # fmt: skip
        assert a.knows(A) is None
        assert a.discovery.problem == ""


async def test_a_bonjour_browser_sees_models_headroom_and_queue_depth() -> None:
    a = Node(A, [LOOPBACK])
    async with listener() as (zc, _), running(a, models=("qwen3-8b", "llama"), headroom_bytes=12 << 30, queue_depth=3):
        info = AsyncServiceInfo(SERVICE, f"{A}.{SERVICE}")
        await until(lambda: info.load_from_cache(zc.zeroconf))
        txt = info.decoded_properties
        assert (txt["m"], txt["mem"], txt["q"], txt["st"], txt["v"]) == (
            "qwen3-8b,llama",
            "12",
            "3",
            "F",
            str(PROTOCOL),
        )
        assert info.port == 4000


async def test_updates_are_spaced_and_a_change_of_role_goes_first() -> None:
    a = Node(A, [LOOPBACK])
    async with listener() as (_, wire), running(a):
        await until(lambda: len({t for _, t in wire.texts(A)}) == 1)
        for depth in range(1, 6):
            a.discovery.update(advert(queue_depth=depth))
        a.discovery.update(advert(queue_depth=5, role="L"))
        await until(lambda: any(b"st=L" in t for _, t in wire.texts(A)))
        a.discovery.update(advert(queue_depth=6, role="L"))
        await until(lambda: any(b"q=6" in t for _, t in wire.texts(A)))
        firsts: dict[bytes, float] = {}
        for at, text in wire.texts(A):
            firsts.setdefault(text, at)
        assert len(firsts) == 3  # the depths between were never said
        started, role, depth6 = sorted(firsts.values())
        assert role - started >= QUICK.update_at_least_s - 0.05
        assert depth6 - role >= QUICK.update_every_s - 0.05


async def test_after_its_goodbye_it_says_no_more() -> None:
    """The daemon publishes until the last moment: that must not open and announce everything anew."""
    a, b = Node(A, [LOOPBACK]), Node(B, [LOOPBACK])
    async with listener() as (_, wire), running(a):
        await until(lambda: wire.texts(A))
        await a.discovery.close(successor=True)
        a.discovery.update(advert(role="L"))
        async with running(b):
            await until(lambda: any(r.name == f"{B}.{SERVICE}" for _, r in wire.heard))
            assert not any(b"st=L" in t for _, t in wire.texts(A))
            assert not a.discovery._mdns.is_open


async def test_a_goodbye_or_a_crash_removes_nobody() -> None:
    a, b = Node(A, [LOOPBACK]), Node(B, [LOOPBACK])
    async with running(a):
        async with running(b):
            await until(lambda: a.knows(B))
        count = len(a.found)
        async with running(b):  # and it is found again when it returns
            await until(lambda: len(a.found) > count)


async def test_no_interface_is_a_problem_that_ends_when_one_comes() -> None:
    a, b = Node(A, []), Node(B, [LOOPBACK])
    async with running(a, b):
        await until(lambda: "no network interface" in a.discovery.problem)
        a.interfaces = [LOOPBACK]
        await until(lambda: a.knows(B) and b.knows(A))
        assert a.discovery.problem == ""
        a.interfaces = []
        await until(lambda: a.discovery.problem)
        a.found.clear()
        a.interfaces = [LOOPBACK]  # the cable is back: browses anew
        await until(lambda: a.knows(B))


async def test_multicast_that_cannot_be_sent_is_said_with_the_systems_words() -> None:
    assert multicast_problem(["127.0.0.1"]) == ""
    problem = multicast_problem(["203.0.113.77"])
    assert problem.startswith("multicast cannot be sent, so no other node can be found: 203.0.113.77: ")
    assert multicast_problem(["203.0.113.77", "127.0.0.1"]) == ""


async def test_strangers_on_the_service_type_are_ignored() -> None:
    a = Node(A, [LOOPBACK])
    async with listener() as (zc, _), running(a):
        for name, properties in (
            ("printer", {"id": "x"}),
            ("bytes", {b"id": b"\xff\xfe", b"api": b"\xff"}),
            (f"liar-{RUN}", {"id": A, "mesh": MESH, "api": "4000", "peer": "4001", "v": "1"}),
            ("empty", {}),
        ):
            info = AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", port=1, properties=properties,
                                    server=f"{name}.local.", parsed_addresses=["127.0.0.1"])  # fmt: skip
            await zc.async_register_service(info, cooperating_responders=True)
        good = AsyncServiceInfo(SERVICE, f"{B}.{SERVICE}", port=4000, properties=dict(advert(B).txt()),
                                server="b.local.", parsed_addresses=["127.0.0.1"])  # fmt: skip
        await zc.async_register_service(good, cooperating_responders=True)
        await until(lambda: a.knows(B))
        assert {p.id for p in a.found if p.mesh == MESH} == {B}


async def test_this_nodes_own_instance_under_another_boot_nonce_is_passed_on() -> None:
    a = Node(A, [LOOPBACK])
    async with listener() as (zc, _), running(a):
        copy = dict(structs.replace(advert(A), boot="other", peer_port=4999).txt())
        info = AsyncServiceInfo(SERVICE, f"{A}.{SERVICE}", port=4000, properties=copy, server=f"mlx-stack-{A}.local.",
                                parsed_addresses=["127.0.0.1"])  # fmt: skip
        await zc.async_register_service(info, cooperating_responders=True)
        await until(lambda: a.knows(A))
        assert {(p.boot, p.peer_port) for p in a.found if p.id == A} == {("other", 4999)}


async def test_what_does_not_come_back_is_told_with_what_to_do() -> None:
    a = Node(A, [LOOPBACK], structs.replace(QUICK, loop_s=0.3))
    async with running(a):
        await until(lambda: a.discovery._came_back_by is not None)
        await until(lambda: a.discovery._came_back_by is None)
        assert a.discovery.notes() == []
    b = Node(B, [LOOPBACK], structs.replace(QUICK, loop_s=0.3))
    b.discovery._gate = FloodGate(FloodSettings(burst_bytes=0, bytes_per_s=0))  # as a firewall that says nothing
    async with running(b):
        await until(lambda: any("does not come back" in note for note in b.discovery.notes()))
        assert any("mesh add HOST" in note for note in b.discovery.notes())


async def test_a_flood_is_told_and_ends() -> None:
    a = Node(A, [LOOPBACK])
    a.discovery._gate = FloodGate(FloodSettings(source_burst_bytes=20_000, note_s=1.0))
    async with running(a):
        await until(lambda: a.discovery._mdns.is_open)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            for _ in range(40):
                sock.sendto(secrets.token_bytes(1000), ("224.0.0.251", 5353))
        await until(lambda: any("flooded" in note and "127.0.0.1" in note for note in a.discovery.notes()))
        await until(lambda: not any("flooded" in note for note in a.discovery.notes()))


async def test_the_system_s_notice_is_enough_and_a_cable_announces_anew() -> None:
    """Addresses are not polled where the system tells of changes."""
    moved: list[int] = []
    a, b = (
        Node(A, [], structs.replace(QUICK, interfaces_every_s=60.0, interfaces_told_every_s=60.0)),
        Node(B, [LOOPBACK]),
    )
    a.discovery._on_moved = lambda: moved.append(1)
    a.discovery._settings = structs.replace(a.discovery._settings, retry_s=60.0)
    async with running(a, b):
        await until(lambda: a.discovery.problem)
        a.interfaces = [LOOPBACK]
        a.discovery._told(0)
        await until(lambda: a.knows(B))
        assert len(moved) == 1
        a.discovery._told(77)  # an interface that is not ours: a radio of Apple's
        a.found.clear()
        a.discovery._told(LOOPBACK.index)
        await until(lambda: a.knows(B))  # browsed anew
        assert len(moved) == 2


# The name


async def test_followers_learn_an_unusual_name() -> None:
    a, b = Node(A, [LOOPBACK]), Node(B, [LOOPBACK])
    async with running(a), running(b, role="L", host="mlx-mesh-bbbb.local"):
        await until(lambda: a.discovery.name_of_mesh("default") == "mlx-mesh-bbbb.local")
        b.discovery.update(advert(B, role="F"))
        await until(lambda: a.discovery.name_of_mesh("default") == "mlx-mesh.local")


async def test_a_dead_coordinators_name_gives_way_to_the_present_ones() -> None:
    a, b, c = Node(A, [LOOPBACK]), Node(B, [LOOPBACK]), NodeId(secrets.token_hex(8))
    async with running(a), running(b, role="L", host="mlx-mesh-bbbb.local"):
        await until(lambda: a.discovery.name_of_mesh("default", B) == "mlx-mesh-bbbb.local")
        assert a.discovery.name_of_mesh("default", c) == "mlx-mesh-bbbb.local", "the best that is known"
        usual = f"{MESH}.local"
        async with running(Node(c, [LOOPBACK]), role="L", host=usual):
            await until(lambda: a.discovery.name_of_mesh(MESH, c) == usual)


@pytest.mark.parametrize("more", [{"mesh_id": "cccc" * 4}, {"host": "theirs.local"}])
async def test_the_name_of_another_mesh_or_one_that_ours_never_has_is_not_ours(more: dict[str, str]) -> None:
    """Anybody may announce anything, also that it coordinates this very mesh."""
    a, b = Node(A, [LOOPBACK]), Node(B, [LOOPBACK])
    async with running(a), running(b, **{"role": "L", "host": "mlx-mesh-bbbb.local", **more}):
        await until(lambda: a.knows(B))
        assert a.discovery.name_of_mesh("default") == "mlx-mesh.local"


async def test_whoever_speaks_over_mdns_is_told_a_question_too() -> None:
    heard: list[str] = []
    addresses = Addresses(["127.0.0.1"], read=lambda: (LOOPBACK,))
    discovery = Discovery(A, on_found=lambda _: None, heard_from=heard.append, addresses=addresses, settings=QUICK)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(discovery.run(advert()))
        await until(lambda: heard)  # its own announcement
        heard.clear()
        multicast.send_question("127.0.0.1")
        await until(lambda: heard)
        await discovery.close(successor=False)
        task.cancel()
    assert set(heard) == {"127.0.0.1"}


# The TXT record

names = st.text(max_size=80)


@given(
    name=names, mesh=names, models=st.lists(names, max_size=30), role=st.sampled_from("FLS"),
    queue=st.integers(0, 10**6), headroom=st.integers(0, 2**40), priority=st.integers(0, 10**6),
)  # fmt: skip
def test_a_txt_record_always_fits_and_comes_back(
    name: str, mesh: str, models: list[str], role: str, queue: int, headroom: int, priority: int
) -> None:
    said = advert(name=name, mesh=mesh, models=tuple(models), role=role, queue_depth=queue, headroom_bytes=headroom,
                  priority=priority, version="1.2.3", host="mlx-mesh-bbbb.local")  # fmt: skip
    txt = said.txt()
    assert txt_bytes(txt) <= TXT_BYTES_MAX
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in txt.items())
    seen = seen_of(txt, ["10.0.0.2"])
    assert seen is not None
    assert (seen.id, seen.port, seen.peer_port, seen.priority) == (A, 4000, 4001, priority)
    assert name.startswith(seen.name) or seen.name == A[:4]


@given(txt=st.dictionaries(st.sampled_from(["id", "v", "api", "peer", "p", "name", "m"]), st.none() | names))
def test_any_txt_record_is_a_peer_or_nothing(txt: dict[str, str | None]) -> None:
    assert seen_of(txt, ["10.0.0.2"]) is None
    seen = seen_of({**txt, "id": B, "v": "1", "api": "4000", "peer": "4001"}, ["10.0.0.2"] * 40)
    assert seen is not None
    assert len(seen.addresses) <= 16


@pytest.mark.parametrize("models", [(), ("a",), ("m" * 300,), tuple(f"model-{i}" for i in range(99))])
def test_as_many_models_as_fit_are_listed(models: tuple[str, ...]) -> None:
    listed = advert(models=models).txt()["m"].split(",")
    if models == tuple(f"model-{i}" for i in range(99)):
        assert listed[:2] == ["model-0", "model-1"]
        assert listed[-1] == f"+{99 - len(listed) + 1}"
        assert len(listed) > 10
    elif models == ("m" * 300,):
        assert listed == ["+1"]
    else:
        assert listed == [*models] or listed == [""]
    assert structs.replace(advert(), models=models).txt()["mh"] == advert(models=models[::-1]).txt()["mh"]


def test_a_txt_record_that_is_too_long_is_none_of_ours() -> None:
    txt: dict[str, str | None] = dict(advert().txt())
    assert seen_of(txt, ["10.0.0.2"]) is not None
    assert seen_of({**txt, **{f"x{i}": "y" * 250 for i in range(5)}}, ["10.0.0.2"]) is None


async def test_closed_while_it_learns_what_its_interfaces_are() -> None:
    asked, answer = threading.Event(), threading.Event()

    def kinds(names: Collection[str]) -> dict[str, Kind]:
        asked.set()
        answer.wait(20)
        return dict.fromkeys(names, Kind.ETHERNET)

    addresses = Addresses(["127.0.0.1"], read=lambda: (LOOPBACK,), kinds=kinds)
    discovery = Discovery(A, on_found=lambda _: None, addresses=addresses, settings=QUICK)
    running_ = asyncio.ensure_future(discovery.run(advert()))
    await until(asked.is_set)
    await discovery.close(successor=False)
    answer.set()
    await asyncio.wait([running_], timeout=0.2)
    assert not running_.done()
    running_.cancel()
