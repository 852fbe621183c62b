"""The raw server on real sockets and both event loops: one request at a time, bounded, and nothing left behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from node.http_reply import Answer
from node.http_request import Fault, Head
from node.io.front import Fronts
from node.io.turn import BrokenBodyError, Incoming, Outgoing
from node.settings import FrontSettings
from tests.mesh.waiting import until
from tests.node.smuggling import BODIES, HEADS

HOST = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


def post(body: bytes = b"", *fields: bytes, path: bytes = b"/") -> bytes:
    lines = b"".join(field + b"\r\n" for field in (*fields, b"Content-Length: %d" % len(body)))
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + lines + b"\r\n" + body


async def body_of(incoming: Incoming) -> bytes:
    parts = incoming.take()
    while not incoming.whole:
        await incoming.more()
        parts += incoming.take()
    return b"".join(parts)


async def echo(incoming: Incoming, outgoing: Outgoing) -> None:
    try:
        body = await body_of(incoming)
    except BrokenBodyError as error:
        outgoing.whole(Answer(400, {}, str(error).encode()))
    else:
        outgoing.whole(Answer(200, {"x-path": incoming.head.target}, body))


class Framework(asyncio.Protocol):
    """Says what it was given, and ends."""

    def __init__(self, given: list[bytes]) -> None:
        self._given = given

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._given.append(data)
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nother")  # type: ignore[attr-defined]
        self._transport.close()


class Site:
    """Answers POSTs by `script`; everything else is the framework's."""

    def __init__(self) -> None:
        self.script: Callable[[Incoming, Outgoing], Awaitable[None]] = echo
        self.open = 0
        self.handed_over: list[bytes] = []
        self.fronts: Fronts
        self.port = 0

    def takes(self, head: Head) -> bool:
        return head.method == "POST"

    def malformed(self, fault: Fault) -> Answer:
        return Answer(fault.status, {}, fault.message.encode())

    async def answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        self.open += 1
        try:
            await self.script(incoming, outgoing)
        finally:
            self.open -= 1

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def says(self, *pieces: bytes) -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await self.connect()
        async with asyncio.timeout(30):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if len(pieces) > 1:
                    await asyncio.sleep(0)
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def serving(settings: FrontSettings | None = None, *, local: bool = True) -> AsyncIterator[Site]:
    site = Site()
    site.fronts = Fronts(
        site,
        lambda: Framework(site.handed_over),
        settings=settings or FrontSettings(),
        carries_at=lambda _: local,
    )
    server = await asyncio.get_running_loop().create_server(site.fronts, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        await site.fronts.close(5.0)
    await until(lambda: not site.fronts.connections)
    assert site.fronts.tasks == set()
    assert site.open == 0


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as made:
        yield made


async def one_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one that says its length."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await reader.readexactly(int(length.partition(b":")[2]))


async def test_one_connection_serves_one_request_after_the_other(site: Site) -> None:
    reader, writer = await site.connect()
    for number in range(20):
        writer.write(post(b"%d" % number, path=b"/%d" % number))
        head, body = await one_answer(reader)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"x-path: /%d\r\n" % number) in head
        assert body == b"%d" % number
    assert len(site.fronts.connections) == 1
    writer.close()


async def test_byte_by_byte_is_the_same(site: Site) -> None:
    text = post(b"hello", b"Connection: close")
    whole = await site.says(text)
    assert whole.endswith(b"\r\n\r\nhello")
    strip = whole.split(b"date:")[0]
    assert (await site.says(*(text[i : i + 1] for i in range(len(text))))).startswith(strip)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert (await site.says(*(chunked[i : i + 1] for i in range(len(chunked))))).endswith(b"\r\n\r\nhello")


async def test_requests_sent_ahead_are_answered_in_their_order_one_at_a_time(site: Site) -> None:
    most = 0

    async def slow(incoming: Incoming, outgoing: Outgoing) -> None:
        nonlocal most
        most = max(most, site.open)
        await asyncio.sleep(0)
        await echo(incoming, outgoing)

    site.script = slow
    ahead = b"".join(post(b"%d" % number) for number in range(50))
    answer = await site.says(ahead + post(b"last", b"Connection: close"))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(b"%d" % number for number in range(50)), b"last"]
    assert most == 1


