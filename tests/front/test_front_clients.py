"""The raw server and clients that read slowly, leave, or ask nothing: bounded, and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from node.http_reply import Answer
from node.io.turn import Incoming, Outgoing
from node.settings import FrontSettings
from tests.front.sites import Site, body_of, echo, one_answer, post, serving
from tests.mesh.waiting import until


async def test_a_slow_reader_holds_the_writer_up(site: Site) -> None:
    written = 0

    async def endless(incoming: Incoming, outgoing: Outgoing) -> None:
        nonlocal written
        await body_of(incoming)
        outgoing.begin(200, {})
        while written < 2000:
            outgoing.write(b"x" * 65536)
            written += 1
            if outgoing.full:
                await outgoing.drained()
        outgoing.end()

    site.script = endless
    reader, writer = await site.connect()
    writer.write(post())
    await until(lambda: site.fronts.connections)
    (front,) = site.fronts.connections
    await until(lambda: front.full)
    assert front.transport is not None
    seen = [-1]

    def at_rest() -> bool:
        seen.append(written)
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    await until(at_rest)
    assert written < 2000
    assert front.transport.get_write_buffer_size() < 2**20, "what waits here is bounded"
    while not (await reader.read(2**20)).endswith(b"\r\n0\r\n\r\n"):
        pass
    assert written == 2000
    writer.close()


class Counted:
    """A transport that notes what is written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_a_block_goes_out_at_once_and_a_burst_together(site: Site) -> None:
    counted: list[Counted] = []

    async def bursts(incoming: Incoming, outgoing: Outgoing) -> None:
        (front,) = site.fronts.connections
        assert front.transport is not None
        counted.append(Counted(front.transport))
        front.transport = counted[0]  # type: ignore[assignment]  # does all that one does
        outgoing.begin(200, {})
        assert counted[0].written == [], "the head goes with the first block"
        for number in range(100):
            outgoing.write(b"%02d" % number)
            assert len(counted[0].written) == 1
        await until(lambda: len(counted[0].written) == 2)
        outgoing.write(b"x" * 10_000)
        for _ in range(10):
            outgoing.write(b"y" * 10_000)
            assert len(front._held) < 20_000, "what is held is bounded"
        outgoing.end()

    site.script = bursts
    answer = await site.says(post(b"", b"Connection: close"))
    _, _, body = answer.partition(b"\r\n\r\n")
    assert body.replace(b"\r\n", b"").startswith(b"".join(b"2%02d" % number for number in range(100)))
    assert body.endswith(b"y\r\n0\r\n\r\n")
    assert (body.count(b"x"), body.count(b"y")) == (10_000, 100_000)


async def test_a_client_that_leaves_at_any_point_leaves_nothing(site: Site) -> None:
    held = asyncio.Event()

    async def stuck(incoming: Incoming, outgoing: Outgoing) -> None:
        await body_of(incoming)
        if incoming.head.target == "/streams":
            outgoing.begin(200, {})
            outgoing.write(b"begun")
        if incoming.head.target == "/full":
            outgoing.begin(200, {})
            while True:
                outgoing.write(b"x" * 65536)
                await outgoing.drained()
        await held.wait()

    site.script = stuck
    whole = post(b"hello")
    phases = {
        "nothing": b"",
        "half a head": whole[:20],
        "a head": whole[:-5],
        "half a body": whole[:-2],
        "all": whole,
        "all, and more ahead": whole + whole,
        "a stream": post(path=b"/streams"),
        "a stream it does not read": post(path=b"/full"),
    }
    for name, text in phases.items():
        for abruptly in (False, True):
            reader, writer = await site.connect()
            writer.write(text)
            await until(lambda: len(site.fronts.connections) == 1)
            if b"\r\n\r\n" in text:
                await until(lambda: site.open == 1)
            if "stream" in name:
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            if abruptly:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no end
            writer.close()
            await until(lambda: not site.fronts.connections)
            await until(lambda: site.open == 0)
            assert site.fronts.tasks == set()


async def test_a_half_closed_connection_is_a_client_that_left(site: Site) -> None:
    async def stuck(incoming: Incoming, outgoing: Outgoing) -> None:
        await asyncio.Event().wait()

    site.script = stuck
    _reader, writer = await site.connect()
    writer.write(post())
    await until(lambda: site.open == 1)
    writer.write_eof()
    await until(lambda: site.open == 0)
    writer.close()


async def test_an_answer_that_fails_ends_the_connection(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_: Incoming, outgoing: Outgoing) -> None:
        outgoing.begin(200, {})
        raise ValueError("a defect")

    site.script = fails
    reader, writer = await site.connect()
    writer.write(post())
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    assert "an answer failed" in caplog.text


