"""Election driven by hand: its own clock, what it said and when, and peers played by the test."""

from __future__ import annotations

from random import Random

from election.machine import Election
from election.messages import Effect, Event, Follow, Heard, Id, Kind, Message, Rank, Reign, Role, Send, Tick
from election.settings import ElectionSettings


class Other:
    """A peer played by the test: its messages are well-formed, the rest is up to the test."""

    def __init__(self, name: Id, priority: int = 100, boot: str = "b1", born: float = -1000.0) -> None:
        self.name, self.priority, self.boot, self.born, self.seq = name, priority, boot, born, 0

    def rank(self, now: float) -> Rank:
        return Rank(True, self.priority, int((now - self.born) // 10), self.name, self.boot)

    def says(
        self,
        now: float,
        kind: Kind = "hb",
        *,
        reign: Reign,
        coordinator: Id | None = None,
        role: Role = Role.FOLLOWER,
        age_s: float = 0.05,
    ) -> Heard:
        self.seq += 1
        return Heard(
            Message(
                kind=kind,
                sender=self.name,
                boot=self.boot,
                seq=self.seq,
                mesh="m",
                reign=reign,
                coordinator=coordinator,
                role=role,
                rank=self.rank(now),
                uptime_s=now - self.born,
                age_s=0.0 if role is Role.COORDINATOR else age_s,
            )
        )

    def rules(self, now: float, reign: Reign, kind: Kind = "hb") -> Heard:
        return self.says(now, kind, reign=reign, coordinator=self.name, role=Role.COORDINATOR)


class Bench:
    """One Election, woken at its deadlines; remembers what it said and when."""

    def __init__(self, priority: int = 100, term: int = 0, settings: ElectionSettings | None = None) -> None:
        self.now = 0.0
        self.machine = Election(
            me="m",
            boot="b1",
            mesh="m",
            priority=priority,
            settings=settings or ElectionSettings(),
            term=term,
            now=0.0,
            rng=Random(1),
        )
        self.log: list[tuple[float, Effect]] = []

    def feed(self, event: Event) -> list[Effect]:
        effects = self.machine.step(event, self.now)
        self.log += [(self.now, e) for e in effects]
        return effects

    def wait(self, until: float, *beats: tuple[Other, Reign, Id | None, Role]) -> None:
        """Lets time pass; each of `beats` sends a heartbeat every 100 ms."""
        due = self.now
        while True:
            when = min(self.machine.deadline, due if beats else until, until)
            if when >= until:
                break
            self.now = max(self.now, when)
            if beats and self.now >= due:
                due += 0.1
                for other, reign, coordinator, role in beats:
                    self.feed(other.says(self.now, reign=reign, coordinator=coordinator, role=role))
            else:
                self.feed(Tick())
        self.now = until

    def follows(self) -> list[tuple[float, Follow]]:
        return [(t, e) for t, e in self.log if isinstance(e, Follow)]

    def last(self) -> Follow:
        return self.follows()[-1][1]

    def said(self, kind: Kind) -> list[tuple[float, Send]]:
        return [(t, e) for t, e in self.log if isinstance(e, Send) and e.message.kind == kind]


def reign_of(other: Other, term: int, at: float = 0.0) -> Reign:
    return Reign(term, other.rank(at))


def following(boss: Other, *others: Other, priority: int = 100, term: int = 5) -> tuple[Bench, Reign]:
    """A follower of `boss`, which was heard just now, at 1.0; `others` follow it too."""
    bench, reign = Bench(priority), reign_of(boss, term)
    bench.wait(1.0, (boss, reign, boss.name, Role.COORDINATOR), *((o, reign, boss.name, Role.FOLLOWER) for o in others))
    assert (bench.machine.role, bench.machine.coordinator, bench.machine.term) == (Role.FOLLOWER, boss.name, term)
    return bench, reign


def coordinating(*followers: Other, until: float = 1.0) -> tuple[Bench, Reign]:
    """A coordinator with `followers`."""
    bench = Bench()
    bench.wait(0.7, *((o, Reign(), None, Role.FOLLOWER) for o in followers))
    if bench.machine.role is not Role.COORDINATOR:  # better ranks are left their turn
        bench.wait(1.2, *((o, Reign(), None, Role.FOLLOWER) for o in followers))
    assert bench.machine.role is Role.COORDINATOR
    bench.wait(until, *((o, bench.machine.reign, "m", Role.FOLLOWER) for o in followers))
    return bench, bench.machine.reign
