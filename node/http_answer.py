"""What does an HTTP/1.1 server answer? Bytes in, head and body out, however the network cut them. Pure.

Strict: an answer whose end two readers could see at two places is refused (RFC 9112 sections 5-7 and 11), because the
rest of such an answer would be taken for the next one on the same connection.
"""

from __future__ import annotations

import re

from msgspec import Struct

from node.settings import HttpSettings

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*"  # tab is allowed, CR and LF are not
_STATUS = rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + _TEXT + rb")?"
_FIELDS = rb"(?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*"
_HEAD = re.compile(_STATUS + rb"\r\n(" + _FIELDS + rb")")
_STATUS_LINE = re.compile(_STATUS)
_FIELD_LINES = re.compile(_FIELDS)
_FIELD_LINE = re.compile(_TOKEN + rb":" + _TEXT)
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*(" + _TEXT + rb")\r\n")
_EXTENSION = re.compile(_TEXT)
_START = b"HTTP/1."
_HEX = b"0123456789abcdefABCDEF"
_SIZE_DIGITS = 12  # of one chunk, and of a length: more than any disk holds
_NO_SIZE, _MISFIT = "the size of a chunk is no number", "a chunk is not as long as it says"
_HEAD_PART, _LENGTH, _CHUNKS, _TRAILER, _UNTIL_CLOSE, _AFTER, _REFUSED = range(7)


class AnswerHead(Struct, frozen=True):
    """Status line and fields of one answer. Names are in lower case; a field that came twice is joined with commas."""

    status: int
    version: int  # the x of HTTP/1.x
    fields: dict[bytes, bytes]

    def text(self, name: bytes, default: str = "") -> str:
        """A field's value as text."""
        value = self.fields.get(name)
        return default if value is None else value.decode("utf-8", "replace")


