"""mesh/link.py with real sockets on loopback: what may come over one link, and what ends it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
import pytest
import uvloop
from aiohttp import WSMsgType

from mesh.events import LinkClosed, SaidBye, Unfit
from mesh.wire import PROTOCOL, Bye, Gossip, Hello, PeerSeen, Ping, Pong, decode, encode
from tests.mesh.linking import A, B, C, raw, stranger, world
from tests.mesh.waiting import until


@pytest.mark.parametrize(
    ("hello", "code", "says"),
    [
        (stranger(protocol=PROTOCOL + 1), "other_version", "protocol"),
        (stranger(mesh="lab"), "other_mesh", "mesh 'lab'"),
        (stranger(A), None, "itself"),
    ],
)
async def test_the_unfit_are_told_why_and_named(hello: Hello, code: str | None, says: str) -> None:
    async with world(A) as (a,), raw(a, hello.id) as ws:
        await ws.send_bytes(encode(hello))
        assert decode(await ws.receive_bytes()) == a.hello
        bye = decode(await ws.receive_bytes())
        assert isinstance(bye, Bye)
        assert says in bye.reason
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert [e.code for e in a.of(Unfit)] == ([code] if code else [])
        assert a.links.linked() == frozenset()


async def test_no_hello_in_time_closes() -> None:
    async with world(A, hello_s=0.05) as (a,), raw(a) as ws:
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert a.links.counts.dropped == {"no_hello": 1}


async def test_unknown_kinds_are_dropped_and_three_unreadable_frames_in_a_row_close() -> None:
    async with world(A) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(stranger()))
        assert decode(await ws.receive_bytes()) == a.hello
        await until(lambda: a.links.linked() == {B})
        new = msgspec.msgpack.encode({"v": PROTOCOL, "frame": {"type": "rumour"}})
        for data in (b"?", new, b"?", b"?", encode(Ping(7)), b"?", b"?"):
            await ws.send_bytes(data)
        await until(lambda: a.links.counts.dropped == {"garbled": 5, "unknown_kind": 1})
        assert a.links.linked() == {B}
        assert decode(await ws.receive_bytes()) in (Ping(1), Pong(7))
        await ws.send_str("text")
        await until(lambda: a.of(LinkClosed))
        assert a.of(LinkClosed) == [LinkClosed(B, "3 unreadable frames in a row", False)]


async def test_silence_closes_as_a_time_out() -> None:
    async with world(A) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(stranger()))
        await until(lambda: a.of(LinkClosed))
        assert a.of(LinkClosed) == [LinkClosed(B, "nothing came for 1 s", False)]


async def test_a_full_outbox_closes_the_link() -> None:
    async with world(A, outbox_bytes=100_000, outbox_frames=8) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(stranger()))
        await until(lambda: a.links.linked() == {B})
        big = Gossip((PeerSeen(id=C, name="x" * 250),) * 150)
        assert a.links.send(B, big)
        assert not a.links.send(B, big)
        assert "outbox is full" in a.of(LinkClosed)[0].why
        assert not a.links.send(B, Ping(1))
        assert a.links.counts.full == 1
        while (message := await ws.receive()).type is WSMsgType.BINARY:
            last = decode(message.data)
        assert last == Bye("you read too slowly", leaves=False)


async def test_a_bye_of_the_link_alone_says_nothing_of_its_node() -> None:
    async with world(A) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(stranger()))
        await until(lambda: a.links.linked() == {B})
        await ws.send_bytes(encode(Bye("you read too slowly", leaves=False)))
        await until(lambda: a.of(LinkClosed))
        assert a.of(LinkClosed) == [LinkClosed(B, "it said bye: you read too slowly", False)]
        assert a.of(SaidBye) == []


async def test_a_frame_too_large_closes_the_link_that_sent_it() -> None:
    async with world(A) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(stranger()))
        await until(lambda: a.links.linked() == {B})
        with suppress(OSError):  # reset while it is still being sent
            await ws.send_bytes(b"x" * (4 << 20) + b"yy")
        await until(lambda: a.of(LinkClosed))
        assert "WebSocket protocol" in a.of(LinkClosed)[0].why


def test_on_uvloop_too() -> None:
    """The daemon's loop has transports of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test_a_full_outbox_closes_the_link())


async def test_what_waits_to_be_said_is_said_before_the_bye() -> None:
    """Who is put out learns why, though its link ends in the same moment."""
    async with world(A) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(stranger()))
        await until(lambda: a.links.linked() == {B})
        last = Gossip((PeerSeen(id=C, name="last"),))
        for _ in range(100):
            assert a.links.send(B, last)
        a.links.forget(B, "over")
        frames = []
        while (message := await ws.receive()).type is WSMsgType.BINARY:
            frames.append(decode(message.data))
        assert frames.count(last) == 100
        assert frames[-1] == Bye("over")
