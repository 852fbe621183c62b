"""mesh/links.py, link.py and dial.py with real sockets on loopback."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import WSMsgType, web
from msgspec import structs

from bench.ports import free_port
from mesh.clones import Met, Spoke
from mesh.events import Event, Framed, LinkClosed, LinkUp, Rtt, SaidBye, Tried, Unfit
from mesh.links import PATH, Links
from mesh.settings import LinkSettings
from mesh.wire import PROTOCOL, Bye, Frame, Gossip, Hello, PeerSeen, Ping, Pong, decode, encode
from node.types import NodeId
from tests.mesh.waiting import until

A, B, C = NodeId("aa" * 8), NodeId("bb" * 8), NodeId("cc" * 8)
QUICK = LinkSettings(connect_s=0.5, hello_s=0.5, backoff_first_s=0.02, backoff_max_s=0.1, ping_s=0.1, silence_s=0.6)
GOSSIP = Gossip((PeerSeen(id=C, name="third"),))
T = TypeVar("T", bound=Event)


class Node:
    """Links with a peer port of its own."""

    def __init__(
        self, id_: NodeId, session: aiohttp.ClientSession, settings: LinkSettings = QUICK, **hello: Any
    ) -> None:
        self.port = free_port()
        self.hello = Hello(
            **{
                "id": id_, "boot": "b1", "name": id_[:4], "mesh": "default", "mesh_id": "", "version": "0.1",
                "protocol": PROTOCOL, "peer_port": self.port, "port": 4000, **hello,
            }
        )  # fmt: skip
        self.events: list[Event] = []
        self.frames: list[tuple[NodeId, Frame]] = []
        self.others: list[Spoke | Met] = []
        self.links = Links(
            hello=lambda: self.hello, session=session, tell=self.events.append,
            on_frame=lambda node, frame: self.frames.append((node, frame)), rng=random.Random(1), settings=settings,
            on_other=self.others.append,
        )  # fmt: skip
        self.server: web.AppRunner | None = None

    def of(self, kind: type[T]) -> list[T]:
        return [e for e in self.events if isinstance(e, kind)]

    async def listen(self) -> None:
        app = web.Application()
        app.add_routes(self.links.routes())
        self.server = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self.server.setup()
        await web.TCPSite(self.server, "127.0.0.1", self.port).start()

    def dial(self, other: Node, *addresses: str) -> None:
        self.links.dial(other.hello.id, addresses or ("127.0.0.1",), other.port, at_once=True)

    def linked(self, *others: Node) -> bool:
        return self.links.linked() == {o.hello.id for o in others}


@asynccontextmanager
async def world(*ids: NodeId, **settings: Any) -> AsyncIterator[list[Node]]:
    """Nodes that listen and run; at the end each pair's events must have been in turn."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        nodes = [Node(id_, session, structs.replace(QUICK, **settings)) for id_ in ids]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(node.links.run()) for node in nodes]
            for node in nodes:
                await node.listen()
            try:
                await asyncio.sleep(0)
                yield nodes
            finally:
                for node in nodes:
                    await node.links.close("test over")
                for task in running:
                    task.cancel()
                for node in nodes:
                    if node.server:
                        await node.server.cleanup()
    for node in nodes:
        check_turns(node.events)


def check_turns(events: Iterable[Event]) -> None:
    linked: set[NodeId] = set()
    for event in events:
        match event:
            case LinkUp(hello):
                assert hello.id not in linked
                linked.add(hello.id)
            case LinkClosed(node):
                linked.remove(node)
            case Framed(node) | Rtt(node) | SaidBye(node):
                assert node in linked
    assert linked == set()


async def test_hello_frames_and_rtt_both_ways() -> None:
    async with world(A, B) as (a, b):
        a.dial(b)
        await until(lambda: a.linked(b) and b.linked(a))
        assert a.of(LinkUp) == [LinkUp(b.hello, "127.0.0.1", False)]
        assert b.of(LinkUp)[0].hello == a.hello
        assert a.links.send(B, GOSSIP)
        assert b.links.send_all(Bye("")) == 1
        await until(lambda: b.frames == [(A, GOSSIP)])
        await until(lambda: a.of(SaidBye))
        await until(lambda: len(a.of(LinkUp)) == 2 and a.of(Rtt) and b.of(Rtt))  # dialled again
        assert 0 < a.of(Rtt)[0].rtt_s < 1
        assert not a.links.send(C, GOSSIP)


