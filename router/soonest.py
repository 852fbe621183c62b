"""The earliest of many times, of which most are over before they come: a heap that forgets them when it meets them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
SPARE = 64  # entries that are over and may be kept however few live


class Soonest(Generic[T]):
    """`lives` says of an entry (its time, its item) whether it still counts; once it does not, it never does again.
    Memory: at most as many dead entries as live ones, and `SPARE`."""

    def __init__(self, lives: Callable[[float, T], bool]) -> None:
        self._lives = lives
        self._heap: list[tuple[float, int, T]] = []
        self._number, self._most = 0, SPARE

    def add(self, at: float, item: T) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, item))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if self._lives(entry[0], entry[2])]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + SPARE

    def first(self) -> float | None:
        """The earliest that counts; None: there is none."""
        heap, lives = self._heap, self._lives
        while heap and not lives(heap[0][0], heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def clear(self) -> None:
        self._heap.clear()