async def test_what_is_sent_ahead_is_bounded() -> None:
    async with serving(FrontSettings(ahead_bytes=1000)) as site:
        gate = asyncio.Event()

        async def waiting(incoming: Incoming, outgoing: Outgoing) -> None:
            await gate.wait()
            await echo(incoming, outgoing)

        site.script = waiting
        reader, writer = await site.connect()
        writer.write(post(b"first"))
        await until(lambda: site.open == 1)
        (front,) = site.fronts.connections
        late = post(b"x" * 4_000_000, b"Connection: close")
        writer.write(late)
        await until(lambda: not front._reading)
        assert front._reader.waiting < 2**20
        gate.set()
        async with asyncio.timeout(30):
            assert (await one_answer(reader))[1] == b"first"
            head, body = await one_answer(reader)
        assert (b"connection: close" in head, len(body)) == (True, 4_000_000)
        writer.close()


@pytest.mark.parametrize("kind", ["heads", "bodies"])
async def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(site: Site, kind: str) -> None:
    for name, text in (HEADS if kind == "heads" else BODIES).items():
        answer = await site.says(text)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), name
        assert b"\r\nconnection: close\r\n" in answer, name
        assert answer.count(b"HTTP/1.1 ") == 1, name
    assert site.handed_over == []


async def test_other_requests_are_handed_over_with_all_that_was_read(site: Site) -> None:
    assert (await site.says(post(b"mine") + GET + b"more")).endswith(b"other")
    assert site.handed_over == [GET + b"more"]
    assert site.fronts.connections == set()


async def test_where_nothing_is_carried_everything_is_handed_over() -> None:
    async with serving(local=False) as site:
        assert (await site.says(post(b"mine"))).endswith(b"other")
        assert site.handed_over == [post(b"mine")]


async def test_a_client_that_asks_before_it_sends_is_told(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(post(b"hello", b"Expect: 100-continue")[:-5])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert (await one_answer(reader))[1] == b"hello"
    writer.write(post(b"hello", b"Expect: 100-continue"))
    head, body = await one_answer(reader)
    assert head.startswith(b"HTTP/1.1 200"), "who sends at once is not told what it does not wait for"
    assert body == b"hello"
    writer.close()


async def streams(incoming: Incoming, outgoing: Outgoing) -> None:
    await body_of(incoming)
    outgoing.begin(200, {"content-type": "text/event-stream"})
    for block in (b"one ", b"two"):
        outgoing.write(block)
        await outgoing.drained()
    outgoing.end()


async def test_streams_are_chunked_and_the_connection_stays(site: Site) -> None:
    site.script = streams
    reader, writer = await site.connect()
    for _ in range(3):
        writer.write(post())
        assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n0\r\n\r\n") == b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
    writer.close()


async def test_to_an_old_client_the_end_of_the_connection_ends_the_stream(site: Site) -> None:
    site.script = streams
    answer = await site.says(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answer.endswith(b"\r\n\r\none two")
    assert b"transfer-encoding" not in answer
    site.script = echo
    answer = await site.says(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
    assert answer.endswith(b"\r\n\r\nhi")


async def test_an_answer_before_the_whole_request_is_read_by_a_client_that_still_sends(site: Site) -> None:
    async def refuses(_: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(Answer(413, {}, b"too large"))

    site.script = refuses
    reader, writer = await site.connect()
    writer.write(post(b"x" * 2**20)[: -(2**20)])
    head, body = await one_answer(reader)
    assert (body, b"connection: close" in head) == (b"too large", True)
    with suppress(ConnectionError):
        for _ in range(16):  # it has not looked yet
            writer.write(b"x" * 2**16)
            await writer.drain()
    assert await reader.read() == b""
    writer.close()


async def test_who_goes_on_sending_after_a_refusal_is_cut_off_in_the_end() -> None:
    async with serving(FrontSettings(linger_s=0.0)) as site:
        reader, writer = await site.connect()
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        (front,) = site.fronts.connections
        site.fronts.look(asyncio.get_running_loop().time() + 1.0, 75.0)
        await until(lambda: front.transport is None)
        writer.close()


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
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(counted[0].written) == 2
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
            await asyncio.sleep(0)
            assert front.transport is not None, "who reads slowly is not cut off"
            site.fronts.look(now + 61.0, 75.0)
            await until(lambda: front.transport is None)
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