async def test_a_peer_that_hangs_up_each_time_is_dialled_ever_more_slowly() -> None:
    async with world(A, B, backoff_first_s=0.01, backoff_max_s=10.0) as (a, b):
        tell = b.links._tell

        def hang_up(event: Event) -> None:  # as membership does for a node that was removed
            tell(event)
            if isinstance(event, LinkUp):
                asyncio.get_running_loop().call_soon(b.links.forget, A, "removed from the mesh")

        b.links._tell = hang_up
        a.dial(b)
        await until(lambda: len(a.of(SaidBye)) >= 2)
        await asyncio.sleep(1.0)
        assert len(a.of(LinkUp)) <= 9  # pauses of 10, 20, 40, ... ms and more; 90 when each link counts as success


async def test_a_double_dial_leaves_the_link_of_the_smaller_id() -> None:
    for _ in range(10):
        async with world(A, B) as (a, b):
            a.dial(b)
            b.dial(a)
            await until(lambda: a.linked(b) and b.linked(a))
            heard = len(b.of(Rtt))
            await until(lambda: len(b.of(Rtt)) >= heard + 2 and len(a.of(Rtt)) >= 2)  # noqa: B023
            assert a.linked(b)
            assert b.linked(a)
            assert a.links._links[B].dialler == b.links._links[A].dialler


async def test_many_nodes_all_dialling_each_other_settle() -> None:
    ids = [NodeId(f"{i:x}" * 16) for i in range(1, 7)]
    async with world(*ids) as nodes:
        for node in nodes:
            for other in nodes:
                if node is not other:
                    node.dial(other)
        await until(lambda: all(n.linked(*(o for o in nodes if o is not n)) for n in nodes))

        async def pinged() -> None:
            before = [len(n.of(Rtt)) for n in nodes]
            await until(lambda: all(len(n.of(Rtt)) > b + 15 for n, b in zip(nodes, before, strict=True)))

        await pinged()
        ups = [len(n.of(LinkUp)) for n in nodes]
        assert sum(ups) <= 2 * len(nodes) * (len(nodes) - 1)
        await pinged()
        assert [len(n.of(LinkUp)) for n in nodes] == ups  # nobody dials a peer it is linked with


async def test_dead_addresses_do_not_delay_the_living_one() -> None:
    async with world(A, B, connect_s=3.0) as (a, b):
        start = asyncio.get_running_loop().time()
        a.dial(b, "127.0.0.99", "10.255.255.1", "127.0.0.1")
        await until(lambda: a.linked(b))
        assert asyncio.get_running_loop().time() - start < 1.0
        assert ("127.0.0.99", "refused") in [(t.address, t.kind) for t in a.of(Tried)]


async def test_an_address_that_another_node_has_now_does_not_hide_the_right_one() -> None:
    async with world(A, B, C) as (a, b, c):
        assert c.server is not None
        await web.TCPSite(c.server, "127.0.0.2", b.port).start()
        a.dial(b, "127.0.0.2", "127.0.0.1")
        await until(lambda: a.linked(b))
        assert any("another node answers there" in t.why for t in a.of(Tried))


async def test_refused_at_the_last_good_address_is_told_so() -> None:
    async with world(A, B) as (a, b):
        a.links.dial(B, ["127.0.0.1"], free_port(), at_once=True)
        await until(lambda: a.of(Tried))
        first = a.of(Tried)[0]
        assert (first.kind, first.last_good) == ("refused", False)
        assert first.why.endswith("refused the connection")
        a.dial(b)
        await until(lambda: a.linked(b))
        assert b.server
        await b.links.close("over")
        await b.server.cleanup()
        a.dial(b)
        await until(lambda: any(t.kind == "refused" and t.last_good for t in a.of(Tried)))


