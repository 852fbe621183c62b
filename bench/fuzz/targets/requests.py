"""Requests, as the strict reader of both ports understands them: however they are cut, and never as two things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.fuzz.target import Run, Target, want
from node.http_request import Data, End, Event, Fault, Head, RequestReader, path_of
from node.settings import FrontSettings
from tests.node.smuggling import BODIES, HEADS, PLAIN

SMALL = FrontSettings(head_bytes=1024, target_bytes=256, fields_max=20, chunk_line_bytes=32, framing_bytes=512)
WORDS = (
    b"GET ", b"POST ", b"HEAD ", b"OPTIONS * ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"Host: x\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"\r\n\r\n",
    b"5\r\nhello\r\n",     b"0\r\n\r\n", b"ffffffff\r\n", b";ext=\"a\"", b"http://x/",
    b"/v1/chat/completions", b"/v1/models", b"/mesh/v1/",     b"chunked",
    b"identity", b"gzip", b" ", b"\x0b", b"\x85", b"\xa0", b"%00", b"%0d%0a",
)  # fmt: skip


def seeds() -> list[bytes]:
    return [*PLAIN.values(), *HEADS.values(), *BODIES.values()]


def events(pieces: Sequence[bytes], settings: FrontSettings) -> list[Event]:
    """All that the reader makes of them, parts of a body that follow each other joined."""
    reader, found = RequestReader(settings), list[Event]()
    for piece in pieces:
        reader.feed(piece)
        while (event := reader.next()) is not None:
            if isinstance(event, Data) and found and isinstance(found[-1], Data):
                found[-1] = Data(found[-1].data + event.data)
            else:
                found.append(event)
            if isinstance(event, End):
                reader.again()
    return found


def cut(data: bytes, at: int) -> list[bytes]:
    """In pieces of `at` bytes."""
    return [data[start : start + at] for start in range(0, len(data), at)]


def check(found: Sequence[Event]) -> None:
    """They are whole requests one after the other, and what each says of its length is so."""
    length: int | None = None
    sent, expected = 0, "head"
    for event in found:
        match event:
            case Head():
                want(expected == "head", "a head within a request")
                want(event.minor == 0 or "host" in event.fields, "no host")
                want(not ({"content-length", "transfer-encoding"} <= event.fields.keys()), "two lengths")
                for name, value in event.fields.items():
                    want(name == name.lower() and not set("\r\n\0") & set(name + value), "a field holds what ends it")
                want(not set("\r\n\0 ") & set(event.target), "a target holds what ends it")
                path_of(event.target)
                length, sent, expected = event.length, 0, "body"
            case Data(data):
                want(expected == "body" and data, "a body without a head")
                sent += len(data)
                want(length is None or sent <= length, "a body longer than it said")
            case End():
                want(expected == "body", "an end without a head")
                want(length is None or sent == length, "a body shorter than it said")
                expected = "head"
            case Fault(status, message):
                want(400 <= status < 600 and message, "a fault without a status")
                want(event is found[-1], "something after a fault")


@contextmanager
def _requests() -> Iterator[Run]:
    def run(data: bytes) -> str:
        outcome = ""
        for settings in (FrontSettings(), SMALL):
            found = events([data], settings)
            check(found)
            for size in (1, 2, 7):
                want(events(cut(data, size), settings) == found, f"pieces of {size} bytes are read as something else")
            outcome += "+".join(
                one.message.rstrip("0123456789 bytes") if isinstance(one, Fault) else type(one).__name__
                for one in found[-3:]
            )
        return outcome

    yield run


TARGETS = (
    Target(
        name="requests",
        about="node/http_request.RequestReader: the same events however the bytes are cut, each request with one end",
        opened=_requests,
        seeds=seeds,
        words=WORDS,
    ),
)