class AnswerReader:
    """Reads one answer. `feed` what comes, `eof` when the server closes; look at the attributes after each.

    `head` is set once it is whole, `over` at the answer's end, `fault` (and nothing more happens) when what came means
    nothing or two things. `lasting`: another answer may follow on this connection; valid once `over`.
    """

    __slots__ = (
        "_bodiless", "_held", "_interim", "_left", "_limits", "_part", "fault", "head", "lasting", "over", "untouched",
    )  # fmt: skip

    def __init__(self, limits: HttpSettings, *, bodiless: bool = False) -> None:
        """`bodiless`: the question was HEAD."""
        self._limits, self._bodiless = limits, bodiless
        self.head: AnswerHead | None = None
        self.over = self.lasting = False
        self.fault = ""
        self.untouched = True  # nothing has come
        self._part = _HEAD_PART
        self._held = b""  # of a line that is not whole yet
        self._left = -1  # bytes of the body, or of the present chunk, still to come; -1: a chunk's size comes next
        self._interim = 0

    def feed(self, data: bytes) -> bytes:
        """The part of the body that `data` holds."""
        part = self._part
        if part == _CHUNKS:
            return self._in_chunks(data)
        if part == _HEAD_PART:
            return self._in_head(data)
        if part == _LENGTH:
            return self._in_length(data)
        if part == _UNTIL_CLOSE:
            return data
        if part == _TRAILER:
            self._in_trailer(data)
        elif data:
            self.lasting = False  # nobody asked for more
        return b""

    def eof(self) -> None:
        """The server closed: the end of an answer without a length, a fault in the midst of any other."""
        self.lasting = False
        if self.over or self.fault:
            return
        if self._part == _UNTIL_CLOSE:
            self.over = True
        elif self.head is None:
            self.fault = "it closed the connection before its answer"
        else:
            self.fault = "it closed the connection in the middle of its answer"

    # One method for each part of an answer

    def _in_head(self, data: bytes) -> bytes:
        self.untouched = self.untouched and not data
        data = self._held + data if self._held else data
        while True:
            end = data.find(b"\r\n\r\n")
            head = data[: end + 2] if end >= 0 else data[:-1]  # without the half of the end that may be there
            if not data.startswith(_START[: len(data)]):
                return self._refuse("its first line is not that of an HTTP/1 answer")
            if len(head) > self._limits.head_bytes:
                return self._refuse(f"its head is longer than {self._limits.head_bytes} bytes")
            if end < 0:
                self._held = data
                return self._refuse("a line of its head ends without CR") if _bare_lf(data) else b""
            if (why := self._read(head)) is not None:
                return self._refuse(why)
            data = data[end + 4 :]
            if self.head is not None:
                self._held = b""
                return self.feed(data) if data else b""

    def _read(self, raw: bytes) -> str | None:
        """What is wrong with this head, or None; an interim one (1xx) leaves nothing behind."""
        found = _HEAD.fullmatch(raw)
        if found is None:
            return _fault_of(raw)
        status = int(found[2])
        if status < 200:
            self._interim += 1
            if status == 101:
                return "it switched to another protocol, which nobody asked for"
            return "it sends interim answers without end" if self._interim > self._limits.interim_heads else None
        fields: dict[bytes, bytes] = {}
        for written, value in _FIELD.findall(found[3]):
            name = written.lower()
            if name not in fields:
                fields[name] = value.rstrip(b" \t")
            elif name in (b"content-length", b"transfer-encoding"):
                return f"it says {name.decode()} twice"
            else:
                fields[name] += b", " + value.rstrip(b" \t")
        head = AnswerHead(status, int(found[1]), fields)
        why = self._frame(head)
        if why is None:
            self.head = head
            self.over = self._part == _AFTER
        return why

    def _frame(self, head: AnswerHead) -> str | None:
        """Where will this answer end? What makes that ambiguous, or None."""
        length, coding = head.fields.get(b"content-length"), head.fields.get(b"transfer-encoding")
        connection = head.fields.get(b"connection", b"").lower()
        self.lasting = head.version == 1 and (not connection or b"close" not in connection)
        if length is not None and not (length.isdigit() and len(length) <= _SIZE_DIGITS):
            return "its content-length is no number"
        if coding is not None:
            if length is not None:
                return "it says both a content-length and a transfer-encoding"
            if head.version == 0:
                return "it says transfer-encoding in HTTP/1.0"
            if coding.lower() != b"chunked":
                return "its transfer-encoding is not chunked"
        if self._bodiless or head.status in (204, 304):
            if head.status == 204 and (coding is not None or length not in (None, b"0")):
                return "it says a body where none may be"
            self._part = _AFTER
        elif coding is not None:
            self._part = _CHUNKS
        elif length is not None:
            self._left = int(length)
            self._part = _LENGTH if self._left else _AFTER
        else:
            self.lasting, self._part = False, _UNTIL_CLOSE
        return None

    def _in_length(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left > 0:
            return data
        body = data[: self._left] if self._left else data
        self._end(surplus=self._left < 0)
        return body

    def _in_chunks(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        at, size, left = 0, len(data), self._left
        if left < 0 and (line_end := data.find(b"\r\n", 0, _SIZE_DIGITS + 2)) > 0:
            line = data[:line_end]
            if not line.translate(None, _HEX) and int(line, 16) == size - line_end - 4 > 0 and data.endswith(b"\r\n"):
                return data[line_end + 2 : -2]  # one chunk and nothing else, as nearly all come
        parts: list[bytes] = []
        while True:
            if left < 0:  # between two chunks
                line_end = data.find(b"\r\n", at, at + self._limits.chunk_line_bytes)
                if line_end < 0:
                    self._hold_line(data[at:])
                    break
                left, at = _chunk_size(data[at:line_end]), line_end + 2
                if left <= 0:
                    self._last_chunk(left, data[at:])
                    break
            end = at + left
            if size < end + 2:
                parts.append(data[at:end])
                self._left = max(0, end - size)
                self._held = data[end:]
                if self._held not in (b"", b"\r"):
                    self._refuse(_MISFIT)
                break
            if data[end : end + 2] != b"\r\n":
                self._refuse(_MISFIT)
                break
            parts.append(data[at:end])
            at, left, self._left = end + 2, -1, -1
            if at == size:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hold_line(self, line: bytes) -> None:
        """The size of a chunk has not come whole."""
        self._left, self._held = -1, line
        if len(line) >= self._limits.chunk_line_bytes or b"\n" in line:
            self._refuse(_NO_SIZE)

    def _last_chunk(self, size: int, rest: bytes) -> None:
        if size < 0:
            self._refuse(_NO_SIZE)
        else:
            self._part = _TRAILER
            self._in_trailer(rest)

    def _in_trailer(self, data: bytes) -> None:
        """Fields behind the last chunk say nothing we want, but they must end."""
        data = self._held + data if self._held else data
        if data.startswith(b"\r\n"):
            self._end(surplus=len(data) > 2)
            return
        end = data.find(b"\r\n\r\n")
        if len(data) - 3 > self._limits.trailer_bytes if end < 0 else end > self._limits.trailer_bytes:
            self._refuse(f"its trailer is longer than {self._limits.trailer_bytes} bytes")
        elif end < 0:
            self._held = data
            if _bare_lf(data):
                self._refuse("a line of its trailer ends without CR")
        elif _FIELD_LINES.fullmatch(data, 0, end + 2) is None:
            self._refuse("its trailer is broken")
        else:
            self._end(surplus=len(data) > end + 4)

    def _end(self, *, surplus: bool) -> None:
        self._part, self._held = _AFTER, b""
        self.over = True
        self.lasting = self.lasting and not surplus

    def _refuse(self, why: str) -> bytes:
        self.fault, self._part, self.lasting, self._held = why, _REFUSED, False, b""
        return b""


def _chunk_size(line: bytes) -> int:
    """-1: it is none. `int` alone would take signs, spaces, underscores and 0x."""
    if line.translate(None, _HEX) or not 0 < len(line) <= _SIZE_DIGITS:
        line, extended, extension = line.partition(b";")
        odd = not extended or line.translate(None, _HEX) or not 0 < len(line) <= _SIZE_DIGITS
        if odd or _EXTENSION.fullmatch(extension) is None:
            return -1
    return int(line, 16)


def _bare_lf(data: bytes) -> bool:
    return data.count(b"\n") != data.count(b"\r\n")


def _fault_of(head: bytes) -> str:
    """Why a head that ends as it should does not match."""
    if _bare_lf(head):
        return "a line of its head ends without CR"
    status, *lines = head[:-2].split(b"\r\n")
    if _STATUS_LINE.fullmatch(status) is None:
        return "its first line is not that of an HTTP/1 answer"
    for line in lines:
        if line.startswith((b" ", b"\t")):
            return "a field of its head goes on in the next line"
        if _FIELD_LINE.fullmatch(line) is None:
            return "a line of its head is no field"
    return "its head is broken"