async def test_the_address_of_a_peer_that_dialled_first_is_a_good_one_too() -> None:
    """Otherwise its crash would only be noticed by its silence."""
    async with world(A, B) as (a, b):
        b.dial(a)
        await until(lambda: a.linked(b) and b.linked(a))
        a.dial(b)  # what membership asks for, once it hears of the link
        assert b.server
        await b.links.close("over")
        await b.server.cleanup()
        a.dial(b)
        await until(lambda: [t for t in a.of(Tried) if t.kind == "refused"])
        assert all(t.last_good for t in a.of(Tried) if t.kind == "refused")


CHILD = """
import asyncio, random, sys, aiohttp
from aiohttp import web
from mesh.links import Links
from mesh.wire import Hello
async def main(port):
    hello = Hello(id="bb"*8, boot="b1", name="b", mesh="default", mesh_id="", version="", protocol=1, peer_port=port,
                  port=1)
    async with aiohttp.ClientSession() as session:
        links = Links(hello=lambda: hello, session=session, tell=lambda e: None, on_frame=lambda n, f: None,
                      rng=random.Random(1))
        app = web.Application()
        app.add_routes(links.routes())
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print("ready", flush=True)
        await links.run()
asyncio.run(main(int(sys.argv[1])))
"""


async def test_a_killed_process_is_eof_and_then_refused_within_a_moment() -> None:
    async with world(A) as (a,):
        port = free_port()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CHILD,
            str(port),
            stdout=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        try:
            assert child.stdout
            async with asyncio.timeout(20):
                assert await child.stdout.readline() == b"ready\n"
            a.links.dial(B, ["127.0.0.1"], port, at_once=True)
            await until(lambda: a.links.linked() == {B})
            child.send_signal(signal.SIGKILL)
            start = asyncio.get_running_loop().time()
            await until(lambda: a.of(LinkClosed))
            a.links.dial(B, ["127.0.0.1"], port, at_once=True)  # what membership asks for
            await until(lambda: any(t.last_good and t.kind == "refused" for t in a.of(Tried)))
            assert asyncio.get_running_loop().time() - start < 0.5
            assert a.of(LinkClosed) == [LinkClosed(B, "the other side closed it", True)]
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


@asynccontextmanager
async def raw(node: Node) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://127.0.0.1:{node.port}{PATH}") as ws:
            yield ws


def stranger(id_: NodeId = B, **more: Any) -> Hello:
    return structs.replace(
        Hello(
            id=id_, boot="b1", name="b", mesh="default", mesh_id="", version="", protocol=PROTOCOL, peer_port=1, port=1
        ),
        **more,
    )


@pytest.mark.parametrize(
    ("hello", "code", "says"),
    [
        (stranger(protocol=PROTOCOL + 1), "other_version", "protocol"),
        (stranger(mesh="lab"), "other_mesh", "mesh 'lab'"),
        (stranger(A), None, "itself"),
    ],
)
async def test_the_unfit_are_told_why_and_named(hello: Hello, code: str | None, says: str) -> None:
    async with world(A) as (a,), raw(a) as ws:
        await ws.send_bytes(encode(hello))
        assert decode(await ws.receive_bytes()) == a.hello
        bye = decode(await ws.receive_bytes())
        assert isinstance(bye, Bye)
        assert says in bye.reason
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert [e.code for e in a.of(Unfit)] == ([code] if code else [])
        assert a.links.linked() == frozenset()


async def test_the_dialler_names_the_unfit_too() -> None:
    async with world(A, B) as (a, b):
        b.hello = structs.replace(b.hello, mesh="lab")
        a.dial(b)
        await until(lambda: a.of(Unfit))
        await until(lambda: a.of(Tried))
        assert "mesh 'lab'" in a.of(Tried)[0].why
        b.hello = structs.replace(b.hello, mesh="default", id=C)
        await until(lambda: any("another node answers there" in t.why for t in a.of(Tried)))


async def test_what_is_no_mesh_node_is_rejected() -> None:
    async with world(A) as (a,):
        runner = web.AppRunner(web.Application(), access_log=None)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        a.links.dial(B, ["127.0.0.1"], port, at_once=True)
        await until(lambda: a.of(Tried))
        assert a.of(Tried)[0].why == f"127.0.0.1:{port} answers HTTP 404, not a mesh link"
        await runner.cleanup()


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


