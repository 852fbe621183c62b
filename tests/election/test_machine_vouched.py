"""Is somebody about to succeed the coordinator? Not while it is heard, here or by others."""

from __future__ import annotations

from election.messages import Role
from tests.election.fakes import Bench, Other, following


def test_nobody_vouches_for_a_coordinator_that_is_not_there() -> None:
    bench = Bench()
    assert not bench.machine.vouched(bench.now)


def test_a_coordinator_that_is_silent_here_is_vouched_for_by_others() -> None:
    boss, mate = Other("a"), Other("b")
    bench, reign = following(boss, mate)
    for _ in range(50):
        bench.wait(bench.now + 0.1, (mate, reign, "a", Role.FOLLOWER))
        assert bench.machine.vouched(bench.now)


def test_one_that_nobody_hears_is_not() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, reign = following(boss, mate)
    since = bench.now
    bench.wait(since + 0.45, (mate, reign, None, Role.FOLLOWER))
    assert bench.machine.vouched(bench.now), "the others are still being asked"
    bench.wait(since + 0.55, (mate, reign, None, Role.FOLLOWER))
    assert bench.machine.coordinator != "a"
