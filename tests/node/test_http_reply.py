"""Heads of answers: how their end is told, and that nothing in a value ends its line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.http_reply import chunk, reply_head

DATE = "Fri, 20 Nov 2026 16:00:00 GMT"


def head(
    *, status: int = 200, length: int | None = 5, minor: int = 1, keeps: bool = True, **fields: str
) -> list[bytes]:
    lines = reply_head(status, fields, date=DATE, length=length, minor=minor, keeps=keeps).split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    return lines[:-2]


def test_the_end_of_an_answer_is_told_in_one_way() -> None:
    assert b"content-length: 5" in head()
    assert b"transfer-encoding: chunked" in head(length=None)
    old = head(length=None, minor=0, keeps=False)
    assert old == [b"HTTP/1.1 200 OK", b"connection: close", b"date: " + DATE.encode()]


def test_only_what_is_not_the_rule_is_said_of_the_connection() -> None:
    assert not any(line.startswith(b"connection") for line in head())
    assert b"connection: close" in head(keeps=False)
    assert b"connection: keep-alive" in head(minor=0)


def test_a_status_without_a_name_is_still_a_status_line() -> None:
    assert head(status=499)[0] == b"HTTP/1.1 499 "


@given(value=st.text(max_size=40))
def test_no_value_ends_its_line(value: str) -> None:
    lines = head(x=value)
    assert len(lines) == 4
    assert not any(byte < 0x20 and byte != 0x09 for line in lines for byte in line)


def test_a_value_that_is_text_goes_out_as_it_is() -> None:
    assert "x: Küche".encode() in head(x="Küche")
    assert b"x: a?b" in head(x="a\nb")


def test_a_chunk() -> None:
    assert chunk(b"a" * 26) == b"1a\r\n" + b"a" * 26 + b"\r\n"
