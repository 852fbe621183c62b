"""New inputs out of old ones where bytes are a tree of values (JSON, msgpack, YAML): a byte changed at random is mostly
no JSON any more, and says nothing of what reads the values."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import inf, nan
from random import Random
from typing import Any

_STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 65535, 65536, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
    0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, inf, -inf, nan,
    "", "a", "\0", "\n", "\r\n", "../..", "\u00fc", "\u2028", "127.0.0.1", "::1%1", "x" * 300, "x" * 5000,
    [], {}, [[]], {"": None}, [None] * 300, [[[[[[[[]]]]]]]],
)  # fmt: skip

_SLOTS_MAX = 2000  # values of a tree that is still changed


def deep(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


def changed(value: Any, rng: Random) -> Any:
    """Another tree like it; `value` stays as it is."""
    root = [deepcopy(value)]
    for left in reversed(range(rng.choice((1, 1, 1, 2, 3, 6)))):
        slots = _slots(root)
        if len(slots) >= _SLOTS_MAX:
            break
        holder, key = rng.choice(slots)
        # Many copies of many copies are more than any input may be, and than this process can hold.
        _change(holder, key, slots, rng, copies=2 if left else rng.choice((1, 2, 50)))
    return root[0] if root else None


def _slots(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every place of a value: its list or dict, and where there."""
    found: list[tuple[Any, Any]] = []
    left: list[Any] = [root]
    while left and len(found) < _SLOTS_MAX:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                left.append(holder[key])
    return found or [([None], 0)]


def _change(holder: Any, key: Any, slots: list[tuple[Any, Any]], rng: Random, copies: int) -> None:
    old = holder[key]
    match rng.randrange(9):
        case 0 | 1:
            holder[key] = deepcopy(rng.choice(_STRANGE))
        case 2:
            holder[key] = _near(old, rng)
        case 3:
            del holder[key]
            if holder == [] and rng.random() < 0.5:
                holder.append(None)
        case 4:  # that of another place
            other, where = rng.choice(slots)
            if _has(other, where):
                holder[key] = deepcopy(other[where])
        case 5 if isinstance(holder, list):
            holder[key:key] = [deepcopy(old)] * copies
        case 5:
            holder[rng.choice(("", "type", "id", "x", 1, None))] = deepcopy(old)
        case 6:
            holder[key] = rng.choice(([old], {"": old}, [old, old]))
        case 7 if isinstance(holder, dict):
            other, where = rng.choice(slots)
            if isinstance(where, str):
                holder[where] = holder.pop(key)
        case _:
            holder[key] = deep(rng.choice((3, 100, 1500))) if rng.random() < 0.1 else _near(old, rng)


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _near(old: Any, rng: Random) -> Any:
    match old:
        case bool():
            return not old
        case int() | float():
            return rng.choice((old + 1, old - 1, -old, old * 2, float(old) if abs(old) < 1e300 else 0.0, str(old)))
        case str():
            at = rng.randrange(len(old) + 1)
            return rng.choice(
                (old[:at], old[at:], old + old, old[:at] + rng.choice("\0\n: -/%\u00e9\U0001f600") + old[at:])
            )
        case list():
            return old[: rng.randrange(len(old) + 1)] if rng.random() < 0.5 else old * 2
        case _:
            return rng.choice(_STRANGE)


def remade(data: bytes, rng: Random, read: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> bytes:
    """`data` with its tree changed. Raises whatever `read` and `write` do: then it holds none, or none can be made."""
    return write(changed(read(data), rng))
