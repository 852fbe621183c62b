"""Nodes of another site in the machine: they rank behind the near ones, and are spoken to and waited for otherwise."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from election.messages import Heard, PeerForgotten, PeerKnown, Reign
from tests.election.fakes import Bench, Other, coordinating, reign_of


def test_a_node_that_was_added_ranks_behind_the_near_ones() -> None:
    bench = Bench(priority=200)
    bench.feed(Heard(replace(Other("a", 50).says(0.0, reign=Reign()).message, far=True)))
    assert not bench.machine.rank(0.0).near
    bench.feed(PeerForgotten("a"))
    assert bench.machine.rank(0.0).near


def test_a_far_node_hands_over_to_a_near_one_of_lower_priority() -> None:
    near, mate = Other("a", 50), Other("b", 0)
    bench, reign = coordinating(near, mate)
    told = replace(near.says(bench.now, reign=reign, coordinator="m").message, far=True)
    for _ in range(400):
        bench.wait(bench.now + 0.1)
        told = replace(told, seq=told.seq + 1)
        bench.feed(Heard(told))
    assert {s.to for _, s in bench.said("yield")} == {"a"}


def test_far_peers_are_spoken_to_one_by_one_and_less_often() -> None:
    bench = Bench()
    bench.feed(PeerKnown("near"))
    bench.feed(PeerKnown("far", far=True))
    bench.wait(5.0)
    to = [s.to for t, s in bench.said("hb") if t >= 1.0]
    assert to.count("near") == pytest.approx(40, abs=2)
    assert to.count("far") == pytest.approx(8, abs=2)
    assert {s.message.far for _, s in bench.said("hb") if s.to == "far"} == {True}


def test_a_peer_may_come_nearer_and_go_far_again() -> None:
    """Its address changed: another subnet, or home again."""
    bench = Bench()
    for far, per_second in ((True, 2), (False, 10), (True, 2)):
        bench.feed(PeerKnown("a", far=far))
        start = bench.now + 1.0
        bench.wait(start + 5.0)
        to = [s for t, s in bench.said("hb") if t >= start and s.to in (None, "a")]
        assert len(to) == pytest.approx(5 * per_second, abs=2)
        assert {s.message.far for s in to} == {far}


def test_a_far_coordinator_may_be_silent_for_longer() -> None:
    boss = Other("a")
    bench = Bench()
    bench.feed(PeerKnown("a", far=True))
    bench.feed(boss.rules(0.0, reign_of(boss, 5)))
    bench.wait(1.4)
    assert bench.said("ask") == []
    bench.wait(1.6)
    assert bench.said("ask")