async def test_forget_says_bye_and_dials_no_more() -> None:
    async with world(A, B) as (a, b):
        a.dial(b)
        await until(lambda: a.linked(b) and b.linked(a))
        a.links.forget(B, "removed")
        assert a.of(LinkClosed) == [LinkClosed(B, "removed", False)]
        await until(lambda: b.of(SaidBye) == [SaidBye(A, "removed")])
        a.links.forget(B, "again")  # nothing to do
        a.dial(b)  # and wanted again
        await until(lambda: a.linked(b))


async def test_close_says_bye_on_every_link() -> None:
    async with world(A, B, C) as (a, b, c):
        a.dial(b)
        c.dial(a)
        await until(lambda: a.linked(b, c))
        await a.links.close("shutting down")
        await until(lambda: b.of(SaidBye) and c.of(SaidBye))
        assert b.of(SaidBye) == [SaidBye(A, "shutting down")]
        assert a.links.linked() == frozenset()


async def test_a_closed_node_takes_nobody_back() -> None:
    """Neither by dialling (membership wants every lost link back) nor by answering: it would undo its bye."""
    async with world(A, B) as (a, b):
        a.dial(b)
        b.dial(a)
        await until(lambda: a.linked(b) and b.linked(a))
        await a.links.close("mesh disabled")
        a.dial(b)
        await until(lambda: b.of(Tried))
        assert "503" in b.of(Tried)[0].why
        assert len(a.of(LinkUp)) == len(b.of(LinkUp)) == 1


async def test_switched_off_it_answers_503() -> None:
    async with aiohttp.ClientSession() as session:
        node = Node(A, session)
        await node.listen()
        async with session.get(f"http://127.0.0.1:{node.port}{PATH}") as answer:
            assert answer.status == 503
        assert node.server
        await node.server.cleanup()


def test_on_uvloop_too() -> None:
    """The daemon's loop has transports of its own."""
    for test in (
        test_hello_frames_and_rtt_both_ways,
        test_dead_addresses_do_not_delay_the_living_one,
        test_a_killed_process_is_eof_and_then_refused_within_a_moment,
        test_a_full_outbox_closes_the_link,
    ):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test())


async def test_after_a_sleep_a_link_that_is_silent_is_given_up_and_one_that_answers_stays() -> None:
    async with world(A, B, probe_s=0.3, silence_s=30.0, ping_s=30.0) as (a, b):
        a.dial(b)
        await until(lambda: a.linked(b) and b.linked(a))
        a.links.renew()
        await asyncio.sleep(0.6)
        assert a.of(LinkClosed) == []
        link = b.links._links[A]
        link._received = lambda _data: None  # type: ignore[method-assign]  # it hears, but says no more
        a.links.renew()
        await until(lambda: a.of(LinkClosed))
        assert "no answer within" in a.of(LinkClosed)[0].why
        await until(lambda: a.linked(b) and b.linked(a))


async def test_a_link_from_an_address_that_is_gone_ends_at_once_and_is_dialled_again() -> None:
    async with world(A, B, probe_s=30.0, backoff_max_s=30.0) as (a, b):
        a.dial(b)
        await until(lambda: a.linked(b) and b.linked(a))
        a.links.renew({"127.0.0.1", "192.168.1.5"})
        assert a.of(LinkClosed) == []
        a.links.renew({"192.168.1.5"})
        assert a.of(LinkClosed)[0].why == "this node's address 127.0.0.1 is gone"
        await until(lambda: a.linked(b) and b.linked(a))


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

        app = web.Application()
        app.add_routes([web.get(PATH, silent)])
        server, port = web.AppRunner(app, shutdown_timeout=0.1), free_port()
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", port).start()
        a.links.dial(B, ("127.0.0.1",), port, at_once=True)
        await until(lambda: a.of(LinkUp))
        async with raw(a) as again:
            await again.send_bytes(encode(hello))
            assert decode((await again.receive()).data) == Bye("duplicate")
            await until(lambda: a.of(LinkClosed))
            assert "no answer within" in a.of(LinkClosed)[0].why
        a.links.forget(B, "over")
        await server.cleanup()
