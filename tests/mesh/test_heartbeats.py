"""mesh/heartbeats.py with real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from bench.ports import free_port
from election.messages import Message, Rank, Reign, Role
from mesh.heartbeats import Heartbeats
from mesh.settings import HeartbeatSettings
from mesh.wire import WireError
from node.types import NodeId
from tests.mesh.machine import needs_ipv6
from tests.mesh.waiting import until

A, B = NodeId("aa" * 8), NodeId("bb" * 8)


def message(sender: NodeId = A, seq: int = 1, mesh: str = "default") -> Message:
    rank = Rank(True, 100, 0, sender, "b1")
    return Message(kind="hb", sender=sender, boot="b1", seq=seq, mesh=mesh, reign=Reign(), coordinator=None,
                   role=Role.FOLLOWER, rank=rank, uptime_s=1.0)  # fmt: skip


class Node:
    def __init__(self, host: str = "127.0.0.1") -> None:
        self.heard: list[tuple[Message, str]] = []
        self.port, self.host = free_port(), host
        self.beats = Heartbeats(on_message=lambda m, a: self.heard.append((m, a)))


@asynccontextmanager
async def opened(*hosts: str) -> AsyncIterator[list[Node]]:
    nodes = [Node(h) for h in hosts]
    try:
        for node in nodes:
            await node.beats.open([node.host], node.port)
        yield nodes
    finally:
        for node in nodes:
            node.beats.close()


async def test_messages_go_to_one_or_to_all() -> None:
    async with opened("127.0.0.1", "127.0.0.1", "127.0.0.1") as (a, b, c):
        a.beats.set_peer(B, ["127.0.0.1"], b.port)
        a.beats.set_peer(NodeId("cc" * 8), ["127.0.0.1"], c.port)
        a.beats.send(message(seq=1), None)
        await until(lambda: b.heard and c.heard)
        a.beats.send(message(seq=2), B)
        await until(lambda: len(b.heard) == 2)
        assert (len(c.heard), b.heard[1]) == (1, (message(seq=2), "127.0.0.1"))
        a.beats.forget(B)
        a.beats.send(message(seq=3), B)
        assert a.beats.counts.sent == 3


async def test_all_addresses_until_one_answered_then_that_one() -> None:
    async with opened("127.0.0.1", "127.0.0.1") as (a, b):
        a.beats.set_peer(B, ["127.0.0.9", "127.0.0.1"], b.port)
        b.beats.set_peer(A, ["127.0.0.1"], a.port)
        a.beats.send(message(), B)
        await until(lambda: b.heard)
        assert a.beats.counts.sent == 2
        b.beats.send(message(B), A)
        await until(lambda: a.heard)
        sent = a.beats.counts.sent
        a.beats.send(message(seq=2), B)
        assert a.beats.counts.sent == sent + 1
        await until(lambda: len(b.heard) == 2)


async def test_who_never_answers_is_spoken_to_seldom() -> None:
    seldom = HeartbeatSettings(unmet_s=0.0, unmet_every_s=3600.0)
    async with opened("127.0.0.1") as (b,):
        heard: list[Message] = []
        beats = Heartbeats(on_message=lambda m, _: heard.append(m), settings=seldom)
        port = free_port()
        await beats.open(["127.0.0.1"], port)
        beats.set_peer(B, ["127.0.0.1"], b.port)
        for n in range(5):
            beats.send(message(seq=n), None)
        assert beats.counts.sent == 1
        beats.send(message(seq=5), B)
        assert beats.counts.sent == 2, "what is said to it alone is said"
        b.beats.set_peer(A, ["127.0.0.1"], port)
        b.beats.send(message(B), A)
        await until(lambda: heard)
        for n in range(5):
            beats.send(message(seq=n), None)
        assert beats.counts.sent == 7
        beats.set_peer(A, ["127.0.0.1"], b.port)
        beats.send(message(seq=9), None)
        beats.met(A)
        for n in range(2):
            beats.send(message(seq=9 + n), None)
        assert beats.counts.sent == 7 + 2 + 4, "who is linked is no ghost, though no datagram of it comes"
        beats.close()


async def test_a_peer_that_moved_is_answered_where_it_speaks_from() -> None:
    async with opened("127.0.0.1", "127.0.0.1") as (a, b):
        a.beats.set_peer(B, ["127.0.0.9"], 9)
        b.beats.set_peer(A, ["127.0.0.1"], a.port)
        b.beats.send(message(B), A)
        await until(lambda: a.heard)
        a.beats.send(message(), B)
        await until(lambda: b.heard)


async def test_garbage_is_counted_and_dropped() -> None:
    async with opened("127.0.0.1") as (a,):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for data in (b"hello", b"MXM\x09xyz", b"MXM\x01" + b"\x91" * 900, b"x" * 1400):
                s.sendto(data, ("127.0.0.1", a.port))
        await until(lambda: sum(a.beats.counts.dropped_in.values()) == 4)
        assert a.beats.counts.dropped_in == {"garbled": 2, "other_version": 1, "too_large": 1}
        assert a.heard == []


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
    a = Node()
    await a.beats.open(["127.0.0.1", "::1"], a.port)
    async with opened("::1") as (b,):
        b.beats.set_peer(A, ["::1"], a.port)
        b.beats.send(message(B), None)
        await until(lambda: a.heard)
        assert a.heard[0][1] == "::1"
    a.beats.close()


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    async with opened("127.0.0.1") as (a,):
        b = Heartbeats(on_message=lambda _m, _a: None)
        with pytest.raises(OSError, match="in use"):
            await b.open(["127.0.0.2", "127.0.0.1"], a.port)
        await b.open(["127.0.0.2"], a.port)  # was freed again
        b.close()
        b.close()


async def test_a_full_buffer_drops() -> None:
    a = Heartbeats(on_message=lambda _m, _a: None, settings=HeartbeatSettings(buffer_bytes=-1))
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
