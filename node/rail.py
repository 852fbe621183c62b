"""Which models are in memory: reserves bytes before a load, one load at a time, releases when the pid is gone.

Never are more bytes reserved than the budget, but for one case: the budget shrank below what is loaded already; then
nothing is reserved until enough is released. Nothing is evicted here: a model that does not fit is told what is in
its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, assert_never

from msgspec import Struct

from node.headroom import gigabytes

# Events


class Reserve(Struct, frozen=True):
    """`model` wants to load and will take `size_bytes`; 0 (a server that is not ours) neither waits nor takes room."""

    model: str
    size_bytes: int


class Settled(Struct, frozen=True):
    """The load of `model` is over, well or badly: the next may begin."""

    model: str


class Release(Struct, frozen=True):
    """The process of `model` is gone, or its load was given up before it began."""

    model: str


class Budget(Struct, frozen=True):
    budget_bytes: int


RailEvent: TypeAlias = Reserve | Settled | Release | Budget

# Effects


class Load(Struct, frozen=True):
    """Its bytes are reserved and it is its turn."""

    model: str


class Full(Struct, frozen=True):
    """It does not fit now; `why` says needed and free bytes and what is in the way."""

    model: str
    why: str


RailEffect: TypeAlias = Load | Full


class Rail:
    """The account of this node's model memory. It has no clock: nothing here waits for a time, only for events."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._reserved: dict[str, int] = {}
        self._turn: list[str] = []  # reserved, not loaded yet; the first one is loading

    @property
    def used_bytes(self) -> int:
        return sum(self._reserved.values())

    @property
    def headroom_bytes(self) -> int:
        return max(0, self.budget_bytes - self.used_bytes)

    def step(self, event: RailEvent) -> list[RailEffect]:
        match event:
            case Reserve(model, size_bytes):
                return self._reserve(model, size_bytes)
            case Settled(model):
                return self._next(model)
            case Release(model):
                self._reserved.pop(model, None)
                return self._next(model)
            case Budget(budget_bytes):
                self.budget_bytes = budget_bytes
                return []
            case _:
                assert_never(event)

    def _reserve(self, model: str, size_bytes: int) -> list[RailEffect]:
        assert model not in self._reserved, f"{model} holds memory already"
        if size_bytes > self.headroom_bytes:
            return [Full(model, self._why_full(size_bytes))]
        self._reserved[model] = size_bytes
        if size_bytes == 0:
            return [Load(model)]
        self._turn.append(model)
        return [Load(model)] if self._turn == [model] else []

    def _next(self, model: str) -> list[RailEffect]:
        if model not in self._turn:
            return []
        was_loading = self._turn[0] == model
        self._turn.remove(model)
        return [Load(self._turn[0])] if was_loading and self._turn else []

    def _why_full(self, size_bytes: int) -> str:
        needs = (
            f"needs {gigabytes(size_bytes)}, {gigabytes(self.headroom_bytes)} of {gigabytes(self.budget_bytes)} free"
        )
        if size_bytes > self.budget_bytes:
            return f"{needs}: it can never fit (raise memory-budget, or take a smaller model)"
        held = sorted(((b, m) for m, b in self._reserved.items() if b), reverse=True)
        return f"{needs}: in memory are " + ", ".join(f"{m} {gigabytes(b)}" for b, m in held)


def load_order(sizes: Mapping[str, int], pinned: frozenset[str] = frozenset()) -> list[str]:
    """Who is loaded first when the daemon starts: pinned ones, then the largest (small ones still fit after it)."""
    return sorted(sizes, key=lambda m: (m not in pinned, -sizes[m], m))
