"""What counts as an answer, where it ends, and what is refused because it could end at two places."""

from __future__ import annotations

import pytest

from node.http_answer import AnswerReader
from node.settings import HttpSettings

OK = b"HTTP/1.1 200 OK\r\n"
LIMITS = HttpSettings(head_bytes=300, chunk_line_bytes=32, trailer_bytes=60, interim_heads=2)


def read(*parts: bytes, eof: bool = False, bodiless: bool = False) -> tuple[AnswerReader, bytes]:
    reader = AnswerReader(LIMITS, bodiless=bodiless)
    body = b"".join(reader.feed(part) for part in parts)
    if eof:
        reader.eof()
    return reader, body


def test_a_body_with_a_length() -> None:
    reader, body = read(OK + b"Content-Length: 5\r\nX-A:  b \r\nx-a:c\r\n\r\nhel", b"lo")
    assert (body, reader.over, reader.lasting, reader.fault) == (b"hello", True, True, "")
    assert reader.head is not None
    assert (reader.head.status, reader.head.version) == (200, 1)
    assert reader.head.text(b"x-a") == "b, c"
    assert reader.head.text(b"x-b", "none") == "none"


def test_a_body_in_chunks() -> None:
    chunks = b"5\r\nhello\r\n1;note=x\r\n \r\n00B\r\nfine\r\nworld\r\n0\r\nX-Sum: 1\r\n\r\n"
    reader, body = read(OK + b"transfer-encoding: Chunked\r\n\r\n" + chunks)
    assert (body, reader.over, reader.lasting, reader.fault) == (b"hello fine\r\nworld", True, True, "")


def test_what_has_come_of_a_chunk_is_handed_on_at_once() -> None:
    reader, _ = read(OK + b"transfer-encoding: chunked\r\n\r\n")
    assert [reader.feed(part) for part in (b"a", b"\r\n01234", b"56789\r", b"\n0", b"\r\n\r", b"\n")] == [
        b"", b"01234", b"56789", b"", b"", b"",
    ]  # fmt: skip
    assert reader.over


def test_a_body_until_the_close() -> None:
    reader, body = read(OK + b"\r\nall of it", b"!", eof=True)
    assert (body, reader.over, reader.lasting) == (b"all of it!", True, False)


@pytest.mark.parametrize(
    ("head", "bodiless"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", False),
        (OK + b"Content-Length: 7\r\n\r\n", True),
        (OK + b"Content-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204\r\n\r\n", False),
    ],
)
def test_answers_without_a_body(head: bytes, bodiless: bool) -> None:
    reader, body = read(head, bodiless=bodiless)
    assert (body, reader.over, reader.lasting, reader.fault) == (b"", True, True, "")


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        OK + b"Connection: Keep-Alive, Close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n",  # an answer that nobody asked for
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
    ],
)
def test_connections_that_bear_no_other_answer(head: bytes) -> None:
    reader, _ = read(head)
    assert (reader.over, reader.lasting, reader.fault) == (True, False, "")


def test_more_behind_the_end_spoils_the_connection() -> None:
    reader, _ = read(OK + b"Content-Length: 0\r\n\r\n")
    assert reader.lasting
    reader.feed(b"x")
    assert not reader.lasting


CORPUS = {
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "the same length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "two lengths in one field": OK + b"Content-Length: 5, 5\r\n\r\n",
    "a length with chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks with a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "two codings": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "a coding that looks like chunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n",
    "a signed length": OK + b"Content-Length: +5\r\n\r\n",
    "a hexadecimal length": OK + b"Content-Length: 0x5\r\n\r\n",
    "an empty length": OK + b"Content-Length:\r\n\r\n",
    "a length beyond all bounds": OK + b"Content-Length: 9999999999999\r\n\r\n",
    "a body where none may be": b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n",
    "lines without CR": b"HTTP/1.1 200 OK\nContent-Length: 5\n\n",
    "one line without CR": OK + b"A: b\nContent-Length: 5\r\n\r\n",
    "a bare CR": OK + b"A: b\rContent-Length: 5\r\n\r\n",
    "a folded field": OK + b"A: b\r\n c\r\n\r\n",
    "a field folded by a tab": OK + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\n",
    "a space before the name": OK + b" Content-Length: 5\r\n\r\n",
    "a line without a colon": OK + b"nonsense\r\n\r\n",
    "a field without a name": OK + b": x\r\n\r\n",
    "a null byte": OK + b"A: b\x00c\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status of no class": b"HTTP/1.1 600 What\r\n\r\n",
    "two spaces": b"HTTP/1.1  200 OK\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    "interim answers for ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
    "a head without end": OK + b"A: " + b"x" * 400,
    "a head that is too long": OK + b"A: " + b"x" * 400 + b"\r\n\r\n",
}
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CORPUS |= {
    f"chunk size {size!r}": CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n"
    for size in (b"", b"-5", b"+5", b"0x5", b" 5", b"5 ", b"5_0", b"g", b";x", b"5 ;x", b"5\n", b"5;a\x00", b"5;a\nb")
}
CORPUS |= {
    "a chunk size beyond all bounds": CHUNKED + b"1000000000000\r\n",
    "a chunk size without end": CHUNKED + b"5;" + b"x" * 40,
    "a chunk that is longer": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "a chunk that is shorter": CHUNKED + b"6\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends without CR": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "a trailer that is no field": CHUNKED + b"0\r\nnonsense\r\n\r\n",
    "a trailer without CR": CHUNKED + b"0\r\nA: b\n\r\n",
    "a trailer that is too long": CHUNKED + b"0\r\nA: " + b"x" * 100,
}


@pytest.mark.parametrize("answer", CORPUS.values(), ids=CORPUS)
def test_what_could_be_read_in_two_ways_is_refused(answer: bytes) -> None:
    reader, _ = read(answer)
    assert reader.fault
    assert not reader.over
    assert not reader.lasting
    assert reader.feed(OK + b"Content-Length: 2\r\n\r\nok") == b"", "nothing is believed after it"
    assert not reader.over


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 2", OK + b"Content-Length: 5\r\n\r\nhell", CHUNKED, CHUNKED + b"0\r\n"]
)
def test_a_close_before_the_end_is_a_fault(answer: bytes) -> None:
    reader, _ = read(answer, eof=True)
    assert "closed" in reader.fault
    assert not reader.over
