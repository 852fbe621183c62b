"""Answers of other servers, as our client understands them: however they are cut, and never as two things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.fuzz.target import Run, Target, want
from bench.fuzz.targets.requests import cut
from node.http_answer import AnswerHead, AnswerReader
from node.settings import HttpSettings

_SMALL = HttpSettings(head_bytes=512, chunk_line_bytes=16, trailer_bytes=64, interim_heads=2)
OK = b"HTTP/1.1 200 OK\r\n"
SEEDS = (
    OK + b"content-length: 5\r\n\r\nhello",
    OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    OK + b"transfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nx: 1\r\n\r\n",
    OK + b"connection: close\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3 + OK + b"\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}",
    OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
    OK + b"content-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
)
WORDS = (
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"200", b"204", b"304", b"100 Continue", b"\r\n\r\n", b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n", b"connection: close\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"ffffffffffff\r\n",
    b"ffffffffffffffff\r\n", b";x", b" ", b"\x0b",
)  # fmt: skip


def _said(pieces: Sequence[bytes], limits: HttpSettings, *, bodiless: bool) -> tuple[AnswerHead | None, bytes, str]:
    """Head, body and what was wrong. When a fault shows, more or less of the body may have come before."""
    reader, body = AnswerReader(limits, bodiless=bodiless), b""
    for piece in pieces:
        if reader.fault or reader.over:
            break
        body += reader.feed(piece)
    reader.eof()
    want(reader.over or reader.fault, "an answer neither ended nor was refused")
    want(not (reader.fault and reader.lasting), "a connection lasts after a fault")
    return reader.head, body, reader.fault


@contextmanager
def _answers() -> Iterator[Run]:
    def run(data: bytes) -> str:
        outcome = ""
        for limits in (HttpSettings(), _SMALL):
            for bodiless in (False, True):
                head, body, fault = _said([data], limits, bodiless=bodiless)
                for size in (1, 3, 16):
                    other = _said(cut(data, size), limits, bodiless=bodiless)
                    # Which of two faults shows first may depend on the pieces; that there is one may not.
                    want(bool(other[2]) == bool(fault), f"pieces of {size} bytes: {other[2]!r} instead of {fault!r}")
                    want(fault or other == (head, body, fault), f"pieces of {size} bytes are read as something else")
                want(not (bodiless and body), "a body where none may be")
                if head is not None and not fault and (length := head.fields.get(b"content-length")) is not None:
                    want(bodiless or head.status in (204, 304) or len(body) == int(length), "another length than said")
                outcome += f"{head.status if head is not None and not fault else 0}/{fault.rstrip('0123456789 bytes')} "
        return outcome

    yield run


TARGETS = (
    Target(
        name="answers",
        about="node/http_answer.AnswerReader: the same answer however the bytes are cut, with one end",
        opened=_answers,
        seeds=lambda: SEEDS,
        words=WORDS,
    ),
)
