"""Counts and spreads by labels, kept as plain numbers: several are made for each request, and each block of a stream is
counted, so that locks and checks of labels would be a good part of what a request costs. One thread only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf


class Count:
    """One number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1) -> None:
        self.value += by


class Spread:
    """How often a value was at most each of `bounds`, which ascend."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def up_to(self) -> list[tuple[float, int]]:
        """(bound, values not above it); infinity last, with all of them."""
        return list(zip((*self._bounds, inf), accumulate(self._counts), strict=True))


SERIES_MAX = 2000  # of one name: labels hold names of nodes and models, which other machines choose, and change
OTHER = "other"


class Counts:
    """A Count for each combination of values of `labels`; without labels there is one from the start. Beyond SERIES_MAX
    new combinations share one, all of whose values are OTHER."""

    def __init__(self, name: str, what: str, labels: Sequence[str] = ()) -> None:
        self.name, self.what, self.names = name, what, tuple(labels)
        self._found: dict[tuple[str, ...], Count] = {}
        if not labels:
            self.labels()

    def labels(self, *values: str) -> Count:
        if (count := self._found.get(values)) is None:
            assert len(values) == len(self.names)
            if len(self._found) >= SERIES_MAX:
                return self._found.setdefault((OTHER,) * len(values), Count())
            count = self._found[values] = Count()
        return count

    def inc(self, by: float = 1) -> None:
        """Of the one without labels."""
        self.labels().inc(by)

    def items(self) -> Iterator[tuple[tuple[str, ...], Count]]:
        return iter(self._found.items())


class Spreads:
    """A Spread for each combination of values of `labels`; bounded as Counts; without labels there is one from the
    start."""

    def __init__(self, name: str, what: str, labels: Sequence[str] = (), *, bounds: Sequence[float]) -> None:
        self.name, self.what, self.names = name, what, tuple(labels)
        self._bounds = tuple(bounds)
        self._found: dict[tuple[str, ...], Spread] = {}
        if not labels:
            self.labels()

    def labels(self, *values: str) -> Spread:
        if (spread := self._found.get(values)) is None:
            assert len(values) == len(self.names)
            if len(self._found) >= SERIES_MAX:
                return self._found.setdefault((OTHER,) * len(values), Spread(self._bounds))
            spread = self._found[values] = Spread(self._bounds)
        return spread

    def observe(self, value: float) -> None:
        """Of the one without labels."""
        self.labels().observe(value)

    def items(self) -> Iterator[tuple[tuple[str, ...], Spread]]:
        return iter(self._found.items())
