"""mesh/handshakes.py against the real TLS of both event loops: whoever comes, others get in, and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from unittest import mock

import pytest
import uvloop

from mesh.handshakes import Handshakes
from mesh.settings import HandshakeSettings
from node.types import NodeId
from tests.keys import Circle
from tests.mesh.waiting import until

A, B, C = NodeId("aa" * 8), NodeId("bb" * 8), NodeId("cc" * 8)
Body = Callable[[], Awaitable[None]]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """On either event loop: the daemon runs on uvloop, whose TLS is its own."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(body: Body) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await body()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    return run


class Echo(asyncio.Protocol):
    def __init__(self, port: Port) -> None:
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport
        self._port.made.add(self)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)  # type: ignore[attr-defined]  # uvloop's is one in all but its bases

    def connection_lost(self, _: Exception | None) -> None:
        self._port.made.discard(self)


class Port:
    """A's, which believes B."""

    def __init__(self, settings: HandshakeSettings) -> None:
        self.circle = Circle(A, B)
        self.tls = self.circle.tls(A)
        self.made: set[Echo] = set()
        self.shakes = Handshakes(lambda: Echo(self), context=self.context, settings=settings)
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.number = int(self.listening.getsockname()[1])

    def context(self) -> ssl.SSLContext:
        return self.tls.server()

    async def connect(self, context: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.number, ssl=context, server_hostname=context and "")

    async def echoes(self, context: ssl.SSLContext) -> bool:
        """Whether what is said comes back."""
        with suppress(OSError):
            reader, writer = await self.connect(context)
            with suppress(OSError):
                writer.write(b"hello")
                said = await reader.read(5)
                writer.close()
                await writer.wait_closed()
                return said == b"hello"
        return False

    async def serves(self) -> bool:
        return await self.echoes(self.circle.client(B, A))


@asynccontextmanager
async def listening(**settings: float) -> AsyncIterator[Port]:
    port = Port(HandshakeSettings(**settings))  # type: ignore[arg-type]  # counts are whole
    port.shakes.listen(port.listening)
    try:
        yield port
    finally:
        await port.shakes.close()
        await port.shakes.close()
        assert port.shakes.open == 0


def test_a_member_gets_in_and_so_does_who_shows_no_certificate(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening() as port:
            assert await port.serves()
            assert await port.echoes(port.tls.stranger())
            await until(lambda: not port.made)
            assert port.shakes.failed == 0

    run(body)


def test_a_strange_certificate_and_an_older_tls_end_the_handshake(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening() as port:
            assert not await port.echoes(port.circle.client(C, A))
            old = port.circle.client(B, A)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
            assert not await port.echoes(old)
            await until(lambda: port.shakes.failed == 2)
            assert port.made == set()
            assert await port.serves()

    run(body)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 70_000, b"\0" * 10, b"MXM\x02", b""]
)
def test_what_is_no_handshake_is_closed_and_others_are_served(run: Callable[[Body], None], said: bytes) -> None:
    async def body() -> None:
        async with listening() as port:
            reader, writer = await port.connect(None)
            writer.write(said)
            if said in (b"", b"MXM\x02"):  # nothing yet that could be wrong
                writer.write_eof()
            with suppress(ConnectionResetError):
                assert b"HTTP" not in await reader.read()
            await until(lambda: port.shakes.failed == 1 and port.shakes.open == 0)
            assert await port.serves()
            writer.close()

    run(body)


def test_a_half_open_handshake_is_bounded_in_time(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening(limit_s=0.2) as port:
            silent = [await port.connect(None) for _ in range(5)]
            for _, writer in silent[:2]:
                writer.write(b"\x16\x03\x01\x00\xc8\x01")  # the start of a hello
            for reader, writer in silent:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
                writer.close()
            await until(lambda: port.shakes.open == 0)
            assert port.shakes.failed == 5
            assert await port.serves() or await port.serves(), "a slow machine may need more than 0.2 s"

    run(body)


def test_half_open_handshakes_are_bounded_in_number_and_the_oldest_goes(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening(open_max=8, limit_s=600.0) as port:
            silent = [await port.connect(None) for _ in range(20)]
            await until(lambda: port.shakes.crowded == 12)
            for reader, _ in silent[:12]:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            assert port.shakes.open == 8
            for _ in range(3):
                assert await port.serves()
            assert port.shakes.crowded >= 13
            for _, writer in silent:
                writer.close()
            await until(lambda: port.shakes.open == 0)

    run(body)


def test_what_waits_in_the_backlog_while_the_members_change_is_not_lost(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening() as port:
            early = socket.create_connection(("127.0.0.1", port.number))  # the loop has not run since: it waits there
            early.setblocking(False)
            port.circle.add(C)
            port.tls.renew()
            reader, writer = await asyncio.open_connection(sock=early, ssl=port.circle.client(C, A), server_hostname="")
            writer.write(b"hello")
            assert await reader.read(5) == b"hello"
            writer.close()

    run(body)


def test_without_file_descriptors_it_waits_and_goes_on(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening(pause_s=0.05) as port:
            spent = mock.Mock(side_effect=[OSError(errno.EMFILE, "Too many open files")] * 3 + [BlockingIOError()])
            with mock.patch.object(Handshakes, "_taken", side_effect=spent):
                early = socket.create_connection(("127.0.0.1", port.number))
                await until(lambda: spent.call_count >= 3)
            early.close()
            assert await port.serves()

    run(body)


def test_a_key_that_cannot_be_read_is_said_and_ends_nothing_but_the_connection(
    run: Callable[[Body], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with listening() as port:
            with mock.patch.object(port.tls, "server", side_effect=FileNotFoundError("key.pem")):
                assert not await port.serves()
            assert "this node's key cannot be used: key.pem" in caplog.text
            assert await port.serves()

    run(body)


def test_closing_ends_what_is_half_open(run: Callable[[Body], None]) -> None:
    async def body() -> None:
        async with listening(limit_s=600.0) as port:
            reader, writer = await port.connect(None)
            await until(lambda: port.shakes.open == 1)
            await port.shakes.close()
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await port.connect(None)

    run(body)
