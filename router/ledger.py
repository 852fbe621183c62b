"""What the scheduler itself has sent out and not heard the end of: its own account, ahead of any node's report."""

from __future__ import annotations

from collections.abc import Iterator

from node.types import NodeId, RequestId
from router.cost import Lane
from router.events import Request
from router.settings import RouterSettings


class Flight:
    """One granted request. It holds a slot of (node, model) from its grant until it is removed.

    `load_s`, `read_s`, `write_s`: what was expected of it then. `clean`: nothing else was being read beside it, so its
    first token tells how fast that node reads.
    """

    __slots__ = (
        "begin",
        "clean",
        "first_at",
        "load_s",
        "lost_at",
        "model",
        "node",
        "read_s",
        "request",
        "streams",
        "write_s",
    )

    def __init__(self, request: Request, node: NodeId, model: str, begin: float, lost_at: float) -> None:
        self.request, self.node, self.model = request, node, model
        self.begin, self.lost_at = begin, lost_at  # granted; given up when nobody has ended it by then
        self.load_s = self.read_s = self.write_s = 0.0
        self.first_at: float | None = None
        self.clean = False
        self.streams = 1.0

    def left_s(self, now: float) -> float:
        """Expected seconds until its slot is free. Past its time: the longer it has run, the longer it will."""
        if self.first_at is None:
            left = self.begin + self.load_s + self.read_s + self.write_s - now
        else:
            left = self.first_at + self.write_s - now
        return max(left, 0.1 * (now - self.begin), 0.05)

    def reading_s(self, now: float) -> float:
        """Expected seconds of its prompt still to be read."""
        return 0.0 if self.first_at is not None else min(self.read_s, max(0.0, self.left_s(now) - self.write_s))


class Ledger:
    """Every flight, by request and by lane."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._all: dict[RequestId, Flight] = {}
        self._lanes: dict[tuple[str, str], dict[RequestId, Flight]] = {}

    def __contains__(self, request: RequestId) -> bool:
        return request in self._all

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._all.values())

    def get(self, request: RequestId) -> Flight | None:
        return self._all.get(request)

    def add(self, flight: Flight) -> None:
        """A second flight of one request replaces the first: a request runs in one place."""
        self.remove(flight.request.id)
        self._all[flight.request.id] = flight
        self._lanes.setdefault((flight.node, flight.model), {})[flight.request.id] = flight

    def remove(self, request: RequestId) -> Flight | None:
        flight = self._all.pop(request, None)
        if flight is not None:
            lane = self._lanes[flight.node, flight.model]
            del lane[request]
            if not lane:
                del self._lanes[flight.node, flight.model]
        return flight

    def clear(self) -> None:
        self._all.clear()
        self._lanes.clear()

    def on(self, node: NodeId, model: str) -> list[Flight]:
        return list(self._lanes.get((node, model), {}).values())

    def models(self, node: NodeId) -> list[str]:
        """Models of `node` with a flight."""
        return [m for n, m in self._lanes if n == node]

    def lost(self, now: float) -> list[Flight]:
        """Flights that somebody should have ended long ago."""
        return [f for f in self._all.values() if f.lost_at <= now]

    def fill(self, lane: Lane, foreign: int, mean_s: float, now: float) -> None:
        """Puts on a fresh `lane` what runs there: our flights, and `foreign` requests we know nothing of, each
        expected to need half of `mean_s` more."""
        flights = self.on(lane.status.node, lane.model.name)
        for left_s in sorted([*(f.left_s(now) for f in flights), *([max(0.05, mean_s / 2)] * foreign)]):
            lane.occupy(left_s)
        lane.streams = len(flights) + foreign
        lane.reading_s = sum(f.reading_s(now) for f in flights)
