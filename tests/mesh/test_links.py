"""mesh/links.py and dial.py with real sockets on loopback: who is linked with whom, and who is told."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from itertools import pairwise
from unittest import mock

import aiohttp
import uvloop
from aiohttp import WSMsgType, web
from msgspec import structs

from bench.ports import free_port
from mesh.events import Event, LinkClosed, LinkUp, Rtt, SaidBye, Tried, Unfit
from mesh.links import PATH
from mesh.wire import Bye, encode
from node.types import NodeId
from tests.keys import Member, identity_of
from tests.mesh.linking import GOSSIP, A, B, C, Node, Port, raw, stranger, world
from tests.mesh.waiting import until


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
        tell, loop, ups = b.links._tell, asyncio.get_running_loop(), list[float]()

        def hang_up(event: Event) -> None:  # as membership does for a node that was removed
            tell(event)
            if isinstance(event, LinkUp):
                ups.append(loop.time())
                loop.call_soon(b.links.forget, A, "removed from the mesh")

        b.links._tell = hang_up
        a.dial(b)
        await until(lambda: len(ups) >= 7)
        pauses_s = [up - before for before, up in pairwise(ups[:7])]
        shortest_s = [0.5 * 0.01 * 2**failures for failures in range(1, 7)]  # half of it is jitter
        assert all(pause > shortest - 0.002 for pause, shortest in zip(pauses_s, shortest_s, strict=True)), pauses_s


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
        await c.server.at(b.port, "127.0.0.2")
        a.dial(b, "127.0.0.2", "127.0.0.1")
        await until(lambda: a.linked(b))
        assert [(t.address, t.kind) for t in a.of(Tried)] == [("127.0.0.2", "rejected")]
        assert "has another key than this member" in a.of(Tried)[0].why


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
import asyncio, os, sys, aiohttp
from tests.mesh.linking import B, Circle, Node
from tests.keys import Member
from pathlib import Path
async def main(port, cert):
    async with aiohttp.ClientSession() as session:
        circle = Circle(B)
        circle.members["aa"*8] = Member(bytes.fromhex(cert))
        node = Node(B, session, circle=circle)
        node.port = port
        await node.listen()
        print(circle.members[B].cert.hex(), flush=True)
        await node.links.run()
asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


async def test_a_killed_process_is_eof_and_then_refused_within_a_moment() -> None:
    async with world(A) as (a,):
        port = free_port()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CHILD,
            str(port),
            identity_of(A).cert.hex(),
            stdout=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        try:
            assert child.stdout
            async with asyncio.timeout(20):
                a.circle.members[B] = Member(bytes.fromhex((await child.stdout.readline()).decode()))
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
        plain = free_port()
        await web.TCPSite(runner, "127.0.0.1", plain).start()
        other, port = Port(a.circle.tls(B), []), free_port()
        await other.at(port)
        a.links.dial(B, ["127.0.0.1"], plain, at_once=True)
        await until(lambda: a.of(Tried))
        assert a.of(Tried)[0].why == f"127.0.0.1:{plain} does not speak TLS as nodes do"
        a.links.dial(B, ["127.0.0.1"], port, at_once=True)
        await until(lambda: a.of(Tried)[-1].why == f"127.0.0.1:{port} answers HTTP 404, not a mesh link")
        await other.cleanup()
        await runner.cleanup()


async def test_who_is_no_member_is_not_dialled_and_once_it_is_it_is_at_once() -> None:
    async with world(A, B, backoff_first_s=10.0, backoff_max_s=10.0) as (a, b):
        a.circle.remove(B)
        a.dial(b)
        await until(lambda: a.of(Tried))
        assert a.of(Tried) == [Tried(B, "", "rejected", "is no member of this mesh", False)]
        a.circle.add(B)
        a.links.members_changed([B], [])
        await until(lambda: a.linked(b))


async def test_who_was_removed_has_no_link_from_then_on_and_gets_none() -> None:
    async with world(A, B) as (a, b):
        a.dial(b)
        await until(lambda: a.linked(b) and b.linked(a))
        a.circle.remove(B)  # both sides know: one circle
        a.circle.members[B] = Member(identity_of(B, 1).cert)  # for A; B has another key
        a.tls.renew()
        a.links.members_changed([], [B])
        await until(lambda: b.of(LinkClosed))
        assert a.of(LinkClosed) == [LinkClosed(B, "it is no member any more", False)]
        assert b.of(LinkClosed)[0].why == "it said bye: no member of this mesh"
        b.dial(a)
        await until(lambda: any("this node may be no member there" in t.why for t in b.of(Tried)))
        assert len(a.of(LinkUp)) == 1


async def test_a_member_that_says_it_is_another_one_gets_no_link() -> None:
    async with world(A) as (a,), raw(a, C) as ws:
        await ws.send_bytes(encode(stranger(B)))
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert a.links.counts.dropped == {"forged": 1}
        assert a.of(LinkUp) == []


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
        tls = node.circle.client(B, A)
        async with session.get(f"https://127.0.0.1:{node.port}{PATH}", ssl=tls) as answer:
            assert answer.status == 503
        assert node.server
        await node.server.cleanup()


def test_on_uvloop_too() -> None:
    """The daemon's loop has transports of its own."""
    for test in (
        test_hello_frames_and_rtt_both_ways,
        test_dead_addresses_do_not_delay_the_living_one,
        test_a_killed_process_is_eof_and_then_refused_within_a_moment,
    ):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test())


async def test_after_a_sleep_a_link_that_is_silent_is_given_up_and_one_that_answers_stays() -> None:
    async with world(A, B, probe_s=0.3, silence_s=30.0, ping_s=30.0) as (a, b):
        a.dial(b)
        await until(lambda: a.linked(b) and b.linked(a))
        probed = a.links._links[B]
        with mock.patch.object(probed, "_judge", wraps=probed._judge) as judged:
            a.links.renew()
            await until(lambda: judged.called)
        assert a.of(LinkClosed) == []
        with mock.patch.object(b.links._links[A], "_received"):  # it hears, but says no more
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
