"""The request reader: what it takes, what it refuses, and that it does not matter how the bytes were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http_request import Data, End, Event, Fault, Head, RequestReader
from node.settings import FrontSettings
from tests.node.smuggling import BODIES, HEADS

HOST = b"Host: x\r\n"
SMALL = FrontSettings(head_bytes=400, target_bytes=100, fields_max=8, chunk_line_bytes=32, framing_bytes=200)


def read(pieces: list[bytes], settings: FrontSettings | None = None) -> list[Event]:
    """All requests in `pieces`; neighbouring Data put together, as their borders mean nothing."""
    reader, events = RequestReader(settings or FrontSettings()), list[Event]()
    for piece in pieces:
        reader.feed(piece)
        while (event := reader.next()) is not None:
            if isinstance(event, Data) and events and isinstance(events[-1], Data):
                event = Data(events.pop().data + event.data)  # type: ignore[union-attr]  # it is one, the line above says
            events.append(event)
            if isinstance(event, End):
                assert reader.whole
                reader.again()
    return events


def head_of(text: bytes) -> Head:
    head = read([text])[0]
    assert isinstance(head, Head), head
    return head


def body_of(text: bytes) -> bytes:
    events = read([text])
    assert isinstance(events[-1], End)
    return b"".join(event.data for event in events if isinstance(event, Data))


def test_a_request_with_a_body_by_length() -> None:
    text = b"POST /v1/x?a=b HTTP/1.1\r\nHost: x\r\nCONTENT-length: \t5 \t\r\nX-Empty:\r\nX-A: b  c\r\n\r\nhello"
    head = head_of(text)
    assert (head.method, head.target, head.length, head.keeps, head.minor) == ("POST", "/v1/x?a=b", 5, True, 1)
    assert head.fields == {"host": "x", "content-length": "5", "x-empty": "", "x-a": "b  c"}
    assert body_of(text) == b"hello"


def test_a_request_without_a_body_is_whole_at_once() -> None:
    events = read([b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"])
    assert [type(event) for event in events] == [Head, End]


def test_chunks_with_extensions_and_trailers() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    assert head_of(head).length is None
    body = b'5;name="v"\r\nhello\r\n00a\r\n, my world\r\n000\r\nX-Sum: 7\r\nX-More:\r\n\r\n'
    assert body_of(head + body) == b"hello, my world"
    assert body_of(head + b"0\r\n\r\n") == b""


def test_requests_in_one_piece_come_one_at_a_time() -> None:
    reader = RequestReader(FrontSettings())
    one = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    reader.feed(one + b"\r\n" + one)
    assert isinstance(reader.next(), Head)
    assert reader.unread() == one + b"\r\n" + one
    assert reader.next() == Data(b"hi")
    assert reader.next() == End()
    assert reader.next() is None
    assert reader.waiting == len(one) + 2
    reader.again()
    assert isinstance(reader.next(), Head)
    assert reader.unread() == one, "an empty line before a request is let go"


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        ("1.1", None, True),
        ("1.1", "Close", False),
        ("1.1", "Upgrade, HTTP2-Settings", True),
        ("1.1", "upgrade ,\tclose", False),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_who_keeps_a_connection(version: str, connection: str | None, keeps: bool) -> None:
    field = f"Connection: {connection}\r\n" if connection else ""
    assert head_of(f"GET / HTTP/{version}\r\nHost: x\r\n{field}\r\n".encode()).keeps is keeps


def test_fields_said_twice_are_one_list() -> None:
    head = head_of(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: a\r\nX: 1\r\nx: 2 \r\nconnection: close\r\n\r\n")
    assert head.fields == {"host": "x", "connection": "a, close", "x": "1, 2"}
    assert not head.keeps


def test_values_outside_ascii_pass() -> None:
    assert head_of(b"GET / HTTP/1.1\r\nHost: x\r\nX: caf\xc3\xa9\r\n\r\n").fields["x"] == "caf\u00c3\u00a9"


def test_expect() -> None:
    assert head_of(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n").expects
    assert not head_of(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").expects
    (fault,) = read([b"POST / HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nContent-Length: 1\r\n\r\n"])
    assert isinstance(fault, Fault)
    assert fault.status == 417


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused(name: str) -> None:
    (fault,) = read([HEADS[name]])
    assert isinstance(fault, Fault), fault
    assert fault.status == 400
    assert read([bytes([byte]) for byte in HEADS[name]]) == [fault]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_can_be_read_in_two_ways_is_refused(name: str) -> None:
    events = read([BODIES[name]])
    assert isinstance(events[0], Head)
    assert isinstance(events[-1], Fault)
    assert events[-1].status == 400
    assert not any(isinstance(event, End) for event in events)
    assert read([bytes([byte]) for byte in BODIES[name]]) == events


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 8 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 400 + b"\r\n\r\n", 431),
        (b"G" * 400, 431),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 60, 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"b" * 400, 400),
    ],
)
def test_every_bound_has_its_answer(text: bytes, status: int) -> None:
    events = read([text], SMALL)
    assert isinstance(events[-1], Fault)
    assert events[-1].status == status
    assert read([bytes([byte]) for byte in text], SMALL) == events


def test_nothing_is_read_after_a_fault() -> None:
    reader = RequestReader(FrontSettings())
    reader.feed(b"\0")
    assert isinstance(reader.next(), Fault)
    reader.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reader.next() is None
    assert not reader.whole


# Any cut of anything

chunks = st.lists(st.binary(min_size=1, max_size=20), max_size=4)
names = st.text("abcXYZ-_0", min_size=1, max_size=8)
values = st.text(st.characters(codec="latin-1", min_codepoint=32, exclude_characters="\x7f"), max_size=12)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    fields = draw(st.lists(st.tuples(names, values), max_size=3))
    lines = [b"Host: x", *(f"X-{name}: {value}".encode("latin-1") for name, value in fields)]
    body = draw(st.none() | st.binary(max_size=40) | chunks)
    if isinstance(body, bytes):
        lines.append(b"Content-Length: %d" % len(body))
        text = body
    elif body is not None:
        lines.append(b"Transfer-Encoding: chunked")
        text = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in body) + b"0\r\n\r\n"
    else:
        text = b""
    return b"POST /v1/x HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + text


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Requests, one after the other, with some bytes of them replaced, added or lost."""
    text = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text) - 1))
        text[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from((b"\r", b"\n", b"\r\n", b"\0", b" ", b":", b""))
        )
        if not text:
            break
    return bytes(text)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(borders)]


