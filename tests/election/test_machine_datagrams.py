"""What the machine makes of datagrams that are repeated, overtaken, forged, nonsense or from strangers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from election.messages import Heard, LinkClosed, Reign, Role
from election.settings import ElectionSettings
from tests.election.fakes import Bench, Other, following, reign_of


def test_repeated_overtaken_and_former_datagrams_are_dropped() -> None:
    boss, rival = Other("a"), Other("b")
    bench, _ = following(boss)
    late = rival.rules(bench.now, reign_of(rival, 9))
    bench.feed(rival.says(bench.now, reign=Reign()))
    bench.feed(late)
    assert bench.machine.coordinator == "a", "overtaken"
    bench.feed(LinkClosed("b"))
    again = Other("b", boot="b2", born=bench.now - 0.1)
    former = rival.rules(bench.now, reign_of(rival, 9))
    bench.feed(again.says(bench.now, reign=Reign()))
    bench.feed(former)
    assert bench.machine.coordinator == "a", "sent before its restart"


def test_a_boot_that_fell_silent_gives_way_to_one_that_speaks() -> None:
    """A stray datagram must not make anybody deaf to the process that runs."""
    bench, _ = following(Other("a"))
    running, stray = Other("b", boot="b1", born=0.0), Other("b", boot="b2", born=0.5)
    bench.feed(running.says(bench.now, reign=Reign()))
    bench.feed(stray.says(bench.now, reign=Reign()))
    assert bench.machine._peers.get("b").boot == "b1"
    bench.wait(bench.now + 0.46)
    bench.feed(stray.says(bench.now, reign=Reign()))
    assert bench.machine._peers.get("b").boot == "b2"


def test_a_forged_number_silences_its_owner_for_a_moment_only() -> None:
    boss = Other("a")
    bench, reign = following(boss)
    forged = replace(boss.rules(bench.now, reign).message, seq=2**40)
    bench.feed(Heard(forged))
    bench.wait(bench.now + 2.0, (boss, reign, "a", Role.COORDINATOR))
    assert bench.machine.coordinator == "a"
    assert bench.machine._peers.get("a").seq < 1000


def test_a_term_far_ahead_is_not_believed_at_once() -> None:
    boss, liar = Other("a"), Other("b")
    bench, reign = following(boss)
    bench.feed(liar.rules(bench.now, reign_of(liar, 2**53 - 1)))
    assert (bench.machine.coordinator, bench.machine.term) == ("a", reign.term)
    bench.feed(LinkClosed("a"))
    bench.wait(bench.now + 0.5, (Other("c", 50), reign, None, Role.FOLLOWER))
    assert bench.machine.term == reign.term + 1, "nor does it cost any numbers"


def test_a_node_that_has_lost_count_catches_up_with_its_mesh() -> None:
    boss = Other("a")
    bench, reign = Bench(), reign_of(boss, 5 << 20)
    bench.wait(2.0, (boss, reign, "a", Role.COORDINATOR))
    assert (bench.machine.coordinator, bench.machine.term) == ("a", 5 << 20)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"mesh": "other"},
        {"sender": "m"},
        {"uptime_s": float("nan")},
        {"age_s": -1.0},
        {"age_s": float("inf")},
        {"reign": Reign(2**60)},
        {"reign": Reign(9)},
        {"coordinator": "x"},
        {"boot": "b9"},
    ],
)
def test_nonsense_and_other_meshes_are_dropped(nonsense: dict[str, object]) -> None:
    boss, rival = Other("a"), Other("b")
    bench, _ = following(boss)
    good = rival.rules(bench.now, reign_of(rival, 9)).message
    assert bench.feed(Heard(replace(good, **nonsense))) == []
    assert bench.machine.coordinator == "a"
    bench.feed(Heard(good))
    assert bench.machine.coordinator == "b"


def test_strangers_are_bounded_and_old_ones_make_room() -> None:
    bench = Bench(settings=ElectionSettings(peers_max=3))
    for name in "abcd":
        bench.feed(Other(name).says(bench.now, reign=Reign()))
    assert sorted(bench.machine.live(bench.now)) == ["a", "b", "c"]
    bench.wait(601.0)
    bench.feed(Other("d").says(bench.now, reign=Reign()))
    assert bench.machine.live(bench.now) == ["d"]
