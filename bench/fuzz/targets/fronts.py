"""A whole connection of a client: the raw server, its application, and aiohttp behind it for what is handed over.

What both answered is compared with what a strict reader finds in the same bytes: no request is answered that is not
there, none twice, none after one that says close or is refused, and aiohttp sees what the strict reader saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from msgspec import Struct

from bench.fuzz.target import Defect, Run, Target, want
from bench.fuzz.targets.requests import WORDS, cut, events, seeds
from mesh.http import Server
from node.http_answer import AnswerReader
from node.http_reply import Answer
from node.http_request import Data, End, Event, Fault, Head, path_of
from node.io.front import Fronts
from node.io.turn import BrokenBodyError, Incoming, Outgoing
from node.settings import FrontSettings, HttpSettings

_TURNS = 40  # of the loop, for whoever has something to do


class Seen(Struct, frozen=True):
    """A request as an application got it."""

    method: str
    target: str
    body: bytes


class Wire(asyncio.Transport):
    """A socket in memory."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol, self._loop = protocol, asyncio.get_running_loop()
        self.said = bytearray()
        self.reads, self.over = True, False
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 4000), "peername": ("127.0.0.1", 50000)}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def write(self, data: Any) -> None:
        self.said += b"" if self.over else data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.over

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close(self) -> None:
        if not self.over:
            self.over = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    async def hear(self, pieces: Sequence[bytes]) -> None:
        """Brings these, and gives time after each; then the client says no more."""
        for piece in pieces:
            await _turns(3)
            if self.over:
                return
            if self.reads:
                self._protocol.data_received(piece)
        await _turns(_TURNS)
        if not self.over and not self._protocol.eof_received():
            self.close()
        await _turns(3)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)  # a turn of the loop, no time: what a piece sets going has had its turns


class _Application:
    """Carries POSTs, and answers with what it got."""

    def __init__(self, seen: list[Seen]) -> None:
        self._seen = seen

    def takes(self, head: Head) -> bool:
        return head.method == "POST"

    def malformed(self, fault: Fault) -> Answer:
        return Answer(fault.status, {}, fault.message.encode())

    async def answer(self, incoming: Incoming, outgoing: Outgoing) -> None:
        try:
            parts = incoming.take()
            while not incoming.whole:
                await incoming.more()
                parts += incoming.take()
        except BrokenBodyError as error:
            outgoing.whole(Answer(400, {}, str(error).encode()))
            return
        self._seen.append(Seen(incoming.head.method, incoming.head.target, b"".join(parts)))
        outgoing.whole(Answer(200, {}, b"carried"))


@contextmanager
def _fronts() -> Iterator[Run]:
    seen: list[Seen] = []
    faults: list[str] = []

    async def framework(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append(Seen(request.method, request.raw_path if request.method != "CONNECT" else "", body))
        return web.Response(text="framed")

    async def set_up() -> tuple[Server, Fronts]:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", framework)
        server = Server(app, raw=_Application(seen))
        await server.listen([])
        site = server._fronts  # noqa: SLF001 - the real one, without a socket before it
        assert site is not None
        return server, site

    with asyncio.Runner() as outer:
        loop = outer.get_loop()
        loop.set_exception_handler(lambda _, what: faults.append(f"{what.get('message')}: {what.get('exception')!r}"))
        server, site = loop.run_until_complete(set_up())

        async def run(data: bytes) -> str:
            outcome = ""
            for size in (len(data) or 1, 64):
                seen.clear()
                faults.clear()
                wire = Wire(site())
                await wire.hear(cut(data, size))
                for _ in range(200):
                    if not site.tasks and not server.connections:
                        break
                    await _turns(5)
                want(not faults, "; ".join(faults))
                want(not server.connections and not site.tasks, "a connection is still open")
                outcome = _compare(events([data], FrontSettings()), seen, bytes(wire.said))
            return outcome

        yield lambda data: loop.run_until_complete(run(data))
        loop.run_until_complete(server.close())


def _compare(found: Sequence[Event], seen: Sequence[Seen], said: bytes) -> str:
    """What is there, what was seen of it, and what was answered. Raises Defect."""
    there = _requests(found)
    for request, (head, body) in zip(seen, there, strict=False):
        want(request.method == head.method, f"{request.method} was seen where {head.method} was said")
        same = request.target == head.target or path_of(request.target) == path_of(head.target)
        want(same, f"{request.target!r} was seen where {head.target!r} was said")
        coded = head.method != "POST" and "content-encoding" in head.fields  # aiohttp unpacks
        want(body is None or coded or request.body == body, "another body was seen than was said")
    want(len(seen) <= len(there), "a request was seen that is not there")
    over = [place for place, (head, _) in enumerate(there) if head.method != "POST" or not head.keeps]
    want(not over or len(seen) <= over[0] + 1, "a request was seen after the last one")
    statuses = _answers(said, [head.method for head, _ in there])
    want(len(statuses) <= len(there) + 1, "more answers than requests")
    want(sum(status == 200 for status in statuses) == len(seen), f"{len(seen)} were seen, answered: {statuses}")
    return " ".join(map(str, statuses))


def _requests(found: Sequence[Event]) -> list[tuple[Head, bytes | None]]:
    """Each with its body, None for one that did not come whole."""
    there: list[tuple[Head, bytes | None]] = []
    body = b""
    for event in found:
        match event:
            case Head():
                there.append((event, None))
                body = b""
            case Data(data):
                body += data
            case End():
                there[-1] = (there[-1][0], body)
            case Fault():
                pass
    return there


def _answers(said: bytes, methods: Sequence[str]) -> list[int]:
    """The status of each answer in these bytes, which are answers and nothing else. Raises Defect."""
    statuses: list[int] = []
    while said:
        bodiless = len(statuses) < len(methods) and methods[len(statuses)] == "HEAD"
        reader, end = AnswerReader(HttpSettings(), bodiless=bodiless), 0
        while not reader.over and not reader.fault and end < len(said):
            reader.feed(said[end : end + 1])
            end += 1
        reader.eof()
        if reader.fault or reader.head is None:
            raise Defect(f"what was answered is no answer: {reader.fault}: {said[:200]!r}")
        statuses.append(reader.head.status)
        said = said[end:]
    return statuses


TARGETS = (
    Target(
        name="fronts",
        about="node/io/front.Front and aiohttp behind it on one connection: what is answered is what was asked",
        opened=_fronts,
        seeds=seeds,
        words=(*WORDS, b"PUT / HTTP/1.1\r\n", b"Content-Encoding: gzip\r\n", b"Sec-WebSocket-Key: x\r\n"),
    ),
)
