"""mesh/heartbeats.py with real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import combinations

import pytest
import uvloop

from bench.ports import free_port
from election.messages import Message, Rank, Reign, Role
from mesh.heartbeats import Counts, Heartbeats
from mesh.settings import HeartbeatSettings
from mesh.wire import WireError, encode_message
from node.types import NodeId
from tests.keys import Circle
from tests.mesh.machine import needs_ipv6
from tests.mesh.waiting import until

A, B, C = NodeId("aa" * 8), NodeId("bb" * 8), NodeId("cc" * 8)
ABC = Circle(A, B, C)


def message(sender: NodeId = A, seq: int = 1, mesh: str = "default") -> Message:
    rank = Rank(True, 100, 0, sender, "b1")
    return Message(kind="hb", sender=sender, boot="b1", seq=seq, mesh=mesh, reign=Reign(), coordinator=None,
                   role=Role.FOLLOWER, rank=rank, uptime_s=1.0)  # fmt: skip


class Node:
    def __init__(
        self, id_: NodeId = A, host: str = "127.0.0.1", settings: HeartbeatSettings | None = None, circle: Circle = ABC
    ) -> None:
        self.id, self.host, self.port = id_, host, free_port()
        self.heard: list[tuple[Message, str]] = []
        self.noise: list[str] = []
        self.beats = Heartbeats(
            seals=circle.seals(id_),
            on_message=lambda m, a: self.heard.append((m, a)),
            on_noise=lambda _, code: self.noise.append(code),
            settings=settings,
        )

    async def meets(self, other: Node) -> None:
        """Both show each other that they are no former processes."""
        for one, two in ((self, other), (other, self)):
            one.beats.set_peer(two.id, [two.host], two.port)
        before = len(self.heard), len(other.heard)
        self.beats.send(message(self.id), other.id)
        await until(lambda: other.beats.counts.answered and self.beats.counts.answered)
        self.beats.send(message(self.id), other.id)
        other.beats.send(message(other.id), self.id)
        await until(lambda: len(self.heard) > before[0] and len(other.heard) > before[1])
        for node in (self, other):
            node.heard.clear()
            node.noise.clear()
            node.beats.counts = Counts()


@asynccontextmanager
async def opened(*hosts: str, settings: HeartbeatSettings | None = None) -> AsyncIterator[list[Node]]:
    """A, B and C, at these addresses, that have met."""
    nodes = [Node(id_, host, settings) for id_, host in zip((A, B, C), hosts, strict=False)]
    try:
        for node in nodes:
            await node.beats.open([node.host], node.port)
        for one, two in combinations(nodes, 2):
            await one.meets(two)
        yield nodes
    finally:
        for node in nodes:
            node.beats.close()


async def test_messages_go_to_one_or_to_all() -> None:
    async with opened("127.0.0.1", "127.0.0.1", "127.0.0.1") as (a, b, c):
        a.beats.send(message(seq=1), None)
        await until(lambda: b.heard and c.heard)
        a.beats.send(message(seq=2), B)
        await until(lambda: len(b.heard) == 2)
        assert (len(c.heard), b.heard[1]) == (1, (message(seq=2), "127.0.0.1"))
        a.beats.forget(B)
        a.beats.send(message(seq=3), B)
        assert a.beats.counts.sent == 3


async def test_all_addresses_until_one_answered_then_that_one() -> None:
    async with opened("127.0.0.1", "127.0.0.1", settings=HeartbeatSettings(answered_s=3600.0)) as (a, b):
        a.beats.forget(B)
        a.beats.set_peer(B, ["127.0.0.9", "127.0.0.1"], b.port)
        a.beats.send(message(), B)
        await until(lambda: b.heard)
        assert a.beats.counts.sent == 2
        b.beats.send(message(B), A)
        await until(lambda: a.heard)
        a.beats.send(message(seq=2), B)
        assert a.beats.counts.sent == 3
        await until(lambda: len(b.heard) == 2)


async def test_what_comes_by_two_ways_is_heard_once_and_is_no_noise() -> None:
    async with opened("127.0.0.1", "127.0.0.1") as (a, b):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            sealed = a.beats._seals.seal(B, encode_message(message()))
            assert sealed is not None
            for _ in range(2):
                s.sendto(sealed, ("127.0.0.1", b.port))
        await until(lambda: b.beats.counts.dropped_in == {"repeated": 1})
        assert (len(b.heard), b.noise) == (1, [])


async def test_who_never_answers_is_spoken_to_seldom() -> None:
    seldom = HeartbeatSettings(unmet_s=0.0, unmet_every_s=3600.0)
    a, b = Node(A, settings=seldom), Node(B)
    for node in (a, b):
        await node.beats.open(["127.0.0.1"], node.port)
    a.beats.set_peer(C, ["127.0.0.1"], free_port())
    for n in range(5):
        a.beats.send(message(seq=n), None)
    assert a.beats.counts.sent == 1
    a.beats.send(message(seq=5), C)
    assert a.beats.counts.sent == 2, "what is said to it alone is said"
    a.beats.forget(C)
    await a.meets(b)
    for n in range(5):
        a.beats.send(message(seq=n), None)
    assert a.beats.counts.sent == 5
    a.beats.set_peer(C, ["127.0.0.1"], free_port())
    a.beats.send(message(seq=9), None)
    a.beats.met(C)
    for n in range(2):
        a.beats.send(message(seq=9 + n), None)
    assert a.beats.counts.sent == 5 + 2 + 4, "who is linked is no ghost, though no datagram of it comes"
    for node in (a, b):
        node.beats.close()


async def test_a_peer_that_moved_is_answered_where_it_speaks_from() -> None:
    async with opened("127.0.0.1", "127.0.0.1") as (a, b):
        a.beats.forget(B)
        a.beats.set_peer(B, ["127.0.0.9"], 9)
        b.beats.send(message(B), A)
        await until(lambda: a.heard)
        a.beats.send(message(), B)
        await until(lambda: b.heard)


async def test_what_somebody_else_repeats_from_elsewhere_moves_nobody() -> None:
    async with opened("127.0.0.1", "127.0.0.1", settings=HeartbeatSettings(answered_s=3600.0)) as (a, b):
        held = [b.beats._seals.seal(A, encode_message(message(B))) for _ in range(100)]
        b.beats.send(message(B), A)
        await until(lambda: a.heard)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for data in held:
                assert data is not None
                s.sendto(data, ("127.0.0.1", a.port))
        await until(lambda: sum(a.beats.counts.dropped_in.values()) == 100)
        assert a.beats.counts.dropped_in == {"replayed": 37, "repeated": 63}
        assert a.noise == ["replayed"] * 37
        a.beats.send(message(), B)
        await until(lambda: b.heard)
        assert len(a.heard) == 1


async def test_garbage_is_counted_and_dropped() -> None:
    async with opened("127.0.0.1") as (a,):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for data in (b"hello", b"MXM\x01" + b"v" * 100, b"MXM\x02" + b"\x91" * 900, b"x" * 1400, b"MXM\x02short"):
                s.sendto(data, ("127.0.0.1", a.port))
        await until(lambda: sum(a.beats.counts.dropped_in.values()) == 5)
        assert a.beats.counts.dropped_in == {"garbled": 2, "other_version": 1, "too_large": 1, "stranger": 1}
        assert len(a.noise) == 5
        assert a.heard == []


async def test_a_member_that_says_nonsense_or_speaks_for_another_is_not_heard() -> None:
    async with opened("127.0.0.1", "127.0.0.1") as (a, b):
        b.beats.send(message(C), A)  # b's own key, another's name
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            sealed = b.beats._seals.seal(A, b"nonsense")
            assert sealed is not None
            s.sendto(sealed, ("127.0.0.1", a.port))
        await until(lambda: sum(a.beats.counts.dropped_in.values()) == 2)
        assert a.beats.counts.dropped_in == {"forged": 1, "garbled": 1}
        assert a.heard == []


async def test_nothing_is_said_to_a_stranger_and_nothing_of_it_heard() -> None:
    circle = Circle(A, B)
    a, b, stranger = Node(A, circle=circle), Node(B, circle=circle), Node(C, circle=Circle(A, B, C))
    for node in (a, b, stranger):
        await node.beats.open(["127.0.0.1"], node.port)
    await a.meets(b)
    a.beats.set_peer(C, ["127.0.0.1"], stranger.port)
    stranger.beats.set_peer(A, ["127.0.0.1"], a.port)
    a.beats.send(message(), None)
    stranger.beats.send(message(C), A)
    await until(lambda: a.beats.counts.dropped_in == {"stranger": 1} and b.heard)
    assert (a.heard, stranger.heard, a.beats.counts.dropped_out) == ([], [], 1)
    for node in (a, b, stranger):
        node.beats.close()


async def test_nobody_there_and_no_route_are_not_errors() -> None:
    async with opened("127.0.0.1") as (a,):
        a.beats.set_peer(B, ["127.0.0.1", "::1", "no address", "fe80::1%nowhere0"], free_port())
        for seq in range(5):  # the second finds the ICMP answer to the first
            a.beats.send(message(seq=seq), B)
            await asyncio.sleep(0)
        assert a.beats.counts.dropped_out == 15  # no IPv6 socket is open, and that is no address
        with pytest.raises(WireError):
            a.beats.send(message(mesh="x" * 1300), B)


@needs_ipv6
async def test_ipv6_beside_ipv4_on_one_port() -> None:
    a, b = Node(A), Node(B, "::1")
    await a.beats.open(["127.0.0.1", "::1"], a.port)
    await b.beats.open(["::1"], b.port)
    b.beats.set_peer(A, ["::1"], a.port)
    b.beats.send(message(B), None)
    await until(lambda: b.beats.counts.answered)
    b.beats.send(message(B), None)
    await until(lambda: a.heard)
    assert a.heard[0][1] == "::1"
    for node in (a, b):
        node.beats.close()


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    async with opened("127.0.0.1") as (a,):
        b = Node(B).beats
        with pytest.raises(OSError, match="in use"):
            await b.open(["127.0.0.2", "127.0.0.1"], a.port)
        await b.open(["127.0.0.2"], a.port)  # was freed again
        b.close()
        b.close()


async def test_a_full_buffer_drops() -> None:
    a = Node(A, settings=HeartbeatSettings(buffer_bytes=-1)).beats
    await a.open(["127.0.0.1"], free_port())
    a.set_peer(B, ["127.0.0.1"], 9)
    a.send(message(), None)
    assert (a.counts.sent, a.counts.dropped_out) == (0, 1)
    a.close()
    a.send(message(), None)  # after close: dropped too
    assert a.counts.dropped_out == 2


def test_on_uvloop_too() -> None:
    """The daemon's loop has transports of its own."""
    for test in (
        test_messages_go_to_one_or_to_all,
        test_nobody_there_and_no_route_are_not_errors,
        test_a_full_buffer_drops,
    ):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test())
