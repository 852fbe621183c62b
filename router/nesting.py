"""How deep does a JSON text nest? Told without reading it: readers recurse, here and in model servers, each to a bound
of its own, and what one of them still reads may be the end of the next."""

from __future__ import annotations

import re
from itertools import accumulate

_REST = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed numbers: one deeper, one less deep
_STRING = re.compile(rb'"[^"]*+"')


def is_flat(body: bytes, limit: int) -> bool:
    """It cannot nest deeper than `limit`. False says nothing."""
    if len(body) <= limit:
        return True
    seen = 0
    for mark in (b"[", b"{"):
        at = body.find(mark)  # which is much faster than `count` where there are few
        while at >= 0:
            seen += 1
            if seen > limit:
                return False
            at = body.find(mark, at + 1)
    return True


class Nesting:
    """Fed with a text in slices of any size: so that nobody waits for the whole of a long one."""

    def __init__(self) -> None:
        self.deepest = 0
        self._depth = 0
        self._quoted = False  # the slice before ended inside a string,
        self._odd = False  # and with half an escape

    def feed(self, data: bytes) -> int:
        """How deep the text has been so far. Takes about a nanosecond for each byte of text, 30 for a bracket."""
        if self._odd:
            data = b"\\" + data
        if b"\\" in data:
            left = data.replace(b"\\\\", b"")
            self._odd = left.endswith(b"\\")
            data = left.replace(b'\\"', b"")
        else:
            self._odd = False
        marks = data.translate(None, _REST)
        if self._quoted:
            marks = b'"' + marks
        plain, self._quoted = _outside(marks)
        if plain:
            steps = memoryview(plain.translate(_STEPS)).cast("b")
            depths = list(accumulate(steps, initial=self._depth))
            self._depth = depths[-1]
            self.deepest = max(self.deepest, *depths)
        return self.deepest


def _outside(marks: bytes) -> tuple[bytes, bool]:
    """The brackets outside strings, and whether the last string goes on."""
    if b'"' not in marks:
        return marks, False
    left = _STRING.sub(b"", marks)
    before, quote, _ = left.partition(b'"')
    return before, bool(quote)


def deeper_than(body: bytes, limit: int) -> bool:
    """Whether arrays and objects stand inside each other more than `limit` deep. Says either of what is no JSON."""
    return not is_flat(body, limit) and Nesting().feed(body) > limit
