"""What the scheduler itself has sent out and not heard the end of: its own account, ahead of any node's report."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from node.types import NodeId, RequestId
from router.events import Request
from router.settings import RouterSettings
from router.soonest import Soonest


class Flight:
    """One granted request. It holds a slot of (node, model) from its grant until it is removed.

    `load_s`, `read_s`, `write_s`: what was expected of it then. `cached`: prompt tokens that its node should have had,
    `rests_on` tells the mirror why. `evicts`: models that leave memory there for it. `clean`: nothing is
    loaded for it or for a prompt read beside it, so its first token tells how fast that node reads.
    """

    __slots__ = (
        "begin",
        "beside",
        "cached",
        "clean",
        "evicts",
        "first_at",
        "load_s",
        "lost_at",
        "model",
        "node",
        "over",
        "read_s",
        "request",
        "rests_on",
        "sample_s",
        "stalled",
        "streamed",
        "write_s",
    )

    def __init__(self, request: Request, node: NodeId, model: str, begin: float, lost_at: float) -> None:
        self.request, self.node, self.model = request, node, model
        self.begin, self.lost_at = begin, lost_at  # granted; given up when nobody has ended it by then
        self.load_s = self.read_s = self.write_s = 0.0
        self.cached = self.rests_on = 0
        self.evicts: tuple[str, ...] = ()
        self.first_at: float | None = None
        self.over = False  # removed from the account
        self.clean = False
        self.beside = 0  # streams that ran when it was granted
        self.sample_s: float | None = None  # what its prompt took, until it is known how much of it was cached
        self.stalled = self.streamed = 0.0  # the tally's sums at its first token

    def expect(self, load_s: float, read_s: float, write_s: float, cached: int, streams: int) -> None:
        """What it will take there, beside so many streams."""
        self.load_s, self.read_s, self.write_s = load_s, read_s, write_s
        self.cached, self.beside = cached, streams

    def left_s(self, now: float) -> float:
        """Expected seconds until its slot is free. Past its time: the longer it has run, the longer it will."""
        if self.first_at is None:
            left = self.begin + self.load_s + self.read_s + self.write_s - now
        else:
            left = max(self.first_at + self.write_s - now, 0.3 * self.write_s)
        return max(left, 0.1 * (now - self.begin), 0.05)


class Tally:
    """One node in the account. `reading` flights have no first token yet; the others are `streams`.

    `stalled` sums the seconds in which streams stood still because prompts were read, `streamed` is the integral of
    their number: with both, a writing speed can be told from what disturbed it.
    """

    __slots__ = (
        "_settings",
        "busy_until",
        "count",
        "first_s",
        "flights",
        "reading",
        "since",
        "stalled",
        "streamed",
        "summed_at",
    )

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self.flights: dict[str, dict[RequestId, Flight]] = {}
        self.reading: dict[RequestId, Flight] = {}
        self.count = 0  # of all flights
        self.first_s = inf  # from a grant to its first token, on average of the latest ones
        self.busy_until = self.since = 0.0  # the prompts granted will have been read; those being read began
        self.stalled = self.streamed = self.summed_at = 0.0

    @property
    def streams(self) -> int:
        return self.count - len(self.reading)

    @property
    def quick(self) -> bool:
        """First tokens come at once there: no local model is so fast, nor would one wait for another's prompt."""
        return self.first_s < self._settings.quick_s

    def busy_s(self, now: float) -> float:
        """Expected seconds until all that was granted has been read. One that is late is believed for a while. Where
        first tokens come at once, prompts need not be read one after the other."""
        if not self.reading or self.quick:
            return 0.0
        left = self.busy_until - now
        return left if left > 0.0 else max(0.0, 0.1 * (self.late_until - now))

    @property
    def late_until(self) -> float:
        """Past this a prompt that has no first token yet is no longer waited for."""
        settings = self._settings
        return self.busy_until + min(settings.late_cap_s, settings.late_part * max(0.0, self.busy_until - self.since))

    def sum_up(self, now: float) -> None:
        """Before the number of streams changes."""
        past_s = now - self.summed_at
        if past_s > 0.0:
            self.streamed += (self.count - len(self.reading)) * past_s
        self.summed_at = now

    def answered(self, first_s: float) -> None:
        """A first token came so long after its grant."""
        mean, part = self.first_s, self._settings.quick_forget
        self.first_s = first_s if mean == inf else mean + part * (first_s - mean)

    def expect(self, now: float) -> None:
        """Whose prompts are still to be read is known: they are read from now on."""
        self.since = self.busy_until = now
        if self.reading:
            self.busy_until += sum(f.read_s for f in self.reading.values())


