"""Which models go so that another fits: never one that need not, never three where one is enough."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

from msgspec import Struct

_SEARCH_LIMIT = 20_000  # sets looked at; past it (some twenty models in memory) the largest go


class Candidate(Struct, frozen=True):
    """One model that may go. `cost` is what bringing it back is expected to take, `age` the larger the longer ago it
    was last used."""

    name: str
    size_bytes: int
    busy: bool = False
    cost: float = 0.0
    age: float = 0.0

    @property
    def order(self) -> tuple[bool, float, float, str]:
        """Who goes first."""
        return self.busy, self.cost, -self.age, self.name


def cheapest(missing_bytes: int, candidates: Sequence[Candidate]) -> tuple[str, ...] | None:
    """The fewest that free `missing_bytes` together; of those sets the one with the fewest busy ones, then the
    cheapest to bring back, then the longest unused. () when nothing must go, None when all together are too few."""
    if missing_bytes <= 0:
        return ()
    useful = sorted((c for c in candidates if c.size_bytes > 0), key=lambda c: (-c.size_bytes, c.name))
    total, count = 0, 0
    while total < missing_bytes:
        if count == len(useful):
            return None
        total += useful[count].size_bytes
        count += 1
    if comb(len(useful), count) > _SEARCH_LIMIT:
        return tuple(c.name for c in useful[:count])
    enough = (s for s in combinations(useful, count) if sum(c.size_bytes for c in s) >= missing_bytes)
    best = min(enough, key=_price)
    return tuple(c.name for c in sorted(best, key=lambda c: c.order))


def _price(chosen: Sequence[Candidate]) -> tuple[int, float, float, list[str]]:
    return (
        sum(c.busy for c in chosen),
        sum(c.cost for c in chosen),
        -min(c.age for c in chosen),
        sorted(c.name for c in chosen),
    )
