"""The peer port's door, over real HTTP with a host that does as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from node.errors import NodeError, NodeErrorCode
from node.http_request import Head
from node.io.bodies import Bodies
from node.io.calls import ALIVE, Call
from node.io.flow import Flow, Sink
from node.io.serve import Door
from node.io.turn import Incoming
from node.openai import DONE
from node.settings import DoorSettings
from node.types import NodeId
from tests.mesh.waiting import until
from tests.node.doors import opened
from tests.node.fakes import data
from tests.node.scripted import Scripted
from tests.node.smuggling import BODIES, HEADS

HEADERS = {
    "x-mesh-request": "r1",
    "x-mesh-attempt": "2",
    "x-mesh-edge": "0123456789abcdef",
    "x-mesh-model": "qwen3-größer",
    "x-mesh-usage": "1",
    "x-mesh-deadline-ms": "1500",
}
BUSY = NodeError(NodeErrorCode.NODE_BUSY, "2 in flight", retry_after_s=1.5)
FAILED = NodeError(NodeErrorCode.MODEL_FAILED, "killed by signal 9")


class FakeHost:
    """Says `blocks`; of an exception among them it breaks off, or refuses the call if it comes first. None waits until
    the reader has gone. At a call's deadline it breaks off, as a node does."""

    def __init__(self, *blocks: bytes | NodeError | None) -> None:
        self._blocks = blocks
        self.calls: list[Call] = []
        self.yielded = 0
        self.closed = False

    def pour(self, call: Call, sink: Sink) -> Flow:
        self.calls.append(call)
        if self._blocks and isinstance(self._blocks[0], NodeError):
            raise self._blocks[0]
        flow = Scripted(self._say(), sink)

        def late() -> None:
            if not self.closed:
                flow.close()
                sink.done(NodeError(NodeErrorCode.NODE_BUSY, "the deadline passed"))

        asyncio.get_running_loop().call_later(call.deadline_s, late)
        return flow

    async def _say(self) -> AsyncGenerator[bytes, None]:
        try:
            for block in self._blocks:
                if isinstance(block, NodeError):
                    raise block
                if block is None:
                    await asyncio.Event().wait()
                else:
                    yield block
                    self.yielded += 1
        finally:
            self.closed = True

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        self.calls.append(call)
        if self._blocks and isinstance(self._blocks[0], NodeError):
            raise self._blocks[0]
        return 201, "audio/wav", call.body[::-1]


@asynccontextmanager
async def asked(
    host: FakeHost, path: str = "chat/completions", headers: dict[str, str] | None = None, leaving: str = ""
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    async with opened(Door(host, lambda: leaving)) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/mesh/v1/serve/{path}"
        async with session.post(url, data=b'{"x": 1}', headers=HEADERS if headers is None else headers) as response:
            yield response


@asynccontextmanager
async def raw(host: FakeHost, header: bytes = b"x: y", path: str = "chat/completions") -> AsyncGenerator[bytes, None]:
    """The whole answer to a request whose path and one header are sent as they stand here."""
    fields = {k: v for k, v in HEADERS.items() if not header.startswith(k.encode())}
    lines = [f"POST /mesh/v1/serve/{path} HTTP/1.1", "host: x", "connection: close", "content-length: 0"]
    head = "\r\n".join([*lines, *(f"{k}: {v}" for k, v in fields.items())]).encode() + b"\r\n" + header + b"\r\n\r\n"
    async with opened(Door(host)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        yield await reader.read()
        writer.close()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("0.0", 0.0), ("300.0", 300.0), ("inf", float("inf")), ("-1", None), ("nan", None), ("soon", None), ("", None)],
)
async def test_keep_alive_comes_along(said: str, seconds: float | None) -> None:
    host = FakeHost(DONE)
    async with asked(host, headers={**HEADERS, "x-mesh-keep-alive": said}) as response:
        assert response.status == 200
    assert host.calls[0].keep_alive == seconds


@pytest.mark.parametrize(("said", "resumes"), [("1", True), ("0", False), ("yes", False), (None, False)])
async def test_that_the_body_carries_a_continuation_comes_along(said: str | None, resumes: bool) -> None:
    host = FakeHost(DONE)
    async with asked(host, headers=HEADERS if said is None else {**HEADERS, "x-mesh-resume": said}) as response:
        assert response.status == 200
    assert host.calls[0].resumes is resumes


async def test_blocks_arrive_as_they_are_and_the_call_is_whole() -> None:
    host = FakeHost(data("Hel"), DONE)
    async with asked(host) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert await response.read() == ALIVE + data("Hel") + DONE
    (call,) = host.calls
    assert (call.id, call.attempt, call.edge, call.model) == ("r1", 2, "0123456789abcdef", "qwen3-größer")
    assert (call.path, call.body, call.wants_usage, call.deadline_s) == ("chat/completions", b'{"x": 1}', True, 1.5)
    assert host.closed