class Ledger:
    """Every flight, by request and by node."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._all: dict[RequestId, Flight] = {}
        self._tallies: dict[NodeId, Tally] = {}
        self._lost_at = Soonest[Flight](lambda _, flight: not flight.over)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._all

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._all.values())

    def get(self, request: RequestId) -> Flight | None:
        return self._all.get(request)

    def tally(self, node: NodeId) -> Tally:
        """The one of that node, until the node is dropped."""
        tally = self._tallies.get(node)
        if tally is None:
            tally = self._tallies[node] = Tally(self._settings)
        return tally

    def add(self, flight: Flight, now: float) -> None:
        """A second flight of one request replaces the first: a request runs in one place."""
        request = flight.request.id
        if request in self._all:
            self.remove(request, now)
        self._all[request] = flight
        self._lost_at.add(flight.lost_at, flight)
        tally = self.tally(flight.node)
        tally.sum_up(now)
        if flight.first_at is None:
            if not flight.clean:
                for other in tally.reading.values():
                    other.clean = False
            if not tally.reading:
                tally.since = now
            tally.busy_until = max(tally.busy_until if tally.reading else now, now) + flight.load_s + flight.read_s
            tally.reading[request] = flight
        flight.stalled, flight.streamed = tally.stalled, tally.streamed
        there = tally.flights.get(flight.model)
        if there is None:
            there = tally.flights[flight.model] = {}
        there[request] = flight
        tally.count += 1

    def first(self, flight: Flight, now: float) -> None:
        """Its first token: what is still to be read there is read from now on."""
        tally = self._tallies[flight.node]
        tally.sum_up(now)
        tally.answered(now - flight.begin)
        tally.stalled += max(0.0, now - max(tally.since, flight.begin))
        flight.first_at, flight.stalled, flight.streamed = now, tally.stalled, tally.streamed
        tally.reading.pop(flight.request.id, None)
        tally.expect(now)

    def remove(self, request: RequestId, now: float) -> Flight | None:
        flight = self._all.pop(request, None)
        if flight is not None:
            flight.over = True
            tally = self._tallies[flight.node]
            tally.sum_up(now)
            if tally.reading.pop(request, None) is not None:
                tally.expect(now)
            flights = tally.flights[flight.model]
            del flights[request]
            tally.count -= 1
            if not flights:
                del tally.flights[flight.model]
            if not tally.flights:
                tally.busy_until = 0.0
        return flight

    def clear(self) -> None:
        self._all.clear()
        self._tallies.clear()
        self._lost_at.clear()

    def drop(self, node: NodeId) -> None:
        """All that ran on a node that is gone."""
        for flight in [f for f in self._all.values() if f.node == node]:
            flight.over = True
            del self._all[flight.request.id]
        self._tallies.pop(node, None)

    def on(self, node: NodeId, model: str) -> list[Flight]:
        return list(self.tally(node).flights.get(model, {}).values())

    @property
    def lost_at(self) -> float | None:
        """When the first of them should have been ended by somebody, long ago."""
        return self._lost_at.first()

    def lost(self, now: float) -> list[Flight]:
        """Flights that somebody should have ended long ago."""
        first = self.lost_at
        return [f for f in self._all.values() if f.lost_at <= now] if first is not None and first <= now else []

    def wakes(self, now: float) -> Iterator[float]:
        """When prompts that have no first token yet are no longer waited for: a slot is worth a look then."""
        for tally in self._tallies.values():
            if tally.reading:
                late = tally.late_until
                if late > now:
                    yield late
