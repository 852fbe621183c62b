"""mesh/links.py when a peer has two links, or an id two processes: which link stays, and who hears of it."""

from __future__ import annotations

from aiohttp import WSMsgType, web
from msgspec import structs

from bench.ports import free_port
from mesh.clones import Met, Spoke
from mesh.events import LinkClosed, LinkUp, Rtt
from mesh.links import PATH
from mesh.wire import Bye, Gossip, decode, encode
from tests.mesh.linking import A, B, Port, raw, stranger, world
from tests.mesh.waiting import until


async def test_a_double_dial_leaves_the_link_of_the_smaller_id() -> None:
    for _ in range(10):
        async with world(A, B) as (a, b):
            a.dial(b)
            b.dial(a)
            await until(lambda: a.linked(b) and b.linked(a))
            b.events[:] = [event for event in b.events if not isinstance(event, Rtt)]
            await until(lambda: len(b.of(Rtt)) >= 2 and len(a.of(Rtt)) >= 2)
            assert a.linked(b)
            assert b.linked(a)
            assert a.links._links[B].dialler == b.links._links[A].dialler


async def test_a_restarted_process_replaces_its_old_link_once_that_is_silent() -> None:
    async with world(A) as (a,), raw(a) as old, raw(a) as new:
        await old.send_bytes(encode(stranger()))
        await until(lambda: a.links.linked() == {B})
        await until(lambda: not a.links._links[B].lively)
        await new.send_bytes(encode(stranger(boot="b2")))
        await until(lambda: len(a.of(LinkUp)) == 2)
        assert a.of(LinkUp)[1].hello.boot == "b2"
        while (message := await old.receive()).type is WSMsgType.BINARY:
            last = decode(message.data)
        assert last == Bye("duplicate")
        assert a.others == [Spoke(B, "b2", f"{stranger().name} at 127.0.0.1")]


async def test_a_copied_disk_does_not_take_over_the_link_of_the_living() -> None:
    async with world(A) as (a,), raw(a) as one, raw(a) as two:
        await one.send_bytes(encode(stranger()))
        await until(lambda: a.links.linked() == {B})
        await two.send_bytes(encode(stranger(boot="b2")))
        assert decode(await two.receive_bytes()) == Bye("duplicate")
        while not isinstance(told := decode(await one.receive_bytes()), Gossip):
            pass
        assert [(p.id, p.boot, p.addresses) for p in told.peers] == [(B, "b2", ("127.0.0.1",))], "it can ask there"
        assert [up.hello.boot for up in a.of(LinkUp)] == ["b1"]
        assert a.others == [Spoke(B, "b2", f"{stranger().name} at 127.0.0.1")]


async def test_of_two_with_one_id_each_hears_of_the_other_and_both_of_the_same_hellos() -> None:
    async with world(A, A) as (a, b):
        a.hello = structs.replace(a.hello, boot="b1", uptime_s=9.0)
        b.hello = structs.replace(b.hello, boot="b2", uptime_s=1.0)
        a.links.ask_who("127.0.0.1", b.port)
        await until(lambda: a.others and b.others)
        assert a.others == [Met(a.hello, b.hello, "127.0.0.1")]
        assert b.others == [Met(b.hello, a.hello, "127.0.0.1")]
        a.links.ask_who("127.0.0.1", a.port)  # itself
        a.links.ask_who("127.0.0.1", free_port())  # nobody
        b.hello = structs.replace(b.hello, id=B)
        a.links.ask_who("127.0.0.1", b.port)  # another node
        await until(lambda: a.links.linked() == frozenset() and not a.links._carried)
        assert a.of(LinkUp) == b.of(LinkUp) == []
        assert len(a.others) == len(b.others) == 1


async def test_a_peer_that_dials_again_makes_this_side_look_whether_the_old_link_lives() -> None:
    """A dialled, and B has lost that link without a word (its address changed): the old one must not answer `duplicate`
    for as long as it seems lively."""
    async with world(A, probe_s=0.2, silence_s=30.0, ping_s=30.0) as (a,):
        hello = structs.replace(a.hello, id=B, boot="b9", name="b")

        async def silent(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            await ws.receive()
            await ws.send_bytes(encode(hello))
            async for _ in ws:
                pass
            return ws

        server, port = Port(a.circle.tls(B), [web.get(PATH, silent)]), free_port()
        await server.at(port)
        a.links.dial(B, ("127.0.0.1",), port, at_once=True)
        await until(lambda: a.of(LinkUp))
        async with raw(a) as again:
            await again.send_bytes(encode(hello))
            assert decode((await again.receive()).data) == Bye("duplicate")
            await until(lambda: a.of(LinkClosed))
            assert "no answer within" in a.of(LinkClosed)[0].why
        a.links.forget(B, "over")
        await server.cleanup()
