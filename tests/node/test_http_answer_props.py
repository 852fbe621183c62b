"""An answer means the same however the network cuts it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.http_answer import AnswerHead, AnswerReader
from node.settings import HttpSettings
from tests.node.test_http_answer import CORPUS, LIMITS

Seen = tuple[AnswerHead | None, bytes, bool, bool, bool]

NAMES = st.sampled_from([b"X-A", b"Content-Type", b"Server", b"x-b"])
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=12).map(lambda v: v.hex().encode())), max_size=4)
BODIES = st.lists(st.binary(min_size=1, max_size=30), max_size=5)
INTERIM = st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"])


def seen(parts: list[bytes]) -> Seen:
    """What is believed: nothing of an answer that is refused in its head, else what has been handed on."""
    reader, body = AnswerReader(LIMITS), b""
    for part in parts:
        body += reader.feed(part)
    reader.eof()
    return reader.head, body, reader.over, reader.lasting, bool(reader.fault)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(ends)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The bytes of a good answer, and its body."""
    body, framing = draw(BODIES), draw(st.sampled_from(["length", "chunks", "close"]))
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in draw(FIELDS))
    head = draw(INTERIM) + b"HTTP/1.1 200 OK\r\n" + fields
    whole = b"".join(body)
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(whole) + whole, whole
    if framing == "chunks":
        upper = draw(st.booleans())
        sizes = [(b"%X" if upper else b"%x") % len(part) for part in body]
        chunks = b"".join(size + b"\r\n" + part + b"\r\n" for size, part in zip(sizes, body, strict=True))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", whole
    return head + b"\r\n" + whole, whole


@given(answers(), st.lists(st.integers(min_value=0), max_size=8))
def test_a_good_answer_is_the_same_in_any_pieces(answer: tuple[bytes, bytes], places: list[int]) -> None:
    data, body = answer
    whole = seen([data])
    assert whole[1:3] == (body, True)
    assert seen(cut(data, places)) == whole
    assert seen([data[i : i + 1] for i in range(len(data))]) == whole


def pieces(data: bytes, places: list[int]) -> tuple[Seen, Seen, Seen]:
    return seen([data]), seen(cut(data, places)), seen([data[i : i + 1] for i in range(len(data))])


@given(st.sampled_from(sorted(CORPUS.values())), st.lists(st.integers(min_value=0), max_size=8))
def test_a_bad_answer_is_refused_in_any_pieces(data: bytes, places: list[int]) -> None:
    for head, _, over, lasting, fault in pieces(data, places):
        assert fault
        assert not over
        assert not lasting
        assert head == seen([data])[0]


_WORDS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
]
_WORDS += [
    b"Connection: close\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"3\r\n",
    b"abc",
    b"0\r\n\r\n",
    b"0",
    b" ",
    b":",
    b";",
    b"A: b",
]


@given(st.lists(st.sampled_from(_WORDS), max_size=10).map(b"".join), st.lists(st.integers(min_value=0), max_size=8))
def test_anything_means_the_same_in_any_pieces(data: bytes, places: list[int]) -> None:
    whole, pieced, bytewise = pieces(data, places)
    assert whole == pieced == bytewise


@given(st.integers(min_value=1, max_value=60), st.lists(st.integers(min_value=0), max_size=8))
def test_bounds_do_not_depend_on_the_pieces(size: int, places: list[int]) -> None:
    """At, below and above each bound."""
    settings = HttpSettings(head_bytes=60, chunk_line_bytes=16, trailer_bytes=20)
    pad = b"x" * size
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for data in (
        b"HTTP/1.1 200 OK\r\nA:" + pad + b"\r\n\r\n",
        chunked + b"1;" + pad + b"\r\na\r\n0\r\n\r\n",
        chunked + b"0\r\nA:" + pad + b"\r\n\r\n",
    ):
        results = []
        for parts in ([data], cut(data, places), [data[i : i + 1] for i in range(len(data))]):
            reader = AnswerReader(settings)
            for part in parts:
                reader.feed(part)
            results.append((reader.over, bool(reader.fault)))
        assert len(set(results)) == 1
