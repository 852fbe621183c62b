"""Who is next? The mesh's one queue: clients take turns, and each client's own requests keep the order of their age.

A client's k-th waiting request stands in round `base + k`; rounds are served in order, and within one the oldest goes
first. Whoever has nothing waiting has no claim from before: it joins the round that is being served. With one client
this is plain first come, first served. `low` requests stand behind all others until they have waited for
`low_priority_s`; then they count as if they had come that much later, so they never starve. A short turn of a
conversation that a node remembers counts as a little older: it is over soon, and waits longest for its size.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable

from node.types import RequestId
from router.cost import Held
from router.events import Request
from router.soonest import Soonest

Lines = dict[str, "list[Waiting]"]


class Waiting:
    """One request in the queue. `order` is its place among its client's; `wait_s` the expected seconds until its grant,
    as of the last walk. `held`: what kept it from starting when it was first looked at, for whoever asks later."""

    __slots__ = ("held", "low", "order", "over", "request", "since", "wait_s")

    def __init__(self, request: Request, since: float, number: int, later_s: float, early_s: float) -> None:
        self.request, self.since, self.low = request, since, later_s > 0
        self.order = since + later_s - early_s, number
        self.wait_s = 0.0
        self.over = False  # it has left the queue
        self.held: Held | None = None

    @property
    def equality(self) -> Hashable:
        """Requests with the same are interchangeable for placing. (Blocks are chained: the last one names them all.)"""
        r = self.request
        return r.models, r.excluded, r.prompt_tokens, r.max_tokens, r.blocks[-1:], r.follows


class Queue:
    """`low_s` is how much later low priority counts."""

    def __init__(self, low_s: float) -> None:
        self._low_s = low_s
        self._all: dict[RequestId, Waiting] = {}
        self._lines: Lines = {}
        self._low: Lines = {}
        self._base: dict[str, int] = {}  # of clients with waiting requests: the round of the first
        self._number = 0  # of requests ever queued: ties keep the order they came in
        self._sorted: list[Waiting] | None = []
        self._ripe_at: float | None = None  # the first low one counts as normal
        self._deadlines = Soonest[Waiting](lambda at, waiting: not waiting.over and waiting.request.deadline == at)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def deadline(self) -> float | None:
        """The first of all deadlines."""
        return self._deadlines.first()

    def get(self, request: RequestId) -> Waiting | None:
        return self._all.get(request)

    def add(self, request: Request, since: float, early_s: float = 0.0) -> Waiting:
        """It is not in the queue yet, and counts as if it had come `early_s` earlier."""
        self._number += 1
        later_s = self._low_s if request.priority == "low" else 0.0
        waiting = Waiting(request, since, self._number, later_s, early_s)
        self._all[request.id] = waiting
        self._line_up(waiting)
        self._watch(request, waiting)
        return waiting

    def replace(self, waiting: Waiting, request: Request) -> None:
        """The same request told anew: it keeps its place, whatever else has changed."""
        self._take_out(waiting)
        before, waiting.request = waiting.request.deadline, request
        self._line_up(waiting)
        if request.deadline != before:
            self._watch(request, waiting)

    def remove(self, request: RequestId, *, served: bool = False) -> None:
        """`served`: its client has had its turn. Nothing happens when it is not there."""
        waiting = self._all.pop(request, None)
        if waiting is not None:
            waiting.over = True
            self._take_out(waiting)
            if served and not waiting.low and waiting.request.client in self._base:
                self._base[waiting.request.client] += 1

    def clear(self) -> None:
        self._all.clear()
        self._lines.clear()
        self._low.clear()
        self._base.clear()
        self._sorted, self._ripe_at = [], None
        self._deadlines.clear()

    def ordered(self, now: float) -> list[Waiting]:
        """Who is next, first to last."""
        if self._ripe_at is not None and self._ripe_at <= now:
            for waiting in [w for line in self._low.values() for w in line if w.order[0] <= now]:
                self._take_out(waiting)
                waiting.low = False
                self._line_up(waiting)
        if self._sorted is None:
            self._sorted = self._merge(self._lines, self._base) + self._merge(self._low, {})
            self._ripe_at = min((line[0].order[0] for line in self._low.values()), default=None)
        return self._sorted

    @staticmethod
    def _merge(lines: Lines, base: dict[str, int]) -> list[Waiting]:
        if len(lines) == 1:
            return list(next(iter(lines.values())))
        turns = [(base.get(client, 0) + k, w.order, w) for client, line in lines.items() for k, w in enumerate(line)]
        turns.sort(key=lambda t: t[:2])
        return [w for *_, w in turns]

    def _watch(self, request: Request, waiting: Waiting) -> None:
        if request.deadline is not None:
            self._deadlines.add(request.deadline, waiting)

    def _line_up(self, waiting: Waiting) -> None:
        client, lines = waiting.request.client, self._low if waiting.low else self._lines
        if client not in lines:
            lines[client] = []
            if not waiting.low:
                self._base[client] = min(self._base.values(), default=0)
        bisect.insort(lines[client], waiting, key=lambda w: w.order)
        self._sorted = None
        if waiting.low:
            self._ripe_at = min(self._ripe_at or waiting.order[0], waiting.order[0])

    def _take_out(self, waiting: Waiting) -> None:
        client, lines = waiting.request.client, self._low if waiting.low else self._lines
        lines[client].remove(waiting)
        if not lines[client]:
            del lines[client]
            if not waiting.low:
                del self._base[client]
        self._sorted = None
