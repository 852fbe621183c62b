"""mesh/name_owner.py with real zeroconf on the loopback interface: what an independent resolver sees of a name."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from zeroconf import DNSIncoming  # type: ignore[attr-defined]  # there, but not in __all__

from mesh.mdns import Mdns, Service
from mesh.name_events import Opened, Said
from mesh.name_owner import NameOwner, hosts_of, published
from tests.mesh.listener import listener, resolved
from tests.mesh.waiting import until

# Other daemons and other test runs may share this machine's loopback mDNS: every run has names of its own.
RUN = secrets.token_hex(4)
HOSTS = (f"mesh-{RUN}.local.", f"coordinator-{RUN}.local.")
LAST = f"last-{RUN}.local."
TTL_S = 120


class Node:
    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self.mdns = Mdns(self.id)
        self.owner = NameOwner(self.mdns, TTL_S)
        self.told: list[Opened | Said] = []
        self.owner.listen(HOSTS, self.told.append)

    def heard(self) -> set[tuple[str, str, bool]]:
        return {record for event in self.told if isinstance(event, Said) for record in event.records}


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[list[Node]]:
    found = [Node() for _ in range(count)]
    try:
        for node in found:
            service = Service(name=node.id, port=4000, txt={}, addresses=("127.0.0.1",))
            await node.mdns.open(["127.0.0.1"], service)
            node.owner.opened()
        yield found
    finally:
        for node in found:
            await node.mdns.close()


async def test_a_name_is_announced_answered_and_handed_over_in_one_packet() -> None:
    async with nodes(2) as (a, b):
        async with listener() as (_, wire):
            a.owner.claim(HOSTS, ["10.0.0.1"])
            a.owner.swap([])
            assert a.owner.chosen == HOSTS[0]
            await until(lambda: all(("10.0.0.1", TTL_S) in wire.addresses(host) for host in HOSTS))
        await until(lambda: (HOSTS[0], "10.0.0.1", True) in b.heard())
        assert await resolved(HOSTS[0]) == {"10.0.0.1"}  # who asks later is answered
        async with listener() as (_, wire):
            b.owner.ask([HOSTS[0]])
            await until(lambda: wire.addresses(HOSTS[0]))  # so that it has something to say goodbye to
            b.owner.claim(HOSTS, ["10.0.0.2"])
            b.owner.swap(["10.0.0.1"])
            a.owner.release(goodbye=False)
            await until(lambda: ("10.0.0.2", TTL_S) in wire.addresses(HOSTS[0]))
            said = [(at, r) for at, r in wire.heard if r.type == 1 and r.name == HOSTS[0]]
            news = next(at for at, r in said if r.address == ipaddress.ip_address("10.0.0.2").packed)
            gone = next(at for at, r in said if r.ttl <= 1)
            assert abs(news - gone) < 0.001  # heard in one packet: handed over in one call
        await until(lambda: {(HOSTS[0], "10.0.0.1", False), (HOSTS[0], "10.0.0.2", True)} <= a.heard())
        assert await resolved(HOSTS[0]) == {"10.0.0.2"}
        b.owner.release(goodbye=True)
        assert b.owner.chosen == ""
        assert await resolved(HOSTS[0]) == set()


async def test_what_was_released_is_not_said_any_more_not_even_late() -> None:
    """zeroconf holds an answer that it gave within the last second: sent after the loss it would steal the name."""
    async with nodes(2) as (a, b), listener() as (_, wire):
        a.owner.claim(HOSTS, ["10.0.0.1"])
        a.owner.swap([])
        await until(lambda: wire.addresses(HOSTS[0]))
        b.owner.ask(HOSTS)  # within that second
        assert a.mdns._zc is not None
        held = a.mdns._zc.zeroconf
        await until(lambda: held.out_delay_queue.queue)
        b.owner.claim(HOSTS, ["10.0.0.2"])
        b.owner.swap(["10.0.0.1"])
        a.owner.release(goodbye=False)
        wire.heard.clear()
        await until(lambda: not (held.out_queue.queue or held.out_delay_queue.queue))
        a.owner.claim([LAST], ["10.0.0.3"])
        a.owner.swap([])
        await until(lambda: wire.addresses(LAST))  # heard after whatever was sent before
        assert ("10.0.0.1", TTL_S) not in wire.addresses(HOSTS[0]) + wire.addresses(HOSTS[1])


async def test_a_name_of_another_case_and_a_closed_socket_are_no_trouble() -> None:
    node = Node()
    node.owner.claim(HOSTS, ["10.0.0.1"])
    node.owner.swap(["10.0.0.2"])
    node.owner.ask(HOSTS)
    node.owner.release(goodbye=True)
    assert node.told == []
    async with nodes(2) as (a, b):
        a.owner.claim((HOSTS[0].upper(),), ["10.0.0.1"])
        a.owner.swap([])
        await until(lambda: (HOSTS[0], "10.0.0.1", True) in b.heard())


def question(host: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in host.rstrip(".").split("."))
    return struct.pack("!6H", 0, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


@pytest.mark.parametrize("kind", [1, 28], ids=["A", "AAAA"])
async def test_a_question_for_a_held_name_is_answered_also_that_there_is_no_ipv6(kind: int) -> None:
    """An AAAA question that nobody answers makes a resolver wait; the answer is an NSEC record: only A exists."""
    async with nodes(1) as (node,):
        node.owner.claim(HOSTS, ["10.0.0.1"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sock.setblocking(False)
            sock.sendto(question(HOSTS[0], kind), ("224.0.0.251", 5353))  # from another port: answered by unicast
            async with asyncio.timeout(8.0):
                answer = await asyncio.get_running_loop().sock_recv(sock, 9000)
    message = DNSIncoming(answer)
    assert message.is_response()
    kinds = {record.type for record in message.answers()}
    assert kinds >= ({47} if kind == 28 else {1})


def test_the_names_of_a_mesh() -> None:
    assert hosts_of("default") == ("mlx-mesh.local.", "coordinator.local.")
    assert hosts_of("Lab") == ("lab.local.",)
    assert hosts_of("My mesh, 2.0") == ("my-mesh-2-0.local.",)
    assert hosts_of("x" * 63) == (f"{'x' * 63}.local.",)
    for odd in ("ü" * 63, "..", "-"):  # 126 bytes are no DNS label: sending it failed, and the mesh with it
        (host,) = hosts_of(odd)
        assert host.startswith("mlx-mesh-")
        assert len(host) < 64


def test_a_name_leads_to_what_every_client_can_use() -> None:
    assert published(["fe80::1%en0", "192.168.1.5", "fd00::5"]) == ("192.168.1.5",)
    assert published(["fe80::1%en0", "fd00::5"]) == ("fd00::5",)
    assert published(["fe80::1%en0"]) == ()
    assert published(["mini", "", "192.168.1.5"]) == ("192.168.1.5",), "a node can say what it likes of itself"
