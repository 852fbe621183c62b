"""The machine that was held up or slept: what it may still believe when it goes on (docs/election.md)."""

from __future__ import annotations

import pytest

from election.messages import LinkClosed, Role, Tick
from tests.election.fakes import Bench, Other, coordinating, following


def test_after_a_stall_it_listens_before_it_believes_its_timers() -> None:
    boss = Other("a")
    bench, reign = following(boss, Other("b", 50))
    bench.now += 0.9
    bench.feed(Tick())
    assert bench.said("ask") == []
    bench.feed(boss.rules(bench.now, reign))
    assert bench.machine.coordinator == "a"
    assert len(bench.follows()) == 1


def test_a_coordinator_that_was_stalled_steps_down_and_listens() -> None:
    mate = Other("a", 50)
    bench, reign = coordinating(mate)
    stalled = bench.now = bench.now + 2.0
    bench.feed(Tick())
    assert (bench.last().role, bench.last().coordinator) == (Role.FOLLOWER, None)
    assert bench.last().why == "was stalled 1.9 s, listening"
    bench.wait(stalled + 0.5, (mate, reign, None, Role.FOLLOWER))
    took, follow = bench.follows()[-1]
    assert (follow.role, follow.term) == (Role.COORDINATOR, reign.term + 1)
    assert took == pytest.approx(stalled + 0.3)


def test_uptime_starts_anew_after_a_sleep() -> None:
    bench = Bench()
    bench.wait(100.0)
    assert bench.machine.rank(bench.now).uptime_steps == 10
    bench.now = 8 * 3600.0
    bench.feed(Tick())
    assert bench.machine.rank(bench.now).uptime_steps == 0


def test_who_slept_alone_listens_before_it_rules_itself_again() -> None:
    bench = Bench()
    bench.wait(5.0)
    bench.now += 3600.0
    bench.feed(Tick())
    assert (bench.last().role, bench.last().why.split()[0]) == (Role.FOLLOWER, "slept")
    bench.wait(bench.now + 1.0)
    assert bench.machine.alone


def test_a_follower_that_slept_does_not_say_it_has_just_heard_the_coordinator() -> None:
    bench, _ = following(Other("a"))
    bench.now += 60.0
    bench.feed(Tick())
    assert bench.said("hb")[-1][1].message.age_s == pytest.approx(60.1, abs=0.2)


def test_who_was_stalled_takes_nothing_over_on_what_it_heard_before() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, _ = following(boss, mate)
    bench.now += 20.0
    bench.feed(LinkClosed("a"))
    bench.wait(bench.now + 1.0)
    assert (bench.machine.role, bench.machine.term) == (Role.ALONE, 5)
