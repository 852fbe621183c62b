"""The head of an HTTP/1.1 answer, as bytes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from msgspec import Struct

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Answer(Struct, frozen=True):
    """One that is whole. `fields` say nothing of its length or of the connection: whoever sends it does."""

    status: int
    fields: Mapping[str, str]
    body: bytes


def reply_head(
    status: int, fields: Mapping[str, str], *, date: str, length: int | None, minor: int, keeps: bool
) -> bytes:
    """To a client of HTTP/1.`minor`. `length` in bytes; None: chunked or, for 1.0, up to the end of the connection.

    `keeps`: the connection stays. Control characters in values (names of nodes and models come from elsewhere) become
    "?": none of them ends its line.
    """
    parts = [_LINES.get(status) or f"HTTP/1.1 {status} \r\n"]
    for name, value in fields.items():
        parts.append(f"{name}: {value if value.isprintable() else _CONTROLS.sub('?', value)}\r\n")
    if length is not None:
        parts.append(f"content-length: {length}\r\n")
    elif minor:
        parts.append("transfer-encoding: chunked\r\n")
    if not keeps:
        parts.append("connection: close\r\n")
    elif not minor:
        parts.append("connection: keep-alive\r\n")
    parts.append(f"date: {date}\r\n\r\n")
    return "".join(parts).encode("utf-8", "replace")


def chunk(data: bytes) -> bytes:
    """One of a chunked body; `data` is not empty, which would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data)
