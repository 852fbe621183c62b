"""New inputs out of old ones, without knowledge of what the code does with them: for where atheris is not there."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bench.fuzz.target import Target

_BYTES = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b'"',
    b"\\",
    b"{",
    b"[",
    b"\x7f",
    b"\x80",
    b"\xff",
)
_NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"4294967296", b"18446744073709551616", b"1e999", b"NaN", b"0x1")


class Mutator:
    """Of one target."""

    def __init__(self, target: Target, rng: Random) -> None:
        self._rng, self._size_max, self._remake = rng, target.size_max, target.remake
        self._words = (*target.words, *_BYTES, *_NUMBERS)

    def remade(self, data: bytes) -> bytes | None:
        """By its meaning; None when it has none."""
        try:
            return None if self._remake is None else self._remake(data, self._rng)
        except Exception:  # noqa: BLE001 - what it raises says nothing but that
            return None

    def of(self, corpus: Sequence[bytes]) -> bytes:
        """One input like those of `corpus`."""
        rng = self._rng
        old = rng.choice(corpus)
        if rng.random() < 0.6 and (new := self.remade(old)) is not None and len(new) <= self._size_max:
            return new
        data = bytearray(old)
        for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
            self._change(data, corpus)
        return bytes(data[: self._size_max])

    def _change(self, data: bytearray, corpus: Sequence[bytes]) -> None:
        rng, size = self._rng, len(data)
        at = rng.randrange(size + 1)
        end = min(size, at + rng.choice((1, 2, 4, 8, 32, 128)))
        match rng.randrange(8):
            case 0 if at < size:
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < size:
                data[at] = rng.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = rng.choice(self._words)
            case 4:
                data[at:end] = rng.choice(self._words)
            case 5:  # the same again, a few times or many: nesting, long lines
                data[at:at] = bytes(data[at:end] or rng.choice(self._words)) * rng.choice((1, 2, 10, 200))
            case 6:  # a piece of another one
                other = rng.choice(corpus)
                start = rng.randrange(len(other) + 1)
                data[at:at] = other[start : start + rng.choice((4, 16, 64, 256))]
            case _:
                other = rng.choice(corpus)
                data[at:] = other[rng.randrange(len(other) + 1) :]
