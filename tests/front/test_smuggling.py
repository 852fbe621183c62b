"""What an edge sends to a node is whole, well-formed requests, one for each that it carries, whatever clients send.

The node here only writes down every byte that comes, and answers. What came is read by the strict reader, and what was
asked in it must be what the client asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fuzz.mutate import Mutator
from bench.fuzz.targets import TARGETS
from bench.fuzz.targets.requests import check, events
from node.http_request import Data, End, Fault, Head, RequestReader
from node.settings import FrontSettings
from node.types import ModelReport
from router.settings import EdgeSettings
from tests.node.smuggling import BODIES, HEADS, PLAIN
from tests.router.fakes import CIRCLE, FAST, OTHER, PARIS, Rig, message, rigged

CHAT = "/v1/chat/completions"
BODY = json.dumps(message()).encode()
NEXT = b"POST /mesh/v1/serve/evil HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\n\r\n"
# All that an edge says in the head of a call (docs/wire.md).
SAID = {
    "host", "accept-encoding", "content-type", "content-length", "x-mesh-request", "x-mesh-attempt", "x-mesh-edge",
    "x-mesh-model", "x-mesh-deadline-ms", "x-mesh-usage", "x-mesh-keep-alive", "x-mesh-resume",
}  # fmt: skip
LIMITS = FrontSettings(head_bytes=64 * 1024, target_bytes=16 * 1024)


class Listener:
    """A node that writes down what it hears: the bytes of each connection."""

    def __init__(self) -> None:
        self.heard: list[bytearray] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = bytearray()
        self.heard.append(mine)
        requests, streams = RequestReader(LIMITS), False
        while data := await reader.read(65536):
            mine += data
            requests.feed(data)
            while (event := requests.next()) is not None:
                if isinstance(event, Head):
                    streams = event.target.endswith("completions")
                elif isinstance(event, End):
                    self._answer(writer, streams=streams)
                    requests.again()
        writer.close()

    def _answer(self, writer: asyncio.StreamWriter, *, streams: bool) -> None:
        if not streams:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
            return
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in PARIS)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + chunks + b"0\r\n\r\n")

    def requests(self) -> Iterator[tuple[Head, bytes]]:
        """Every request that was heard. Fails where there is anything else."""
        for text in self.heard:
            found = events([bytes(text)], LIMITS)
            check(found)
            assert not found or isinstance(found[-1], End), found[-1]
            head, body = None, b""
            for event in found:
                assert not isinstance(event, Fault), (event, bytes(text))
                if isinstance(event, Head):
                    head, body = event, b""
                elif isinstance(event, Data):
                    body += event.data
                else:
                    assert head is not None
                    yield head, body


@asynccontextmanager
async def listened(bounds: EdgeSettings = FAST) -> AsyncIterator[tuple[Rig, Listener]]:
    listener = Listener()
    server = await asyncio.start_server(listener, "127.0.0.1", 0, ssl=CIRCLE.server(OTHER))
    async with rigged(bounds) as (rig, _):
        rig.peer_port = server.sockets[0].getsockname()[1]
        rig.dispatch.place = lambda _: OTHER
        rig.models = rig.other_models = (ModelReport(name="chat-1", aliases=("standard",), paths=("*",)),)
        yield rig, listener
    server.close()


async def told(rig: Rig, text: bytes, size: int = 0) -> bytes:
    """All that comes back. The client says no more once this is said, but it listens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rsplit(":", 1)[1]))
    async with asyncio.timeout(60):
        for at in range(0, len(text), size or len(text) or 1):
            writer.write(text[at : at + (size or len(text))])
            await writer.drain()
        # A request that asks for it ends the connection, and nothing else may be taken for one.
        writer.write(b"\r\nGET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        try:
            found = await reader.read()
        except ConnectionError:
            found = b""
    writer.close()
    return found


def well_formed(listener: Listener, bodies: Sequence[bytes]) -> int:
    """How many requests were heard: each a call as an edge makes it, with a body that a client sent."""
    count = 0
    for head, body in listener.requests():
        count += 1
        assert head.method == "POST"
        assert head.target.startswith("/mesh/v1/serve/")
        assert "evil" not in head.target
        assert set(head.fields) <= SAID, set(head.fields) - SAID
        assert head.fields["x-mesh-edge"] == "1" * 16
        assert head.fields["x-mesh-model"] == "chat-1"
        assert head.length == len(body)
        assert body in bodies
    return count


def post(body: bytes, *lines: bytes, target: bytes = CHAT.encode()) -> bytes:
    said = (b"Host: x", *lines, b"Content-Length: %d" % len(body))
    return b"POST " + target + b" HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in said) + b"\r\n" + body


async def test_every_known_way_to_smuggle_ends_at_the_edge() -> None:
    """With a body that would be carried, were the head not refused; and a second request behind it."""
    async with listened() as (rig, listener):
        for name, text in {**HEADS, **BODIES}.items():
            head, _, body = text.partition(b"\r\n\r\n")
            for sent in (text, head + b"\r\n\r\n" + body.replace(b"hello", BODY) + NEXT, text + NEXT):
                await told(rig, sent)
            assert well_formed(listener, []) == 0, name


async def test_plain_requests_go_through_each_as_one() -> None:
    async with listened() as (rig, listener):
        expected = 0
        for name, text in PLAIN.items():
            head, _, body = text.partition(b"\r\n\r\n")
            whole = head.replace(b"Content-Length: 5", b"Content-Length: %d" % len(BODY))
            whole = whole.replace(b"Content-Length:\t5", b"Content-Length:\t%d" % len(BODY))
            whole = whole.replace(b"POST / ", b"POST /v1/chat/completions ")
            body = body.replace(b"5\r\nhello\r\n6\r\n world", b"%x\r\n%b" % (len(BODY), BODY))
            body = body.replace(b"5\r\nhello", b"%x\r\n%b" % (len(BODY), BODY))
            body = body.replace(b'5;a="b c";d\r\nhello', b'%x;a="b c";d\r\n%b' % (len(BODY), BODY))
            body = body.replace(b"005\r\nhello", b"00%x\r\n%b" % (len(BODY), BODY))
            if body.startswith(b"hello"):
                body = BODY + body[5:]
            carried = BODY in body
            await told(rig, whole + b"\r\n\r\n" + body)
            expected += carried
            assert well_formed(listener, [BODY]) == expected, name
        assert expected > 8


async def test_what_is_sent_behind_a_carried_request_is_a_request_of_its_own() -> None:
    """Nothing of the first one's body or head ends up in the second, at the node neither, also in small pieces."""
    bodies = [json.dumps(message(user=str(number))).encode() for number in range(4)]
    async with listened() as (rig, listener):
        for size in (0, 1, 7):
            await told(rig, b"".join(post(body) for body in bodies), size)
            await told(rig, post(bodies[0]) + NEXT + post(bodies[1]), size)  # NEXT is no path of an edge
        assert well_formed(listener, bodies) == 3 * (4 + 1)


async def test_what_a_client_says_of_the_mesh_is_not_passed_on() -> None:
    lines = [b"X-Mesh-Edge: " + b"2" * 16, b"X-Mesh-Model: other", b"X-Mesh-Resume: 1", b"X-Mesh-Attempt: 9",
             b"Connection: close", b"Transfer-Coding: chunked", b"TE: trailers", b"Upgrade: h2c", b"Trailer: x",
             b"X-Forwarded-For: 1.2.3.4", b"Proxy-Connection: keep-alive", b"Expect: 100-continue"]  # fmt: skip
    async with listened() as (rig, listener):
        for line in lines:
            await told(rig, post(BODY, line))
        assert well_formed(listener, [BODY]) == len(lines)
        (first, *_) = [head for head, _ in listener.requests()]
        assert first.fields["x-mesh-attempt"] != "9"


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/audio/speech%0d%0aX-Evil:%201", b"/v1/audio/../../mesh/v1/serve/evil", b"/v1/audio/%2e%2e/evil",
        b"/v1/audio/speech?a=b%20HTTP/1.1", b"/v1/audio/speech#evil", b"/v1//evil", b"http://evil/v1/audio/speech",
        b"/v1/audio/speech%00", b"/v1/audio/speech%20HTTP/1.1", b"//evil/v1/audio/speech", b"/v1/%2fevil",
    ],
)  # fmt: skip
async def test_no_path_of_a_client_leads_to_another_at_the_node(target: bytes) -> None:
    body = json.dumps({"model": "chat-1", "input": "x"}).encode()
    async with listened() as (rig, listener):
        await told(rig, post(body, target=target))
        for head, said in listener.requests():
            assert head.target == "/mesh/v1/serve/audio/speech"
            assert (set(head.fields) <= SAID, said) == (True, body)


