"""Whatever is asked, ends, grows and shrinks: the memory rule, single flight, nobody busy or pinned goes, none starves.

`Shell` answers effects as the keeper does, at times that Hypothesis picks; its checks are written without the rail's.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node.rail import Rail
from node.rail_events import (
    FOREVER,
    Began,
    Budget,
    Ended,
    Evict,
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
from node.settings import NodeSettings

GAP_S, TURN_S = 5.0, 10.0
names = st.sampled_from("abcdef")
steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("reserve", "reserve", "impatient", "settle", "slow", "release", "begin", "begin", "end", "end"),
                *("pin", "terms", "shrink", "grow", "measure", "wait", "gap"),
            ]
        ),
        names,
        st.integers(0, 8),
    ),
    max_size=80,
)


class Planner(Rail):
    """It never takes an event for one that changes nothing."""

    def _calm(self, event: RailEvent, now: float) -> bool:
        return False


class Twins(Rail):
    """Beside it one that makes a whole plan after every event, and never comes to anything else."""

    def __init__(self, settings: NodeSettings) -> None:
        super().__init__(settings)
        self.planner = Planner(settings)

    def step(self, event: RailEvent, now: float) -> list[RailEffect]:
        effects = super().step(event, now)
        assert self.planner.step(event, now) == effects
        assert self.planner.deadline == self.deadline
        assert [self.planner.yields(name) for name in "abcdef"] == [self.yields(name) for name in "abcdef"]
        return effects


class Shell:
    def __init__(self, budget: int) -> None:
        self.rail = Twins(NodeSettings(memory_budget_bytes=budget, request_gap_s=GAP_S, turn_s=TURN_S))
        self.now, self.budget, self.gap_s = 0.0, budget, GAP_S
        self.size: dict[str, int] = {}  # reserved
        self.waiting: dict[str, int] = {}
        self.loading: set[str] = set()  # was told to load, has not settled
        self.slow: set[str] = set()  # the same, but the next load does not wait for it
        self.ready: set[str] = set()
        self.ending: set[str] = set()
        self.flying: dict[str, int] = {}
        self.idle_since: dict[str, float] = {}
        self.pinned: set[str] = set()
        self.queued: list[str] = []  # reserved, not told to load

    @property
    def used(self) -> int:
        return sum(self.size.values())

    def say(self, event: RailEvent) -> None:
        if isinstance(event, Reserve):
            self.waiting[event.model] = event.size_bytes
        for effect in self.rail.step(event, self.now):
            name = effect.model
            match effect:
                case Load():
                    size = self.waiting.pop(name, None)
                    if size is None:  # Reserved before, its turn only now.
                        self.queued.remove(name)
                    else:
                        self.size[name] = size
                    if self.size[name]:
                        assert not self.loading, "two loads at once"
                        self.loading.add(name)
                    else:
                        self.ready.add(name)
                case Full():
                    del self.waiting[name]
                case Held():
                    assert name in self.waiting
                case Evict():
                    assert name in self.ready
                    assert name not in self.ending
                    assert self.flying.get(name, 0) == 0, "a busy model was evicted"
                    assert name not in self.pinned, "a pinned model was evicted"
                    self.ending.add(name)
        for name in [n for n in self.waiting if self.rail._models[n].reserved]:
            self.size[name] = self.waiting.pop(name)
            self.queued.append(name)

    def act(self, what: str, name: str, number: int) -> None:
        match what:
            case "reserve" | "impatient" if name not in self.size and name not in self.waiting:
                self.say(Reserve(name, number, patient=what == "reserve"))
            case "slow" if name in self.loading:
                self.loading.discard(name)
                self.slow.add(name)
                self.say(Slow(name))
            case "settle" if name in self.loading | self.slow:
                self.loading.discard(name)
                self.slow.discard(name)
                self.ready.add(name)
                self.idle_since[name] = self.now
                self.say(Settled(name))
            case "release" if name in self.size or name in self.waiting:
                self.forget(name)
                self.say(Release(name))
            case "begin" if name in self.ready and not self.rail.yields(name):
                self.flying[name] = self.flying.get(name, 0) + 1
                self.say(Began(name, self.flying[name], None if number > 4 else float(number)))
            case "end" if self.flying.get(name):
                self.end(name)
            case "pin":
                self.pinned ^= {name}
                self.say(Terms(name, name in self.pinned, 50.0, 1.0))
            case "terms":
                self.say(Terms(name, name in self.pinned, FOREVER if number > 6 else 10.0 * number, float(number)))
            case "shrink" | "grow":
                self.budget += number if what == "grow" else -min(number, self.budget)
                self.say(Budget(self.budget))
            case "measure" if self.size.get(name):
                self.size[name] = number or 1
                self.say(Measured(name, number or 1))
            case "gap":
                self.gap_s = float(number)
                self.say(Gap(self.gap_s))
            case "wait":
                self.wait(float(number))
            case _:
                pass

    def forget(self, name: str) -> None:
        self.size.pop(name, None)
        self.waiting.pop(name, None)
        self.flying.pop(name, None)
        for group in (self.loading, self.slow, self.ready, self.ending):
            group.discard(name)
        if name in self.queued:
            self.queued.remove(name)

    def end(self, name: str) -> None:
        self.flying[name] -= 1
        self.idle_since[name] = self.now
        self.say(Ended(name, self.flying[name]))

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.rail.deadline is not None and self.rail.deadline <= until:
            assert self.rail.deadline > self.now, "a timer that rings for ever"
            self.now = self.rail.deadline
            self.say(Tick())
        self.now = until

    def check(self) -> None:
        assert self.rail.used_bytes == self.used
        assert self.rail.headroom_bytes == max(0, self.budget - self.used)
        assert set(self.rail.line) == set(self.waiting)
        assert not self.queued or self.loading, "nobody loads, and somebody waits for his turn"
        for name in self.rail.line[:1]:  # The head would load if it could: nothing is forgotten.
            fits = self.used + self.waiting[name] <= self.budget
            claim = self.rail._claim
            assert not fits or (claim is not None and claim.model != name)
            if not fits and self.used <= self.budget:
                cold = [n for n in self.ready - self.ending - self.pinned if self.cold(n)]
                coming = sum(self.size[n] for n in self.ending)
                enough = self.used - coming - sum(self.size[n] for n in cold) + self.waiting[name] <= self.budget
                assert not enough or claim is not None, "the head could have its room"

    def cold(self, name: str) -> bool:
        return self.flying.get(name, 0) == 0 and self.now >= self.idle_since.get(name, 0.0) + self.gap_s


@settings(max_examples=300, deadline=None)
@given(budget=st.integers(0, 20), steps=steps)
def test_the_memory_rule_and_single_flight(budget: int, steps: list[tuple[str, str, int]]) -> None:
    it = Shell(budget)
    for what, name, number in steps:
        before, over = it.used, it.used > it.budget
        it.act(what, name, number)
        it.check()
        if what not in ("measure", "shrink"):  # Truth and budgets may break it; nothing that the rail does.
            assert it.used <= it.budget or (over and it.used <= before)


@settings(max_examples=200, deadline=None)
@given(budget=st.integers(8, 20), steps=steps, wanted=st.integers(1, 8))
def test_whoever_waits_gets_its_turn_although_others_keep_coming(
    budget: int, steps: list[tuple[str, str, int]], wanted: int
) -> None:
    """The bound of docs/memory.md with loads, ends and answers that each take a second at most."""
    it = Shell(budget)
    for what, name, number in steps:
        if what not in ("pin", "shrink"):
            it.act(what, name, number)
    if it.used > it.budget:  # It was measured away: not what is looked at here.
        return
    it.say(Reserve("z", wanted))
    began, places = it.now, len(it.rail.line)
    while "z" in it.waiting:
        assert it.now - began <= places * (2 * TURN_S + 6.0), f"starved: {it.rail._why(it.rail._models['z'], it.now)}"
        for name in list(it.ready):
            if it.flying.get(name):
                it.end(name)
            if name in it.ready and not it.rail.yields(name):  # Somebody asks for it at once again.
                it.act("begin", name, 9)
        for name in list(it.loading | it.slow):
            it.act("settle", name, 0)
        for name in list(it.ending):
            it.act("release", name, 0)
            it.act("reserve", name, it.waiting.get(name, 3))  # And it wants to come back.
        it.wait(1.0)
