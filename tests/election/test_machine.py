"""Who coordinates: every rule of docs/election.md, one test each, on one machine and a hand-held clock. Whole meshes:
tests/sim. Stalls, odd datagrams, leaving and far nodes have files of their own beside this one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from election.messages import Follow, LinkClosed, PeerForgotten, Reign, Remember, Role, Send
from tests.election.fakes import Bench, Other, coordinating, following, reign_of

# Start


def test_says_hello_at_once_and_then_every_100_ms() -> None:
    bench = Bench()
    bench.wait(5.05)
    times = [t for t, _ in bench.said("hb")]
    assert times[0] == 0.0
    assert all(later - earlier <= 0.1001 for earlier, later in pairwise(times))


def test_listens_for_650_ms_before_it_rules_only_itself() -> None:
    bench = Bench(term=7)
    bench.wait(5.0)
    ((at, follow),) = bench.follows()
    assert at == pytest.approx(0.65)
    assert (follow.role, follow.coordinator, follow.term) == (Role.ALONE, "m", 7), "alone takes no term"
    assert bench.machine.alone


def test_alone_with_priority_0_has_no_coordinator() -> None:
    bench = Bench(priority=0)
    bench.wait(5.0)
    assert bench.last() == Follow(Role.ALONE, None, 0, bench.last().why)


def test_starts_from_the_term_on_disk() -> None:
    other = Other("a", born=0.0)
    bench = Bench(term=41)
    bench.wait(1.0, (other, Reign(), None, Role.FOLLOWER))
    assert (bench.machine.role, bench.machine.term) == (Role.COORDINATOR, 42)
    kept = [e for _, e in bench.log].index(Remember(42))
    told = next(i for i, (_, e) in enumerate(bench.log) if isinstance(e, Send) and e.message.reign.term == 42)
    assert kept < told, "on disk before anybody hears of it"


def test_follows_the_coordinator_it_hears() -> None:
    bench, _ = following(Other("a"))
    assert [f.coordinator for _, f in bench.follows()] == ["a"]
    assert Remember(5) in [e for _, e in bench.log]


# Rule 1: silence, asking, succession


def test_asks_three_times_before_it_gives_a_silent_coordinator_up() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, reign = following(boss, mate)
    bench.wait(2.0, (mate, reign, None, Role.FOLLOWER))
    asks = [t for t, _ in bench.said("ask")]
    assert asks == pytest.approx([1.35, 1.40, 1.45], abs=0.001)
    took, follow = bench.follows()[-1]
    assert took == pytest.approx(1.50, abs=0.001)
    assert follow == Follow(Role.COORDINATOR, "m", 6, "coordinator silent 0.50 s, confirmed")


def test_a_fresh_report_of_another_clears_the_suspicion() -> None:
    boss, mate = Other("a"), Other("b")
    bench, reign = following(boss, mate)
    bench.wait(5.0, (mate, reign, "a", Role.FOLLOWER))
    assert bench.machine.coordinator == "a"
    assert len(bench.follows()) == 1


def test_a_stale_report_does_not() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, reign = following(boss, mate)
    for _ in range(10):
        bench.wait(bench.now + 0.1)
        bench.feed(mate.says(bench.now, reign=reign, coordinator="a", age_s=0.3))
    assert bench.machine.role is Role.COORDINATOR


def test_answers_who_asks_only_if_it_has_heard() -> None:
    boss, mate = Other("a"), Other("b")
    bench, reign = following(boss, mate)
    bench.feed(mate.says(bench.now, "ask", reign=reign, coordinator="a", age_s=0.4))
    ((_, answer),) = bench.said("alive")
    assert answer.to == "b"
    assert answer.message.age_s < 0.35
    bench.wait(bench.now + 0.36)
    bench.feed(mate.says(bench.now, "ask", reign=reign, coordinator="a", age_s=0.8))
    assert len(bench.said("alive")) == 1


def test_a_coordinator_that_is_asked_for_answers_itself() -> None:
    mate = Other("a", 50)
    bench, reign = coordinating(mate)
    bench.feed(mate.says(bench.now, "ask", reign=reign, coordinator="m", age_s=0.4))
    ((_, answer),) = bench.said("alive")
    assert (answer.to, answer.message.role) == ("a", Role.COORDINATOR)


@pytest.mark.parametrize(("longest", "silence_s"), [(0.1, 0.35), (0.3, 0.55), (0.9, 1.45), (1.4, 1.5)])
def test_patience_grows_with_the_longest_gap(longest: float, silence_s: float) -> None:
    boss = Other("a")
    bench, reign = following(boss)
    bench.wait(bench.now + longest)
    bench.feed(boss.rules(bench.now, reign))
    assert bench.machine.coordinator == "a"
    asked = len(bench.said("ask"))
    heard = bench.now
    bench.wait(bench.now + 2.0)
    assert bench.said("ask")[asked][0] - heard == pytest.approx(silence_s, abs=0.02)


def test_each_better_live_rank_is_left_100_ms() -> None:
    boss, better, worse, never = Other("a"), Other("b", 200), Other("c", 50), Other("d", 0)
    bench, reign = following(boss, better, worse, never)
    bench.feed(LinkClosed("a"))
    ended = bench.now
    bench.wait(ended + 0.5, *((o, reign, None, Role.FOLLOWER) for o in (better, worse, never)))
    took = next(t for t, f in bench.follows() if f.role is Role.COORDINATOR)
    assert took == pytest.approx(ended + 0.1)


# Rule 2: goodbye, a process that ended


def test_a_goodbye_is_believed_at_once() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, reign = following(boss, mate)
    bench.feed(boss.rules(bench.now, reign, "bye"))
    assert (bench.last().role, bench.last().why) == (Role.COORDINATOR, "coordinator said goodbye")
    assert "a" not in bench.machine.live(bench.now)


def test_an_ended_process_too_but_only_the_coordinators_matters() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, _ = following(boss, mate)
    bench.feed(LinkClosed("b"))
    assert bench.machine.coordinator == "a"
    assert bench.machine.live(bench.now) == ["a"]
    bench.feed(LinkClosed("a"))
    assert (bench.last().role, bench.last().term) == (Role.ALONE, 5), "nobody is left: alone, in the old term"


def test_a_forgotten_coordinator_is_succeeded() -> None:
    bench, _ = following(Other("a"), Other("b", 50))
    bench.feed(PeerForgotten("a"))
    assert (bench.last().role, bench.last().why) == (Role.COORDINATOR, "coordinator removed")


def test_a_coordinator_that_restarted_coordinates_no_more() -> None:
    boss, mate = Other("a"), Other("b", 50)
    bench, _ = following(boss, mate)
    bench.wait(1.5, (mate, boss_reign := reign_of(boss, 5), "a", Role.FOLLOWER))
    again = Other("a", boot="b2", born=bench.now)
    bench.feed(again.says(bench.now, reign=Reign(5)))
    assert (bench.last().role, bench.last().why) == (Role.COORDINATOR, "coordinator stepped down")
    assert bench.machine.reign.key() > boss_reign.key()


def test_a_clone_does_not_unseat_the_coordinator_whose_id_it_has() -> None:
    """Of two boots of one id the one that speaks is believed, until it has been silent."""
    boss, mate = Other("a"), Other("b", 50)
    bench, reign = following(boss, mate)
    clone = Other("a", boot="b0", born=bench.now)
    for _ in range(50):
        bench.wait(bench.now + 0.1, (mate, reign, "a", Role.FOLLOWER), (boss, reign, "a", Role.COORDINATOR))
        bench.feed(clone.says(bench.now, reign=Reign(5)))
    assert [f.coordinator for _, f in bench.follows()] == ["a"]


# Rule 3: terms settle splits


def test_a_later_reign_wins_and_an_older_one_is_ignored() -> None:
    boss, rival = Other("a"), Other("b")
    bench, reign = following(boss)
    bench.feed(rival.rules(bench.now, reign_of(rival, 4)))
    assert bench.machine.coordinator == "a"
    bench.feed(rival.rules(bench.now, reign_of(rival, 6)))
    assert (bench.machine.coordinator, bench.machine.term) == ("b", 6)
    bench.feed(boss.rules(bench.now, reign))
    assert bench.machine.coordinator == "b"


def test_of_two_holders_of_one_number_the_better_rank_wins() -> None:
    boss, better = Other("a"), Other("b", 200)
    bench, reign = following(boss)
    bench.feed(better.rules(bench.now, reign_of(better, 5)))
    assert (bench.machine.coordinator, bench.machine.term) == ("b", 5)
    bench.feed(boss.rules(bench.now, reign))
    assert bench.machine.coordinator == "b"


def test_a_coordinator_tells_a_deposed_one_at_once() -> None:
    mate, old = Other("a", 50), Other("b")
    bench, _ = coordinating(mate)
    bench.feed(old.rules(bench.now, reign_of(old, 0)))
    assert [s.to for _, s in bench.said("hb") if s.to] == ["b"]


def test_a_coordinator_renews_its_term_for_a_node_that_remembers_a_later_one() -> None:
    mate, late = Other("a", 50), Other("b", 0)
    bench, reign = coordinating(mate)
    bench.feed(late.says(bench.now, reign=Reign(reign.term + 8)))
    assert (bench.last().coordinator, bench.last().term) == ("m", reign.term + 9)


def test_also_for_one_that_remembers_the_same_number_held_by_a_better_rank() -> None:
    mate, late = Other("a", 50), Other("b", 0)
    bench, reign = coordinating(mate)
    better = Reign(reign.term, replace(late.rank(bench.now), priority=300))
    bench.feed(late.says(bench.now, reign=better))
    assert (bench.last().coordinator, bench.last().term) == ("m", reign.term + 1)


def test_a_lone_node_that_knows_a_later_term_settles_it_in_a_new_one() -> None:
    old = Other("a", 50)
    bench = Bench(term=9)
    bench.wait(2.0)
    assert bench.machine.alone
    bench.wait(2.3, (old, reign_of(old, 5), "a", Role.COORDINATOR))
    assert (bench.last().role, bench.last().term) == (Role.COORDINATOR, 10)


def test_a_coordinator_known_to_others_is_followed_on_their_word() -> None:
    boss, mate = Other("a"), Other("b")
    bench = Bench()
    bench.feed(mate.says(0.0, reign=reign_of(boss, 3), coordinator="a"))
    assert (bench.machine.coordinator, bench.machine.term) == ("a", 3)


def test_nobody_is_told_that_it_coordinates_by_others() -> None:
    me, mate = Other("m", boot="b0"), Other("b")
    bench = Bench()
    bench.feed(mate.says(0.0, reign=reign_of(me, 3), coordinator="m"))
    assert bench.machine.coordinator is None


# Rule 4: alone


def test_a_coordinator_that_hears_nobody_is_alone_and_comes_back_without_an_election() -> None:
    mate = Other("a", 50)
    bench, reign = coordinating(mate)
    bench.wait(2.0)
    assert (bench.last().role, bench.last().coordinator, bench.last().term) == (Role.ALONE, "m", reign.term)
    bench.feed(mate.says(bench.now, reign=reign, coordinator="m"))
    assert (bench.last().role, bench.machine.reign) == (Role.COORDINATOR, reign)


def test_a_deaf_follower_deposes_nobody_and_follows_again() -> None:
    boss = Other("a")
    bench, reign = following(boss, Other("b"))
    bench.wait(4.0)
    assert (bench.last().role, bench.last().term) == (Role.ALONE, 5)
    bench.feed(boss.rules(bench.now, reign))
    assert (bench.last().role, bench.last().coordinator, bench.last().term) == (Role.FOLLOWER, "a", 5)


def test_two_lone_nodes_settle_by_rank() -> None:
    for priority, seconds in ((50, 0.0), (200, 0.1)):
        other, bench = Other("a", priority), Bench()
        bench.wait(2.0)
        bench.feed(other.says(2.0, reign=Reign(), coordinator="a", role=Role.ALONE))
        bench.wait(2.35, (other, Reign(), "a", Role.ALONE))
        took = next(t for t, f in bench.follows() if f.role is Role.COORDINATOR)
        assert took == pytest.approx(2.0 + seconds)


# Priority 0


def test_priority_0_beside_a_dead_coordinator_has_none() -> None:
    boss, mate = Other("a"), Other("b", 0)
    bench, reign = following(boss, mate, priority=0)
    bench.feed(LinkClosed("a"))
    bench.wait(10.0, (mate, reign, None, Role.FOLLOWER))
    assert (bench.last().role, bench.last().coordinator) == (Role.FOLLOWER, None)
    assert not bench.machine.alone


def test_priority_0_does_not_accept_a_handover() -> None:
    boss = Other("a")
    bench, reign = following(boss, priority=0)
    bench.feed(boss.rules(bench.now, reign, "yield"))
    assert bench.machine.coordinator == "a"


# Rule 5: handover


def handed(bench: Bench) -> list[float]:
    return [t for t, _ in bench.said("yield")]


def test_hands_over_to_a_higher_priority_after_30_s_and_rules_until_it_is_heard() -> None:
    heir = Other("a", 200, born=-5.0)
    bench, reign = coordinating(heir)
    bench.wait(40.0, (heir, reign, "m", Role.FOLLOWER))
    took = next(t for t, f in bench.follows() if f.role is Role.COORDINATOR)
    assert handed(bench)[0] == pytest.approx(took + 30, abs=0.2)
    assert bench.machine.role is Role.COORDINATOR, "make before break"
    bench.feed(heir.rules(bench.now, reign_of(heir, reign.term + 1, bench.now)))
    assert (bench.last().role, bench.last().coordinator) == (Role.FOLLOWER, "a")


def test_an_heir_that_does_not_take_over_in_a_second_is_asked_again_after_30() -> None:
    heir = Other("a", 200)
    bench, reign = coordinating(heir)
    bench.wait(75.0, (heir, reign, "m", Role.FOLLOWER))
    first = handed(bench)[0]
    assert [t for t in handed(bench) if first + 1.1 < t < first + 30.9] == []
    assert handed(bench)[-1] > first + 30.9


def test_uptime_or_id_alone_take_nothing_over() -> None:
    elder = Other("z", 100)
    bench, reign = coordinating(elder)
    bench.wait(100.0, (elder, reign, "m", Role.FOLLOWER))
    assert handed(bench) == []


def test_no_handover_to_a_node_that_does_not_follow() -> None:
    deaf = Other("a", 200)
    bench, reign = coordinating(deaf)
    bench.wait(60.0, (deaf, reign, "a", Role.ALONE))
    assert handed(bench) == []


def test_a_handover_is_taken_at_once_and_says_why() -> None:
    boss = Other("a")
    bench, reign = following(boss, priority=200)
    bench.feed(boss.rules(bench.now, reign, "yield"))
    assert bench.last() == Follow(Role.COORDINATOR, "m", 6, "priority 200 > 100, handed over")
    bench.feed(boss.rules(bench.now, reign, "yield"))
    assert bench.machine.term == 6, "a repeated offer changes nothing"


def test_a_node_that_failed_soon_after_taking_over_waits_twice_as_long() -> None:
    heir, boss = Other("a", 200), Other("b", 150)
    bench, _ = following(heir, boss)
    bench.feed(LinkClosed("a"))
    bench.wait(1.1, (boss, reign_of(boss, 6), "b", Role.COORDINATOR))
    bench.feed(boss.rules(bench.now, reign_of(boss, 6), "bye"))
    heir.boot = "b2"
    start, reign = bench.now, bench.machine.reign
    bench.feed(heir.says(bench.now, reign=reign, coordinator="m"))
    while bench.machine.role is not Role.COORDINATOR:
        bench.wait(bench.now + 0.1)
        bench.feed(heir.says(bench.now, reign=bench.machine.reign, coordinator=bench.machine.coordinator))
    bench.wait(start + 70.0, (heir, bench.machine.reign, "m", Role.FOLLOWER))
    assert handed(bench)[0] == pytest.approx(start + 60.0, abs=0.5)
