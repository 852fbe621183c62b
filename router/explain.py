"""A decision as one line of ASCII, for a header: the Struct of `mesh routes --why` as JSON, within a bound."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from router.events import Decision


def compact(decision: Decision, limit_bytes: int) -> str:
    """At most `limit_bytes`. Candidates stand cheapest first, then the excluded: as many from the end as do not fit are
    left off, and `left_off` says how many. Terms are never cut, so they add up; should one candidate be too much,
    what is known of the request goes too."""
    whole: dict[str, Any] = msgspec.to_builtins(decision)
    candidates = whole["candidates"]
    text = _line(whole)
    if len(text) <= limit_bytes:
        return text
    sizes = [len(_line(candidate)) + 1 for candidate in candidates]
    room = limit_bytes - len(_line({**whole, "candidates": [], "left_off": len(candidates)}))
    count = 0
    while count < len(sizes) and sizes[count] <= room:
        room -= sizes[count]
        count += 1
    if room >= 0:
        return _line({**whole, "candidates": candidates[:count], "left_off": len(candidates) - count})
    return _line({"chosen": decision.chosen, "waited_ms": decision.waited_ms, "left_off": len(candidates)})


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
