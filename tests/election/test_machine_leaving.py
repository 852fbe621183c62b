"""The machine that leaves, or whose priority is changed while it runs."""

from __future__ import annotations

import pytest

from election.messages import Leave, Retune, Role, Tick
from tests.election.fakes import Bench, Other, coordinating, following, reign_of


def test_a_follower_says_goodbye_three_times_and_is_gone() -> None:
    bench, _ = following(Other("a"))
    bench.feed(Leave())
    bench.wait(2.0)
    assert len(bench.said("bye")) == 3
    assert bench.machine.left
    assert (bench.last().role, bench.last().why) == (Role.ALONE, "left the mesh")
    assert bench.feed(Tick()) == []


def test_a_leaving_coordinator_hands_over_first() -> None:
    mate, better, never = Other("a", 50), Other("b", 70), Other("c", 0)
    bench, reign = coordinating(mate, better, never)
    bench.feed(Leave())
    assert [s.to for _, s in bench.said("yield")] == ["b"]
    assert bench.said("bye") == []
    bench.feed(better.rules(bench.now, reign_of(better, reign.term + 1)))
    bench.wait(2.0)
    assert bench.machine.left
    assert len(bench.said("bye")) == 3


def test_a_leaving_coordinator_does_not_wait_for_ever() -> None:
    mate = Other("a", 50)
    bench, reign = coordinating(mate)
    bench.feed(Leave())
    left = bench.now
    bench.wait(left + 1.5, (mate, reign, "m", Role.FOLLOWER))
    assert bench.machine.left
    assert bench.said("bye")[-1][0] == pytest.approx(left + 1.15, abs=0.1)


def test_a_coordinator_tuned_to_priority_0_hands_over() -> None:
    mate = Other("a", 50)
    bench, reign = coordinating(mate)
    bench.feed(Retune(0))
    assert [s.to for _, s in bench.said("yield")] == ["a"]
    bench.feed(mate.rules(bench.now, reign_of(mate, reign.term + 1)))
    assert bench.machine.coordinator == "a"


def test_or_steps_down_when_nobody_can_take_over() -> None:
    mate = Other("a", 0)
    bench, _ = coordinating(mate)
    bench.feed(Retune(0))
    assert (bench.last().role, bench.last().coordinator) == (Role.FOLLOWER, None)


def test_a_lone_node_is_retuned_too() -> None:
    bench = Bench(priority=0)
    bench.wait(2.0)
    bench.feed(Retune(100))
    assert (bench.last().role, bench.last().coordinator) == (Role.ALONE, "m")
    assert bench.said("hb")[-1][1].message.rank.priority == 0
    bench.wait(2.2)
    assert bench.said("hb")[-1][1].message.rank.priority == 100
