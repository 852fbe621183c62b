"""Which models were served here a short while ago, by nodes that are lost since? Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class Lately:
    """Of names that some node answered to. `memory_s` for how long they are remembered, `limit` how many."""

    def __init__(self, memory_s: float, limit: int) -> None:
        self._memory_s, self._limit = memory_s, limit
        self._lost_at: OrderedDict[str, float] = OrderedDict()

    def lost(self, names: Iterable[str], now: float) -> None:
        """A node that answered to these is lost."""
        for name in names:
            self._lost_at[name] = now
            self._lost_at.move_to_end(name)
            if len(self._lost_at) > self._limit:
                self._lost_at.popitem(last=False)

    def served(self, name: str, now: float) -> bool:
        """Whether somebody who answered to `name` was lost a short while ago."""
        lost_at = self._lost_at.get(name)
        return lost_at is not None and now - lost_at < self._memory_s