async def test_the_first_block_does_not_wait_for_the_second() -> None:
    async with asked(FakeHost(None)) as response:
        assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 30) == ALIVE


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BUSY, 503),
        (FAILED, 502),
        (NodeError(NodeErrorCode.DRAINING, "d"), 503),
        (NodeError(NodeErrorCode.MODEL_NOT_FOUND, "m"), 404),
        (NodeError(NodeErrorCode.BAD_REQUEST, "b"), 400),
    ],
)
async def test_a_refusal_before_the_first_block_has_its_status(error: NodeError, status: int) -> None:
    async with asked(FakeHost(error)) as response:
        assert response.status == status
        assert await response.json() == {
            "error": {"code": error.code.value, "message": error.message, "retry_after_s": error.retry_after_s}
        }


@pytest.mark.parametrize("path", ["chat/completions", "audio/speech"])
async def test_a_node_that_leaves_sends_late_calls_elsewhere(path: str) -> None:
    host = FakeHost(b": alive\n\n")
    async with asked(host, path, leaving="stopping") as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "draining"
    assert host.calls == []


async def test_an_error_after_the_head_is_an_event_and_the_connection_ends() -> None:
    async with asked(FakeHost(data("Hel"), FAILED)) as response:
        assert response.status == 200
        start, event = (await response.read()).split(b"event: error\ndata: ")
        assert start == ALIVE + data("Hel")
        assert event.endswith(b"\n\n")
        assert json.loads(event)["error"] == {"code": "model_failed", "message": FAILED.message, "retry_after_s": None}
        await until(lambda: response.connection is None or not response.connection.transport)


async def test_a_peer_that_hangs_up_cancels_the_call_at_once() -> None:
    host = FakeHost(None)
    async with asked(host) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
        await until(lambda: host.closed)


async def test_a_peer_that_reads_slowly_holds_back_the_host() -> None:
    block = b": " + b"x" * 65_536 + b"\n\n"
    host = FakeHost(*[block] * 4000)
    async with asked(host) as response:
        await response.content.readexactly(10)
        seen = -1
        while seen != host.yielded:  # Until it stands still: nothing is yielded in so many turns of the loop.
            seen = host.yielded
            for _ in range(200):
                await asyncio.sleep(0)
        assert host.yielded < 2000
        response.close()
        await until(lambda: host.closed)


@pytest.mark.parametrize("deadline_ms", ["50", "1500"])
async def test_a_peer_that_does_not_read_is_waited_for_until_the_calls_deadline(deadline_ms: str) -> None:
    host = FakeHost(*[b": " + b"x" * 65_536 + b"\n\n"] * 4000)
    door = Door(host)
    clock, began = asyncio.get_running_loop().time, asyncio.get_running_loop().time()
    async with opened(door) as port:
        _reader, writer = await _half_sent(port, {**HEADERS, "x-mesh-deadline-ms": deadline_ms})
        writer.write(b"x" * 1000)
        await until(lambda: host.closed)
        assert clock() - began >= int(deadline_ms) / 1000.0
        assert 0 < host.yielded < 4000
        await until(lambda: not door.bodies.held_bytes)
        writer.close()


async def test_other_paths_get_the_engines_answer() -> None:
    host = FakeHost()
    async with asked(host, "audio/speech") as response:
        assert (response.status, response.content_type) == (201, "audio/wav")
        assert await response.read() == b'}1 :"x"{'
    assert host.calls[0].path == "audio/speech"
    async with asked(FakeHost(NodeError(NodeErrorCode.PATH_NOT_SERVED, "no such endpoint")), "rerank") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "path_not_served"


@pytest.mark.parametrize(
    "name", ["x-mesh-request", "x-mesh-attempt", "x-mesh-edge", "x-mesh-model", "x-mesh-deadline-ms"]
)
async def test_a_missing_header_is_named(name: str) -> None:
    host = FakeHost(ALIVE)
    async with asked(host, headers={k: v for k, v in HEADERS.items() if k != name}) as response:
        assert response.status == 400
        assert name in (await response.json())["error"]["message"]
    assert host.calls == []


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "٣", "9" * 400])
async def test_a_number_that_is_none_is_named(value: str) -> None:
    async with asked(FakeHost(ALIVE), headers={**HEADERS, "x-mesh-attempt": value}) as response:
        assert response.status == 400
        assert "x-mesh-attempt" in (await response.json())["error"]["message"]


@pytest.mark.parametrize("name", ["x-mesh-request", "x-mesh-edge", "x-mesh-model", "content-type"])
async def test_a_header_that_is_no_text_is_refused(name: str) -> None:
    """Its bytes as they came would stand in this node's report, which nobody could encode: the daemon died of it."""
    host = FakeHost(ALIVE)
    for value in ("r\udcff", "r" * 2000):
        async with raw(host, f"{name}: {value}".encode("utf-8", "surrogateescape")) as answer:
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert name.encode() in answer
    assert host.calls == []