@given(
    text=st.lists(requests(), min_size=1, max_size=3).map(b"".join) | spoilt(),
    places=st.lists(st.integers(0), max_size=12),
)
def test_however_the_bytes_are_cut_the_events_are_the_same(text: bytes, places: list[int]) -> None:
    for settings in (None, SMALL):
        whole = read([text], settings)
        assert read(cut(text, places), settings) == whole
        assert read([bytes([byte]) for byte in text], settings) == whole


@given(parts=st.lists(requests(), min_size=1, max_size=3))
def test_what_is_well_formed_is_read_to_its_end(parts: list[bytes]) -> None:
    events = read([b"".join(parts)])
    assert sum(isinstance(event, Head) for event in events) == len(parts)
    assert sum(isinstance(event, End) for event in events) == len(parts)
    assert not any(isinstance(event, Fault) for event in events)


@given(text=st.binary(max_size=200))
def test_no_bytes_raise(text: bytes) -> None:
    read([b"POST / HTTP/1.1\r\nHost: x\r\n" + text])
    read([b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + text])
    read([text])


def test_a_head_of_spaces_takes_one_pass() -> None:
    """A pattern that goes back would take longer than this test may."""
    big = FrontSettings(head_bytes=2**20)
    (fault,) = read([b"GET / HTTP/1.1\r\nHost:" + b" " * (2**19) + b"\0\r\n\r\n"], big)
    assert isinstance(fault, Fault)