_VALUES = st.binary(max_size=60).map(lambda value: bytes(b for b in value if b == 9 or 32 <= b != 127))


@settings(max_examples=60)
@given(kind=_VALUES, other=_VALUES, models=st.text(max_size=20))
async def test_no_value_of_a_client_ends_a_line_at_the_node(kind: bytes, other: bytes, models: str) -> None:
    body = json.dumps(message(user=models)).encode()
    async with listened() as (rig, listener):
        await told(rig, post(body, b"Content-Type: " + kind, b"X-Request-Id: " + other))
        await told(rig, post(json.dumps({"model": models or "m", "messages": []}).encode(), b"Content-Type: " + kind))
        assert well_formed(listener, [body]) <= 1


async def test_changed_requests_reach_a_node_whole_or_not_at_all() -> None:
    """Of the fuzzer's making: whatever it is, what is heard is calls, with bodies that are JSON objects."""
    mutator = Mutator(TARGETS["requests"], Random(7))
    corpus = [text.replace(b"hello", BODY) for text in (*PLAIN.values(), *HEADS.values())]
    lines = [b"X-A: b", b"Content-Type: application/json; charset=utf-8", b"Connection: keep-alive, x", b"TE: trailers"]
    async with listened() as (rig, listener):
        for _ in range(150):
            await told(rig, mutator.of(corpus) + NEXT)
            await told(rig, post(BODY, mutator.of(lines)) + NEXT)
        count = 0
        for head, body in listener.requests():
            count += 1
            assert head.target.startswith("/mesh/v1/serve/")
            assert set(head.fields) <= SAID
            assert isinstance(json.loads(body), dict)
        assert count > 10