@pytest.mark.parametrize("path", ["audio/../models", "audio/%2e%2e/models", "audio/x%3Fy", "audio/x%23y", "audio//x"])
async def test_a_path_that_leads_elsewhere_is_not_served(path: str) -> None:
    host = FakeHost()
    async with raw(host, path=path) as answer:
        assert answer.startswith(b"HTTP/1.1 404 ")
    assert host.calls == []


async def test_a_body_that_is_too_large_is_refused_unread() -> None:
    host = FakeHost()
    async with raw(host, header=b"content-length: %d" % (DoorSettings().body_limit_bytes + 1)) as answer:
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert host.calls == []


HALF = b"POST /mesh/v1/serve/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n"


async def _half_sent(port: int, headers: dict[str, str] = HEADERS) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HALF + fields + b"\r\n" + b"x" * 1000)
    return reader, writer


async def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    host = FakeHost(DONE)
    door = Door(host, settings=DoorSettings(body_timeout_s=0.05))
    async with opened(door) as port, asyncio.timeout(30):
        reader, writer = await _half_sent(port)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b'"unreachable"' in answer, "which is tried elsewhere"
    assert (door.bodies.held_bytes, host.calls) == (0, [])


async def test_all_bodies_together_are_bounded_and_given_back() -> None:
    host = FakeHost(DONE)
    door = Door(host, settings=DoorSettings(body_limit_bytes=2000, bodies_limit_bytes=2500))
    async with opened(door) as port, asyncio.timeout(30):
        reader, writer = await _half_sent(port)
        await until(lambda: door.bodies.held_bytes == 1000)
        more_reader, more_writer = await _half_sent(port)
        await until(lambda: door.bodies.held_bytes == 2000)
        more_writer.write(b"x" * 1000)
        assert (await more_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        assert b'"node_busy"' in await more_reader.readuntil(b"}")
        await until(lambda: door.bodies.held_bytes == 1000)
        writer.write(b"x" * 1000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert len(host.calls[0].body) == 2000
        await until(lambda: door.bodies.held_bytes == 0)
        for each in (writer, more_writer):
            each.close()


async def test_a_peer_that_leaves_in_the_middle_of_its_body_leaves_nothing() -> None:
    door = Door(FakeHost())
    async with opened(door) as port:
        _reader, writer = await _half_sent(port)
        await until(lambda: door.bodies.held_bytes == 1000)
        writer.close()
        await until(lambda: door.bodies.held_bytes == 0)


async def test_a_member_that_asks_in_the_name_of_another_is_refused_before_its_body() -> None:
    host = FakeHost(DONE)
    async with opened(Door(host), NodeId("fedcba9876543210")) as port:
        reader, writer = await _half_sent(port)
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        assert b"x-mesh-edge is not the node" in await reader.read()
        writer.close()
    assert host.calls == []


async def test_nothing_is_carried_for_a_stranger() -> None:
    host = FakeHost(DONE)
    async with opened(Door(host), None) as port:
        reader, writer = await _half_sent(port)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
    assert host.calls == []


class Part(bytes):
    """Notes how often its length is asked for."""

    asked = 0

    def __len__(self) -> int:
        Part.asked += 1
        return super().__len__()


async def test_each_part_of_a_body_is_counted_once() -> None:
    """However many there are: who sends 32 MiB in small pieces shall not hold the loop up."""
    parts = 300
    incoming = Incoming(Head("POST", "/", {}, None, True, 1, False), "", lambda _: None)
    bodies = Door(FakeHost()).bodies
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        reading = group.create_task(_read(bodies, incoming))
        for number in range(1, parts + 1):
            incoming.feed(Part(b"ab"))
            for _ in range(3):
                await asyncio.sleep(0)  # the reader's turns
            assert bodies.held_bytes == 2 * number
        incoming.end()
    assert reading.result() == b"ab" * parts
    assert Part.asked <= 3 * parts


async def _read(bodies: Bodies, incoming: Incoming) -> bytes:
    async with bodies.hold(incoming) as body:
        return body


@pytest.mark.parametrize("corpus", [HEADS, BODIES], ids=["heads", "bodies"])
async def test_what_can_be_read_in_two_ways_is_refused(corpus: dict[str, bytes]) -> None:
    host = FakeHost(DONE)
    async with opened(Door(host)) as port:
        for name, text in corpus.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text.replace(b"/v1/chat/completions", b"/mesh/v1/serve/chat/completions"))
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 400 "), name
            assert b"bad_request" in answer, name
    assert host.calls == []