async def test_a_connection_on_which_nothing_is_asked_any_more_is_closed(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(post(b"hi"))
    await one_answer(reader)
    now = asyncio.get_running_loop().time()
    site.fronts.look(now + 74.0, 75.0)
    writer.write(post(b"hi"))
    await one_answer(reader)
    site.fronts.look(asyncio.get_running_loop().time() + 76.0, 75.0)
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("leaves", ["stays", "says close", "ends"])
async def test_an_answer_that_nobody_takes_is_given_up_and_a_slow_one_is_not(leaves: str) -> None:
    """Its task is over, so no other bound counts what it holds."""
    async with serving(FrontSettings(untaken_s=60.0)) as site:

        async def large(incoming: Incoming, outgoing: Outgoing) -> None:
            await body_of(incoming)
            outgoing.whole(Answer(200, {}, b"x" * 2**25))

        site.script = large
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.setblocking(False)
            client.sendall(post(b"", *([b"Connection: close"] if leaves == "says close" else [])))
            await until(lambda: site.fronts.connections and not site.open)
            (front,) = site.fronts.connections
            assert front.transport is not None
            if leaves == "ends":
                front.full = False  # as with an answer that ends just below what pauses a writer
                client.shutdown(socket.SHUT_WR)
                await until(lambda: front.transport is not None and front.transport.is_closing())
            left = [front.transport.get_write_buffer_size()]

            def goes_on() -> bool:
                with suppress(BlockingIOError):
                    client.recv(2**20)
                assert front.transport is not None
                return front.transport.get_write_buffer_size() < left[-1]

            now = asyncio.get_running_loop().time()
            for _ in range(4):
                site.fronts.look(now, 75.0)
                await until(goes_on)
                left.append(front.transport.get_write_buffer_size())
                now += 59.0
            site.fronts.look(now, 75.0)
            site.fronts.look(now + 59.0, 75.0)
            await asyncio.sleep(0)  # an abort would be told in the next turn of the loop
            assert front.transport is not None, "who reads slowly is not cut off"

            def given_up() -> bool:
                nonlocal now  # what the system still took by itself counts as taken at the next look
                now += 61.0
                site.fronts.look(now, 75.0)
                return front.transport is None

            await until(given_up)
            assert site.fronts.connections == set()


async def test_who_asks_on_and_takes_no_answer_is_answered_no_further_until_it_does(site: Site) -> None:
    answered = 0

    async def large(incoming: Incoming, outgoing: Outgoing) -> None:
        nonlocal answered
        await body_of(incoming)
        answered += 1
        outgoing.whole(Answer(200, {}, b"x" * 2**23))

    site.script = large
    reader, writer = await site.connect()
    writer.write(post())
    await until(lambda: answered == 1 and not site.open)
    (front,) = site.fronts.connections
    assert front.transport is not None
    for _ in range(20):
        writer.write(post())
    late = post(b"", b"x-late: " + b"y" * 1000)
    for _ in range(200):
        writer.write(late)
    await until(lambda: not front._reading)
    assert answered < 5, "what the system's buffers hold"
    assert front.transport.get_write_buffer_size() <= 2**23 + 1000
    async with asyncio.timeout(60):
        for _ in range(30):
            assert len((await one_answer(reader))[1]) == 2**23
    writer.close()


async def test_who_has_taken_all_of_a_slow_answer_may_ask_again(site: Site) -> None:
    async def large(incoming: Incoming, outgoing: Outgoing) -> None:
        await body_of(incoming)
        outgoing.whole(Answer(200, {}, b"x" * 2**25))

    site.script = large
    reader, writer = await site.connect()
    writer.write(post())
    await until(lambda: any(front.idle_since is not None for front in site.fronts.connections))
    (front,) = site.fronts.connections
    transport = front.transport
    assert transport is not None
    now = asyncio.get_running_loop().time()
    for _ in range(2):
        assert transport.get_write_buffer_size() > 0
        site.fronts.look(now, 75.0)
        now += 50.0
    async with asyncio.timeout(30):
        await one_answer(reader)
        await until(lambda: not transport.get_write_buffer_size())
        site.fronts.look(now, 75.0)
        site.script = echo
        writer.write(post(b"hi"))
        assert (await one_answer(reader))[1] == b"hi"
        site.fronts.look(asyncio.get_running_loop().time() + 76.0, 75.0)
        assert await reader.read() == b""
    writer.close()


async def test_a_server_that_ends_lets_what_is_open_end_and_closes_the_rest() -> None:
    async with serving() as site:
        gate = asyncio.Event()

        async def waiting(incoming: Incoming, outgoing: Outgoing) -> None:
            await gate.wait()
            await echo(incoming, outgoing)

        idle_reader, idle_writer = await site.connect()
        site.script = waiting
        reader, writer = await site.connect()
        writer.write(post(b"open"))
        await until(lambda: site.open == 1 and len(site.fronts.connections) == 2)
        closing = asyncio.ensure_future(site.fronts.close(30.0))
        assert await idle_reader.read() == b""
        gate.set()
        head, body = await one_answer(reader)
        assert (body, b"connection: close" in head) == (b"open", True)
        await closing
        for each in (writer, idle_writer):
            each.close()


async def test_small_blocks_do_not_wait_for_an_acknowledgement(site: Site) -> None:
    _reader, writer = await site.connect()
    await until(lambda: site.fronts.connections)
    (front,) = site.fronts.connections
    assert front.transport is not None
    assert front.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()


async def test_nonsense_sent_ahead_by_one_that_has_left_meanwhile_is_nobodys_fault(site: Site) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))

    async def answers_and_closes(incoming: Incoming, outgoing: Outgoing) -> None:
        await echo(incoming, outgoing)
        (front,) = site.fronts.connections
        assert front.transport is not None
        front.transport.close()

    site.script = answers_and_closes
    answer = await site.says(post(b"hello") + b"nonsense\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    await until(lambda: not site.fronts.connections)
    assert faults == []
