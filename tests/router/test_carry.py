"""The way to a peer, against a real server that says exactly these bytes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from node.errors import NodeError, NodeErrorCode
from node.io.calls import Call
from node.io.flow import Awaited, Flow, Sink
from node.io.http_client import HttpClient
from node.types import NodeId, RequestId
from router.io.carry import HttpHop, LocalHop, node_error
from router.settings import EdgeSettings
from tests.keys import Circle
from tests.node.scripted import served

CALL = Call(
    id=RequestId("r1"),
    attempt=3,
    edge=NodeId("e" * 16),
    model="chat-1",
    path="chat/completions",
    body=b'{"model":"chat-1"}',
    wants_usage=True,
    deadline_s=12.5,
    keep_alive=float("inf"),
    resumes=True,
)
POST = Call(id=CALL.id, attempt=1, edge=CALL.edge, model="m", path="embeddings", body=b"{}", deadline_s=5.0)
CIRCLE = Circle(CALL.edge, NODE := NodeId("f" * 16))
SERVER, CLIENT = CIRCLE.server(NODE), CIRCLE.client(CALL.edge, NODE)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BLOCKS = [b": alive\n\n", b'data: {"a":1}\n\n', b": usage {}\n\n", b"data: [DONE]\n\n"]
SETTINGS = EdgeSettings(silence_s=1.05, connect_floor_s=0.1, connect_cap_s=0.5)


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Peer:
    """One request per connection is read, then `act` has the socket."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()  # the other side closed
        self.bytes: dict[str, int] = {}
        self.port = 0
        self.says: list[bytes] = [HEAD, chunked(b"".join(BLOCKS)), b"0\r\n\r\n"]
        self.then: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                self.heads.append(head + await reader.readexactly(length))
                for part in self.says:
                    writer.write(part)
                    await writer.drain()
                if self.then is not None:
                    await self.then(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()

    def count(self, what: str, size: int) -> None:
        self.bytes[what] = self.bytes.get(what, 0) + size


@asynccontextmanager
async def peered(settings: EdgeSettings = SETTINGS) -> AsyncIterator[tuple[Peer, Callable[..., HttpHop]]]:
    peer = Peer()
    server = await asyncio.start_server(peer, "127.0.0.1", 0, ssl=SERVER)
    peer.port = server.sockets[0].getsockname()[1]
    async with HttpClient() as http:

        def hop(*addresses: str, port: int = 0) -> HttpHop:
            return HttpHop(
                http,
                addresses=addresses or ("127.0.0.1",),
                port=port or peer.port,
                tls=CLIENT,
                settings=settings,
                count=peer.count,
            )

        yield peer, hop
    server.close()


async def take(hop: HttpHop) -> list[bytes]:
    return [block async for block in streamed(hop)]


def streamed(hop: HttpHop) -> AsyncGenerator[bytes, None]:
    return served(hop, CALL)


async def failure(hop: HttpHop, call: Call = CALL) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await (take(hop) if call is CALL else hop.post(call))
    return caught.value


async def test_blocks_come_whole_wherever_the_network_cut_them() -> None:
    async with peered() as (peer, hop):
        text = b"".join(BLOCKS)
        peer.says = [HEAD, *(chunked(text[i : i + 7]) for i in range(0, len(text), 7)), b"0\r\n\r\n"]
        assert await take(hop()) == BLOCKS
        assert peer.bytes == {"peer_out": len(CALL.body), "peer_in": len(text)}


async def test_what_the_node_is_told() -> None:
    async with peered() as (peer, hop):
        await take(hop())
        head, _, body = peer.heads[0].partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        assert lines[0] == b"post /mesh/v1/serve/chat/completions http/1.1"
        assert {
            b"x-mesh-request: r1",
            b"x-mesh-attempt: 3",
            b"x-mesh-edge: " + b"e" * 16,
            b"x-mesh-model: chat-1",
            b"x-mesh-usage: 1",
            b"x-mesh-deadline-ms: 12500",
            b"x-mesh-keep-alive: inf",
            b"x-mesh-resume: 1",
            b"content-type: application/json",
        } <= set(lines)
        assert body == CALL.body


async def test_a_connection_is_used_again() -> None:
    async with peered() as (peer, hop):
        for _ in range(3):
            await take(hop())
        assert peer.connections == 1


async def test_closing_it_early_closes_the_connection() -> None:
    async with peered() as (peer, hop):
        peer.says = [HEAD, chunked(BLOCKS[0])]
        blocks = streamed(hop())
        assert await anext(blocks) == BLOCKS[0]
        await blocks.aclose()
        await asyncio.wait_for(peer.left.wait(), 5)


async def test_a_refusal_is_what_the_node_said() -> None:
    async with peered() as (peer, hop):
        said = {"error": {"code": "node_busy", "message": "4 of 4 wait", "retry_after_s": 1.5}}
        peer.says = [answer("503 X", json.dumps(said).encode())]
        error = await failure(hop())
        assert (error.code, error.message, error.retry_after_s) == (NodeErrorCode.NODE_BUSY, "4 of 4 wait", 1.5)
        peer.says = [answer("500 X", b"<html>")]
        assert (await failure(hop())).code is NodeErrorCode.INTERNAL


async def test_an_error_event_ends_the_stream() -> None:
    async with peered() as (peer, hop):
        event = b'event: error\ndata: {"error":{"code":"model_failed","message":"crashed","retry_after_s":null}}\n\n'
        peer.says = [HEAD, chunked(BLOCKS[1] + event)]
        blocks = streamed(hop())
        assert await anext(blocks) == BLOCKS[1]
        with pytest.raises(NodeError, match="crashed") as caught:
            await anext(blocks)
        assert caught.value.code is NodeErrorCode.MODEL_FAILED


@pytest.mark.parametrize("says", [[HEAD, chunked(BLOCKS[1])], [HEAD, chunked(BLOCKS[1]), b"0\r\n\r\n"], [b""]])
async def test_a_connection_that_ends_too_early(says: list[bytes]) -> None:
    async def close(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with peered() as (peer, hop):
        peer.says, peer.then = says, close
        assert (await failure(hop())).code is NodeErrorCode.UNREACHABLE


@pytest.mark.parametrize("says", [[HEAD, chunked(BLOCKS[0])], []])
async def test_silence_is_a_failure(says: list[bytes]) -> None:
    async with peered() as (peer, hop):
        peer.says = says
        error = await failure(hop())
        assert error.code is NodeErrorCode.UNREACHABLE


async def test_a_block_without_end_is_a_failure() -> None:
    async with peered(EdgeSettings(block_limit_bytes=100)) as (peer, hop):
        peer.says = [HEAD, chunked(b"data: " + b"x" * 200)]
        assert (await failure(hop())).code is NodeErrorCode.MODEL_FAILED


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    async with peered() as (peer, hop):
        assert await take(hop("127.0.0.9", "127.0.0.1")) == BLOCKS
        assert len(peer.heads) == 1


async def test_an_address_that_does_not_answer_costs_little() -> None:
    with socket.socket() as full:  # a listener whose backlog is full swallows a SYN, like a cable that is out
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.2", port))
            peer = Peer()
            server = await asyncio.start_server(peer, "127.0.0.1", port, ssl=SERVER)
            async with HttpClient() as http:
                hop = HttpHop(
                    http,
                    addresses=("127.0.0.2", "127.0.0.1"),
                    port=port,
                    tls=CLIENT,
                    settings=SETTINGS,
                    count=peer.count,
                )
                began = asyncio.get_running_loop().time()
                assert await take(hop) == BLOCKS
                assert 0.09 < asyncio.get_running_loop().time() - began < 3
            server.close()


async def test_no_address_answers() -> None:
    async with peered() as (_, hop):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            error = await failure(hop("127.0.0.1", "127.0.0.9", port=unused.getsockname()[1]))
        assert error.code is NodeErrorCode.UNREACHABLE
        assert "127.0.0.9" in error.message


async def test_a_post_gives_the_engines_answer_and_its_refusals_alike() -> None:
    async with peered() as (peer, hop):
        peer.says = [b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: 4\r\n\r\nRIFF"]
        assert await hop().post(POST) == (200, "audio/wav", b"RIFF")
        engines = b'{"error":{"message":"no","type":"invalid_request_error","code":"model_not_found"}}'
        peer.says = [answer("404 X", engines)]
        assert (await hop().post(POST))[0] == 404
        peer.says = [answer("404 X", b'{"error":{"code":"path_not_served","message":"no","retry_after_s":null}}')]
        assert (await failure(hop(), POST)).code is NodeErrorCode.PATH_NOT_SERVED


async def test_a_post_has_a_limit() -> None:
    async with peered(EdgeSettings(answer_limit_bytes=3)) as (peer, hop):
        peer.says = [answer("200 OK", b"1234")]
        assert "larger than 3 bytes" in (await failure(hop(), POST)).message


def test_a_word_of_a_later_version_is_a_failure_like_any() -> None:
    error = node_error(b'{"error":{"code":"on_holiday","message":"back in May"}}')
    assert error is not None
    assert (error.code, error.message) == (NodeErrorCode.INTERNAL, "back in May")
    assert node_error(b'{"error":"text"}') is None


class Broken:
    """A host with a defect."""

    def pour(self, call: Call, sink: Sink) -> Flow:
        raise ZeroDivisionError(call.id)

    async def post(self, call: Call) -> tuple[int, str, bytes]:
        raise ZeroDivisionError(call.id)


async def test_a_defect_of_this_node_is_a_failure_like_any() -> None:
    hop = LocalHop(Broken())
    with pytest.raises(NodeError) as caught:
        hop.pour(CALL, Awaited())
    assert caught.value.code is NodeErrorCode.INTERNAL
    with pytest.raises(NodeError):
        await hop.post(POST)
