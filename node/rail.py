"""Which models are in memory: who loads next, who waits for room, who must go for it, who has been idle for too long.

Reserved before a load, one load at a time (a slow one keeps nobody waiting), released when the pid is gone. Never are
more bytes reserved than the budget, but for one case: the budget shrank, or a model was measured to be larger than
thought; then nothing is reserved until enough is released, and idle models go first.

What does not fit waits in line. Room is made by unloading idle models that were quiet for `request_gap_s`: the fewest
that suffice, of those the cheapest to bring back. Whose turn it is has a *claim*: room that becomes free is its own,
others load only what fits beside it. No one starves: who has waited `turn_s` at the head of the line claims busy
models too. Those take no new request once they have been in memory for `turn_s`, so they end with the requests they
are answering. docs/memory.md states the bound that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import assert_never

from msgspec import Struct

from node.headroom import gigabytes
from node.rail_events import (
    Began,
    Budget,
    Ended,
    Evict,
    Forget,
    Full,
    Gap,
    Held,
    Load,
    Measured,
    RailEffect,
    RailEvent,
    Release,
    Reserve,
    Settled,
    Slow,
    Terms,
    Tick,
)
from node.residents import Resident
from node.settings import NodeSettings
from node.victims import cheapest

_SHRANK = "models hold more than the budget allows"


class _Claim(Struct):
    """`model` has its turn: `victims` go for it ("" stands for the budget, which shrank)."""

    model: str
    victims: tuple[str, ...]


class Rail:
    """The account of this node's model memory. Wake it at `deadline`."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._gap_s, self._half_life_s = settings.request_gap_s, settings.demand_half_life_s
        self.budget_bytes = settings.memory_budget_bytes
        self.deadline: float | None = None
        self.calm = False  # the last event changed nothing for any model
        self._models: dict[str, Resident] = {}
        self._turn: list[str] = []  # reserved, not loaded yet; the first is loading (as are slow ones, which left this)
        self._line: list[str] = []  # waits for room, first come first
        self._claim: _Claim | None = None
        self._over_since: float | None = None  # since when more is reserved than the budget allows

    # What can be asked

    @property
    def used_bytes(self) -> int:
        return sum(m.size_bytes for m in self._models.values() if m.reserved)

    @property
    def headroom_bytes(self) -> int:
        return max(0, self.budget_bytes - self.used_bytes)

    @property
    def evictable_bytes(self) -> int:
        """What models hold that are not pinned: room that can be had, at once or after a wait of `wait_s`."""
        return sum(m.size_bytes for m in self._models.values() if m.reserved and not m.pinned)

    @property
    def line(self) -> tuple[str, ...]:
        """Models that wait for room."""
        return tuple(self._line)

    def yields(self, model: str) -> bool:
        """Whether it must start no request now: it is being unloaded, or will be as soon as it is idle."""
        found = self._models.get(model)
        return found is not None and (found.ending or found.yielding)

    def reserved_bytes(self, model: str) -> int:
        """What is kept for it now."""
        found = self._models.get(model)
        return found.size_bytes if found is not None and found.reserved else 0

    def unloads_at(self, model: str) -> float | None:
        """When it is unloaded if nobody asks for it; None: not by itself, or not while it is busy."""
        found = self._models.get(model)
        return None if found is None else found.expires_at

    def wait_s(self, model: str, size_bytes: int, now: float) -> float:
        """About how long `model` would wait for room: a place in line is one turn; 0 when it has it."""
        if self.reserved_bytes(model):
            return 0.0
        places = self._line.index(model) if model in self._line else len(self._line)
        if places == 0 and (self._fits(size_bytes) or self._victims(model, size_bytes, now, busy=False) is not None):
            return 0.0
        return self._settings.turn_s * (1 + places)

    # What happens

    def step(self, event: RailEvent, now: float) -> list[RailEffect]:
        effects: list[RailEffect] = []
        match event:
            case Reserve(model, size_bytes, patient):
                effects += self._reserve(model, size_bytes, patient, now)
            case Settled(model):
                effects += self._settle(model, now)
            case Slow(model):
                effects += self._next(model)
            case Release(model):
                effects += self._release(model)
            case Budget(budget_bytes):
                self.budget_bytes = budget_bytes
            case Gap(request_gap_s):
                self._gap_s = request_gap_s
            case Forget(model):
                self._models.pop(model, None)
            case Tick():
                pass
            case Terms() | Began() | Ended() | Measured():
                self._learn(event, now)
            case _:
                assert_never(event)
        self.calm = self._calm(event, now)
        if not self.calm:
            effects += self._plan(now)
        self.deadline = min((t for t in self._moments() if t > now), default=None)
        return effects

    def _calm(self, event: RailEvent, now: float) -> bool:
        """Whether a plan would come to nothing: a request begins or ends, and nobody waits, nothing is due."""
        if not isinstance(event, Began | Ended) or self._line or self._claim or self._over_since is not None:
            return False
        due = [t for t in (self.deadline, self._of(event.model).expires_at) if t is not None]
        return not due or now < min(due)

    def _learn(self, event: Terms | Began | Ended | Measured, now: float) -> None:
        model = self._of(event.model)
        match event:
            case Terms(_, pinned, keep_s, load_s):
                model.pinned, model.keep_s, model.load_s = pinned, keep_s, load_s
            case Began(_, in_flight, keep_s):
                model.in_flight, model.used = in_flight, True
                model.session_keep_s = model.session_keep_s if keep_s is None else keep_s
                model.demand, model.demand_at = model.wanted(self._half_life_s, now) + 1.0, now
            case Ended(_, in_flight):
                model.in_flight, model.idle_since = in_flight, now
            case Measured(_, size_bytes):
                if model.reserved and model.size_bytes:
                    model.size_bytes = size_bytes
            case _:
                assert_never(event)

    def _reserve(self, name: str, size_bytes: int, patient: bool, now: float) -> list[RailEffect]:
        model = self._of(name)
        assert not model.reserved, f"{name} holds memory already"
        assert name not in self._line, f"{name} waits already"
        model.size_bytes = size_bytes
        if size_bytes == 0:
            model.reserved = True
            return [Load(name)]
        if patient and not self._hopeless(model):
            model.waits_since, model.told = now, ""
            self._line.append(name)
            return []
        if self._may_take(name, size_bytes, now):
            return self._take(model)
        return [Full(name, self._why(model, now))]

    def _take(self, model: Resident) -> list[RailEffect]:
        model.reserved = True
        self._turn.append(model.name)
        return [Load(model.name)] if self._turn == [model.name] else []

    def _settle(self, name: str, now: float) -> list[RailEffect]:
        model = self._of(name)
        if model.ready_at is None:
            model.ready_at = model.idle_since = now
        return self._next(name)

    def _release(self, name: str) -> list[RailEffect]:
        model = self._of(name)
        model.released()
        if name in self._line:
            self._line.remove(name)
        return self._next(name)

    def _next(self, name: str) -> list[RailEffect]:
        if name not in self._turn:
            return []
        was_loading = self._turn[0] == name
        self._turn.remove(name)
        return [Load(self._turn[0])] if was_loading and self._turn else []

    # The plan

    def _plan(self, now: float) -> list[RailEffect]:
        """Everything that can be done now: loads that fit, models that go, and who waits for what."""
        over = self.used_bytes > self.budget_bytes
        self._over_since = (self._over_since if self._over_since is not None else now) if over else None
        effects: list[RailEffect] = []
        for name in tuple(self._line):
            model = self._models[name]
            if self._hopeless(model):
                self._line.remove(name)
                effects.append(Full(name, self._why(model, now)))
        self._settle_claim(now)
        while loads := self._give(now):
            effects += loads
            self._settle_claim(now)  # The line has another head.
        effects += self._unload(now)
        for name in self._line:
            model = self._models[name]
            if (why := self._why(model, now)) != model.told:
                model.told = why
                effects.append(Held(name, why))
        return effects

    def _give(self, now: float) -> list[RailEffect]:
        """Loads, in the order of the line, for all whose room is there and who may have it."""
        effects: list[RailEffect] = []
        for name in tuple(self._line):
            model = self._models[name]
            if self._may_take(name, model.size_bytes, now):
                self._line.remove(name)
                if self._claim is not None and self._claim.model == name:
                    self._claim = None
                effects += self._take(model)
        return effects

    def _may_take(self, name: str, size_bytes: int, now: float) -> bool:
        """Whether its room is there, and nobody before it needs that."""
        if not self._fits(size_bytes):
            return False
        claim, pressing = self._claim, self._pressing(now)
        first = claim.model if claim is not None else pressing
        if first in (None, name):
            return True
        if claim is None or (pressing not in (None, claim.model, name)):
            return False
        wanted = self._models[claim.model].size_bytes if claim.model else 0
        coming = sum(m.size_bytes for m in self._models.values() if m.ending or m.name in claim.victims)
        return self.used_bytes - coming + wanted + size_bytes <= self.budget_bytes

    def _settle_claim(self, now: float) -> None:
        """Keeps the claim there is, as long as it makes sense; else finds who has its turn, and at whose cost."""
        if self._claim is not None and not self._still_good(self._claim):
            self._claim = None
        if self._claim is None:
            self._claim = self._new_claim(now)
        victims = self._claim.victims if self._claim is not None else ()
        for model in self._models.values():
            resident_s = self._settings.turn_s
            model.yielding = model.name in victims and model.ready_at is not None and now >= model.ready_at + resident_s

    def _still_good(self, claim: _Claim) -> bool:
        """Whether it can still be fulfilled. Whom it does not need any more is let off."""
        if any(self._models[v].pinned for v in claim.victims):
            return False
        if claim.model not in self._line if claim.model else self._over_since is None:
            return False
        wanted = self._models[claim.model].size_bytes if claim.model else 0
        left = [v for v in claim.victims if self._models[v].reserved]
        for victim in tuple(left):
            others = [v for v in left if v != victim]
            if not self._models[victim].ending and self._suffice(wanted, others):
                left = others
        claim.victims = tuple(left)
        return self._suffice(wanted, left)

    def _suffice(self, size_bytes: int, victims: Iterable[str]) -> bool:
        freed = sum(m.size_bytes for v in victims if not (m := self._models[v]).ending)
        return self._missing(size_bytes) <= freed

    def _new_claim(self, now: float) -> _Claim | None:
        if self._over_since is not None:  # The budget goes before everybody; idle models go for it at once.
            pressing = now >= self._over_since + self._settings.turn_s
            victims = self._victims("", 0, now, busy=True) if pressing else None
            return None if victims is None else _Claim("", victims)
        head = self._pressing(now)
        for name in self._line if head is None else [head]:
            victims = self._victims(name, self._models[name].size_bytes, now, busy=name == head)
            if victims is not None:
                return _Claim(name, victims)
        return None

    def _pressing(self, now: float) -> str | None:
        """The head of the line, once it has waited its time."""
        if self._line and now >= self._models[self._line[0]].waits_since + self._settings.turn_s:
            return self._line[0]
        return None

    def _victims(self, name: str, size_bytes: int, now: float, *, busy: bool) -> tuple[str, ...] | None:
        """Who goes so that `name` fits: idle ones past the gap if they suffice; with `busy`, else any idle ones,
        else whoever is not pinned. None: it cannot be had like this."""
        missing = self._missing(size_bytes)
        others = [m for m in self._models.values() if m.reserved and not (m.pinned or m.ending or m.name == name)]
        choices = [[m for m in others if m.cold(self._gap_s, now)]]
        if busy:
            choices += [[m for m in others if m.idle], others]
        for models in choices:
            found = cheapest(missing, [m.candidate(self._half_life_s, now) for m in models])
            if found is not None:
                return found
        return None

    def _unload(self, now: float) -> list[RailEffect]:
        """Idle models that go now: for a claim, because their time is over, or because the budget shrank."""
        effects: list[RailEffect] = []
        victims = self._claim.victims if self._claim is not None else ()
        whom = self._claim.model if self._claim is not None else ""
        for model in self._models.values():
            if not model.idle or model.pinned:
                continue
            if model.name in victims and (model.yielding or model.cold(self._gap_s, now)):
                effects.append(_evict(model, f"its room goes to {whom}" if whom else _SHRANK, "evicted"))
            elif model.expires_at is not None and now >= model.expires_at:
                effects.append(_evict(model, model.unused, "idle"))
        if self._over_since is not None:
            idle = [m for m in self._models.values() if m.idle and not m.pinned and m.size_bytes]
            chosen = cheapest(self._missing(0), [m.candidate(self._half_life_s, now) for m in idle])
            effects += [_evict(m, _SHRANK, "evicted") for m in idle if chosen is None or m.name in chosen]
        return effects

    # Small things

    def _of(self, name: str) -> Resident:
        if name not in self._models:
            self._models[name] = Resident(name)
        return self._models[name]

    def _fits(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self.budget_bytes

    def _missing(self, size_bytes: int) -> int:
        """Bytes that must go, besides those that are going, for `size_bytes` to fit."""
        going = sum(m.size_bytes for m in self._models.values() if m.ending)
        return self.used_bytes - going + size_bytes - self.budget_bytes

    def _hopeless(self, model: Resident) -> bool:
        """It would not fit if all went that may."""
        pinned = sum(m.size_bytes for m in self._models.values() if m.reserved and m.pinned and m is not model)
        return model.size_bytes + pinned > self.budget_bytes

    def _moments(self) -> Iterator[float]:
        """When time alone changes the plan."""
        turn_s = self._settings.turn_s
        if self._over_since is not None:
            yield self._over_since + turn_s
        if self._line:
            yield self._models[self._line[0]].waits_since + turn_s
        for model in self._models.values():
            if self._claim is not None and model.name in self._claim.victims and model.ready_at is not None:
                yield model.ready_at + turn_s
            if model.expires_at is not None:
                yield model.expires_at
            if self._line and model.idle:
                yield model.idle_since + self._gap_s

    def _why(self, model: Resident, now: float) -> str:
        """Needed and free bytes, and what is in its way."""
        free, budget = gigabytes(self.headroom_bytes), gigabytes(self.budget_bytes)
        needs = f"needs {gigabytes(model.size_bytes)}, {free} of {budget} free"
        if model.size_bytes > self.budget_bytes:
            return f"{needs}: it can never fit (raise memory-budget, or take a smaller model)"
        if self._hopeless(model):
            pins = [f"{m.name} {gigabytes(m.size_bytes)}" for m in self._models.values() if m.reserved and m.pinned]
            return f"{needs}: it can never fit beside what is pinned ({', '.join(pins)})"
        held = sorted((m for m in self._models.values() if m.reserved and m.size_bytes), key=lambda m: -m.size_bytes)
        parts = [f"{m.name} {gigabytes(m.size_bytes)} ({m.doing(self._gap_s, now)})" for m in held]
        before = self._line[: self._line.index(model.name)] if model.name in self._line else self._line
        parts += [f"{name}, which waits longer" for name in before]
        return f"{needs}: in its way are {', '.join(parts)}" if parts else needs


def _evict(model: Resident, why: str, cause: str) -> Evict:
    model.ending = True
    return Evict(model.name, why, cause)


def load_order(sizes: Mapping[str, int], pinned: frozenset[str] = frozenset()) -> list[str]:
    """Who is loaded first when the daemon starts: pinned ones, then the largest (small ones still fit after it)."""
    return sorted(sizes, key=lambda m: (m not in pinned, -sizes[m], m))
