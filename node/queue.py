"""The slots of one model and the line before them: in-flight and queue depth are counted here and nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from node.errors import NodeError, NodeErrorCode
from node.types import RequestId

Key: TypeAlias = tuple[RequestId, int]  # request, attempt

_FIRST_GUESS_S = 5.0  # service time of a request before one was measured
_WEIGHT = 0.2  # of the newest service time in the running mean


class ModelQueue:
    """At most `slots` in flight and as many waiting, whoever granted them; the rest is refused.

    A request that cannot share the worker with others (`alone`: mlx_lm.server runs seeded ones outside its batch, which
    must end first) starts when nothing is in flight, and nothing starts beside it; it keeps its place in line.

    A key that is here, or was here recently, is refused too: a repeated frame must not run a request twice.
    """

    def __init__(self, slots: int, remembered: int) -> None:
        assert slots >= 1
        self._slots = slots
        self._alone: set[Key] = set()  # of those here
        self._remembered = remembered
        self._waiting: OrderedDict[Key, float] = OrderedDict()  # since when
        self._running: dict[Key, float] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._service_s = _FIRST_GUESS_S

    @property
    def slots(self) -> int:
        """How many it runs side by side: one while a request is here that has to run alone."""
        return 1 if self._alone else self._slots

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def queue_depth(self) -> int:
        return len(self._waiting)

    def admit(self, key: Key, now: float, *, alone: bool = False) -> None:
        """Puts `key` in line. Raises NodeError(NODE_BUSY) when slots and line are full, or for a repeated key."""
        if key in self._waiting or key in self._running or key in self._ended:
            raise NodeError(NodeErrorCode.NODE_BUSY, f"attempt {key[1]} of request {key[0]} was already here")
        if self.in_flight + self.queue_depth >= 2 * self._slots:
            raise NodeError(
                NodeErrorCode.NODE_BUSY,
                f"{self.in_flight} in flight and {self.queue_depth} waiting on {self._slots} slots",
                retry_after_s=self.retry_after_s(),
            )
        self._waiting[key] = now
        if alone:
            self._alone.add(key)

    def start(self, now: float) -> list[Key]:
        """Moves as many as there are free slots from the line into flight, first come first; returns those."""
        started = []
        while self._waiting and self.in_flight < self._slots:
            key = next(iter(self._waiting))
            if self._running and (key in self._alone or not self._alone.isdisjoint(self._running)):
                break
            del self._waiting[key]
            self._running[key] = now
            started.append(key)
        return started

    def leave(self, key: Key, now: float) -> None:
        """`key` is over, wherever it was. Leaving twice changes nothing."""
        self._alone.discard(key)
        began = self._running.pop(key, None)
        if began is not None:
            self._service_s += _WEIGHT * (now - began - self._service_s)
        elif self._waiting.pop(key, None) is None:
            return
        self._ended[key] = None
        while len(self._ended) > self._remembered:
            self._ended.popitem(last=False)

    def retry_after_s(self) -> float:
        """Seconds until a place should be free: one slot of the full ones ends. Between 0.5 and 60."""
        return min(60.0, max(0.5, self._service_s / self._slots))
