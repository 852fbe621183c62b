"""HTTP/1.1 requests out of bytes (RFC 9112), strictly: what two readers could understand differently is a Fault.

Pure: `feed` bytes as they come, in pieces of any size, and ask for the `next` event. However the bytes are cut, the
events are the same. A carried request goes on to another server as we understood it, so there is nothing to gain from
leniency and a request smuggled past somebody to lose: the grammar is written down here, in full, and everything else is
refused. Obsolete forms that RFC 9112 lets a server refuse are refused: folded lines (5.2), bare LF (2.2), white space
before a colon (5.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import TypeAlias
from urllib.parse import unquote

from msgspec import Struct

from node.settings import FrontSettings


class Head(Struct, frozen=True):
    """A request before its body. `fields`: names in lower case, values without outer white space, decoded as Latin-1;
    a name said twice has its values joined by ", " (RFC 9110, 5.3). `length` in bytes, None = chunked."""

    method: str
    target: str  # as sent
    fields: Mapping[str, str]
    length: int | None
    keeps: bool  # the connection may serve another request after this one
    minor: int  # of the version: HTTP/1.`minor`
    expects: bool  # the client waits for 100 before it sends the body


class Data(Struct, frozen=True):
    """Some of the body, never empty."""

    data: bytes


class End(Struct, frozen=True):
    """The request is whole."""


class Fault(Struct, frozen=True):
    """Nothing after this can be trusted: answer `status` and close."""

    status: int
    message: str


Event: TypeAlias = Head | Data | End | Fault

_LENGTH = re.compile(r"0|[1-9][0-9]{0,14}")
# Possessive (`*+`) throughout: no bytes make any of these go back, so none take more than one pass.
_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = r"[\t\x20-\x7e\x80-\xff]*+"
_HEAD = re.compile(rf"([A-Z]{{1,20}}+) ([\x21-\x7e]++) HTTP/1\.([01])\r\n((?:{_NAME}:{_VALUE}\r\n)*+)\r\n")
_FIELD = re.compile(rf"({_NAME}):[ \t]*+({_VALUE})\r\n")
_TRAILERS = re.compile(rf"(?:{_NAME}:{_VALUE}\r\n)*+\r\n".encode("latin-1"))
_OTHER_VERSION = re.compile(r"[A-Z]+ [\x21-\x7e]+ HTTP/[0-9]\.[0-9]\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8}+)(?:;[\t\x20-\x7e\x80-\xff]*+)?+\r\n")
_CHUNK_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,8}+(?:;[\t\x20-\x7e\x80-\xff]*+)?+\r?+)?")
_BARE_LF = re.compile(rb"(?<!\r)\n")

_ABSOLUTE = re.compile(r"https?://[^/?#]++", re.IGNORECASE)

_BARE = "a line of the request ends without CR"
_BAD_CHUNK = "the chunked body is broken"
_END = End()


class _At(Enum):
    """What the next byte belongs to."""

    HEAD = auto()
    LENGTH = auto()  # a body of known length
    SIZE = auto()  # of a chunk
    CHUNK = auto()  # its bytes and the CRLF after them
    TRAILERS = auto()
    DONE = auto()  # `again` begins the next request
    BROKEN = auto()


class RequestReader:
    """One connection's requests, one at a time: after `End` nothing is read until `again`."""

    def __init__(self, settings: FrontSettings) -> None:
        self._settings = settings
        self._buffer = b""
        self._place = 0  # in it
        self._head_place = 0  # where the present head began
        self._at = _At.HEAD
        self._left = 0  # bytes of the body, or of its present chunk
        self._framing = 0

    @property
    def waiting(self) -> int:
        """Bytes that were fed and are not part of any event yet."""
        return len(self._buffer) - self._place

    @property
    def whole(self) -> bool:
        """The last request was read to its end, and nothing was wrong with it."""
        return self._at is _At.DONE

    def feed(self, data: bytes) -> None:
        if self._place == len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._place :] + data
        self._place = 0

    def again(self) -> None:
        """The last request is dealt with: what follows is another one's head."""
        assert self._at is _At.DONE
        self._at = _At.HEAD

    def unread(self) -> bytes:
        """Right after a Head: everything from its first byte on, for another reader."""
        return self._buffer[self._head_place :]

    def next(self) -> Event | None:
        """None: more bytes are needed, or `again`. After a Fault nothing comes any more."""
        while True:
            match self._at:
                case _At.HEAD:
                    return self._read_head()
                case _At.LENGTH:
                    return self._data() if self._left else self._done()
                case _At.SIZE:
                    if (fault := self._read_size()) is not None or self._at is _At.SIZE:
                        return fault
                case _At.CHUNK if self._left:
                    return self._data()
                case _At.CHUNK:
                    if (fault := self._end_chunk()) is not None or self._at is _At.CHUNK:
                        return fault
                case _At.TRAILERS:
                    return self._read_trailers()
                case _At.DONE | _At.BROKEN:
                    return None

    def _done(self) -> End:
        self._at = _At.DONE
        return _END

    def _fault(self, status: int, message: str) -> Fault:
        self._at, self._buffer, self._place = _At.BROKEN, b"", 0
        return Fault(status, message)

    def _data(self) -> Data | None:
        place, buffer = self._place, self._buffer
        end = min(place + self._left, len(buffer))
        if end == place:
            return None
        self._place = end
        self._left -= end - place
        return Data(buffer if end - place == len(buffer) else buffer[place:end])

    # Heads

    def _read_head(self) -> Head | Fault | None:
        buffer, place = self._buffer, self._place
        if buffer.startswith(b"\r", place):  # One empty line before a request is let go (RFC 9112, 2.2).
            if not buffer.startswith(b"\r\n", place):
                return self._fault(400, "this is no HTTP request") if len(buffer) > place + 1 else None
            place += 2
        if len(buffer) == place:
            return None
        if not 0x41 <= buffer[place] <= 0x5A:
            return self._fault(400, "this is no HTTP request")
        limit = place + self._settings.head_bytes
        end = buffer.find(b"\r\n\r\n", place, limit)
        if end < 0:
            if _BARE_LF.search(buffer, place, limit) is not None:
                return self._fault(400, _BARE)
            if len(buffer) >= limit:
                return self._fault(431, f"the head is larger than {self._settings.head_bytes} bytes")
            return None
        head = self._parse(buffer[place : end + 4].decode("latin-1"))
        if isinstance(head, Fault):
            return head
        self._head_place, self._place, self._framing = place, end + 4, 0
        self._at, self._left = (_At.SIZE, 0) if head.length is None else (_At.LENGTH, head.length)
        return head

    def _parse(self, text: str) -> Head | Fault:
        match = _HEAD.fullmatch(text)
        if match is None:
            return self._why(text)
        method, target, minor, lines = match.groups()
        if len(target) > self._settings.target_bytes:
            return self._fault(414, f"the URL is longer than {self._settings.target_bytes} bytes")
        said = _FIELD.findall(lines)
        if len(said) > self._settings.fields_max:
            return self._fault(431, f"the head has more than {self._settings.fields_max} fields")
        fields = {name.lower(): value.rstrip(" \t") for name, value in said}
        if len(fields) != len(said):
            fields = _joined(said)
            for name in ("content-length", "transfer-encoding", "host"):
                if sum(one.lower() == name for one, _ in said) > 1:
                    return self._fault(400, f"{name} is said twice")
        if minor == "1" and "host" not in fields:
            return self._fault(400, "host is missing")
        length = _length(fields, minor)
        if isinstance(length, str):
            return self._fault(400, length)
        expect = fields.get("expect")
        if expect is not None and (expect.lower() != "100-continue"):
            return self._fault(417, "expect can only be 100-continue")
        keeps = minor == "1"
        if (connection := fields.get("connection")) is not None:
            tokens = {token.strip(" \t") for token in connection.lower().split(",")}
            keeps = "close" not in tokens and (keeps or "keep-alive" in tokens)
        return Head(method, target, fields, length, keeps, int(minor), expect is not None and minor == "1")

    def _why(self, text: str) -> Fault:
        """What is wrong with this head, in the words of whoever has to mend it."""
        if _BARE_LF.search(text.encode("latin-1")) is not None:
            return self._fault(400, _BARE)
        line, _, fields = text.partition("\r\n")
        if _HEAD.fullmatch(f"{line}\r\n\r\n") is None:
            if _OTHER_VERSION.match(f"{line}\r\n") is not None:
                return self._fault(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
            return self._fault(400, "the request line is malformed")
        for place, one in enumerate(fields.split("\r\n")[:-2]):
            if _FIELD.fullmatch(f"{one}\r\n") is None:
                what = "is folded" if one.startswith((" ", "\t")) else "is malformed"
                return self._fault(400, f"header line {place + 1} {what}")
        return self._fault(400, "the head is malformed")

    # Chunks

    def _read_size(self) -> Fault | None:
        """Moves on to the chunk or, after the last, to what may follow it."""
        limit = self._settings.chunk_line_bytes
        line = self._buffer[self._place : self._place + limit]
        match = _CHUNK.match(line)
        if match is None:
            if _CHUNK_BEGUN.fullmatch(line) is None or len(line) == limit:
                return self._fault(400, _BAD_CHUNK)
            return None
        self._place += match.end()
        self._framing += match.end() + 2
        if self._framing > self._settings.framing_bytes:
            return self._fault(400, "the chunks of the body are too small, and too many")
        self._left = int(match[1], 16)
        self._at = _At.CHUNK if self._left else _At.TRAILERS
        return None

    def _end_chunk(self) -> Fault | None:
        ending = self._buffer[self._place : self._place + 2]
        if ending != b"\r\n"[: len(ending)]:
            return self._fault(400, _BAD_CHUNK)
        if len(ending) == 2:
            self._place += 2
            self._at = _At.SIZE
        return None

    def _read_trailers(self) -> End | Fault | None:
        """Fields after the body: their form is checked, and nobody asks for them."""
        buffer, place = self._buffer, self._place
        if buffer.startswith(b"\r\n", place):
            self._place += 2
            return self._done()
        limit = place + self._settings.head_bytes
        end = buffer.find(b"\r\n\r\n", place, limit)
        if end < 0:
            if _BARE_LF.search(buffer, place, limit) is not None or len(buffer) >= limit:
                return self._fault(400, _BAD_CHUNK)
            return None
        if _TRAILERS.fullmatch(buffer, place, end + 4) is None:
            return self._fault(400, _BAD_CHUNK)
        self._place = end + 4
        return self._done()


def path_of(target: str) -> str:
    """The path of a request's target, percent-decoded, without its query. Empty for `*` and the like."""
    if not target.startswith("/"):
        match = _ABSOLUTE.match(target)  # as to a proxy (RFC 9112, 3.2.2)
        target = target[match.end() :] if match is not None else ""
    path = target.partition("?")[0]
    return unquote(path) if "%" in path else path


def _joined(said: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in said:
        key, one = name.lower(), value.rstrip(" \t")
        fields[key] = f"{fields[key]}, {one}" if key in fields else one
    return fields


def _length(fields: Mapping[str, str], minor: str) -> int | str | None:
    """Bytes of the body, None when it is chunked; a text says what is wrong."""
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        if length is not None:
            return "content-length and transfer-encoding exclude each other"
        if coding.lower() != "chunked":
            return "transfer-encoding can only be chunked"
        return None if minor == "1" else "HTTP/1.0 has no transfer-encoding"
    if length is None:
        return 0
    return int(length) if _LENGTH.fullmatch(length) is not None else "content-length is no number of bytes"
