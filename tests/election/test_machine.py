"""Every rule of docs/election.md, one test each, on one machine and a hand-held clock. Whole meshes: tests/sim."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from msgspec.structs import replace

from election.machine import Election
from election.messages import (
    Effect,
    Follow,
    Heard,
    Id,
    Kind,
    Leave,
    LinkClosed,
    Message,
    PeerForgotten,
    PeerKnown,
    Rank,
    Reign,
    Remember,
    Retune,
    Role,
    Send,
    Tick,
)
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

    def feed(self, event: Heard | Leave | LinkClosed | PeerForgotten | PeerKnown | Retune | Tick) -> list[Effect]:
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


# Stalls


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


# Datagrams


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


# Leaving, retuning


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


# Far nodes


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


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_s": 0.4},
        {"cap_s": 0.3},
        {"far_floor_s": 9.0},
        {"lag_s": 0.05},
        {"asks": 0},
        {"byes": 0},
        {"peers_max": 0},
    ],
)
def test_contradicting_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"need|at least"):
        ElectionSettings(**wrong)
