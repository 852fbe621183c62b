"""The account of model memory on a clock that the test moves."""

from __future__ import annotations

from typing import Any

from node.rail import Rail
from node.rail_events import (
    Began,
    Ended,
    Evict,
    Held,
    Load,
    RailEffect,
    RailEvent,
    Reserve,
    Settled,
    Terms,
    Tick,
)
from node.settings import NodeSettings


class Told:
    """A rail on a clock that the test moves; `say` returns its effects, without Held unless asked."""

    def __init__(self, budget: int, **settings: Any) -> None:
        self.rail = Rail(NodeSettings(memory_budget_bytes=budget, **settings))
        self.now = 0.0

    def say(self, event: RailEvent, at: float | None = None, *, held: bool = False) -> list[RailEffect]:
        self.now = self.now if at is None else at
        return [e for e in self.rail.step(event, self.now) if held or not isinstance(e, Held)]

    def wait(self, until: float) -> list[RailEffect]:
        """Ticks when the rail wants it, up to `until`."""
        effects: list[RailEffect] = []
        while self.rail.deadline is not None and self.rail.deadline <= until:
            assert self.rail.deadline > self.now
            effects += self.say(Tick(), self.rail.deadline)
        self.now = until
        return effects

    def loaded(self, name: str, size: int, *, load_s: float = 1.0, **terms: Any) -> None:
        self.say(Terms(name, load_s=load_s, **terms))
        assert self.say(Reserve(name, size)) == [Load(name)]
        assert self.say(Settled(name)) == []

    def used(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            self.say(Began(name, 1))
            self.say(Ended(name, 0))


def evicted(effects: list[RailEffect]) -> list[str]:
    return [e.model for e in effects if isinstance(e, Evict)]
