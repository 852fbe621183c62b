"""What one target of the fuzzer is: where bytes of others come in, and what may come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from random import Random
from typing import TypeAlias

from msgspec import Struct

# Takes one input and says in a word what came of it ("ok", or the code of a documented error). Raises nothing: what it
# raises is a defect that was found.
Run: TypeAlias = Callable[[bytes], str]


class Defect(Exception):  # noqa: N818 - what a target calls what it has found
    """What came of an input is not what was promised, though nothing was raised."""


class Target(Struct, frozen=True, kw_only=True):
    """`about` names the code that is asked, for people. `opened` gives a Run, which may keep what a daemon keeps from
    one input to the next; it is made anew for each corpus or run. `words` are pieces that inputs are made of,
    `remake` makes another input of one by what it means (bench/fuzz/trees.py); it may raise anything."""

    name: str
    about: str
    opened: Callable[[], AbstractContextManager[Run]]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    remake: Callable[[bytes, Random], bytes] | None = None
    size_max: int = 4096  # bytes of one input


def want(holds: object, what: str) -> None:
    """Raises Defect, saying `what` is not so."""
    if not holds:
        raise Defect(what)
