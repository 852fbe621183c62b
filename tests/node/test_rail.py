"""The account of model memory: whose turn it is, who goes for it, and what is said meanwhile."""

from __future__ import annotations

from node.headroom import GIB
from node.rail import load_order
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
    Release,
    Reserve,
    Settled,
    Slow,
    Tick,
)
from tests.node.rails import Told, evicted

# Turns


def test_one_load_at_a_time_in_the_order_asked() -> None:
    it = Told(10)
    assert it.say(Reserve("a", 4)) == [Load("a")]
    assert it.say(Reserve("b", 3)) == []
    assert it.say(Reserve("c", 3)) == []
    assert (it.rail.used_bytes, it.rail.headroom_bytes) == (10, 0)
    assert it.say(Settled("a")) == [Load("b")]
    assert it.say(Release("c")) == []  # Given up while it waited for its turn.
    assert it.say(Settled("b")) == []
    assert it.rail.used_bytes == 7


def test_a_load_that_dies_gives_its_turn_on() -> None:
    it = Told(10)
    it.say(Reserve("a", 4))
    it.say(Reserve("b", 4))
    assert it.say(Release("a")) == [Load("b")]
    assert it.say(Release("a")) == []


def test_a_slow_load_keeps_its_bytes_and_nobody_waiting() -> None:
    it = Told(10)
    it.say(Reserve("a", 4))
    it.say(Reserve("b", 4))
    it.say(Reserve("c", 2))
    assert it.say(Slow("a")) == [Load("b")]
    assert it.say(Slow("a")) == []
    assert it.rail.used_bytes == 10
    assert it.say(Settled("a")) == [], "b still loads"
    assert it.say(Settled("b")) == [Load("c")]
    assert it.say(Slow("c")) == []
    assert it.say(Release("c")) == []
    assert it.rail.used_bytes == 8


def test_a_server_that_is_not_ours_waits_for_nobody() -> None:
    it = Told(5)
    it.say(Reserve("a", 5))
    assert it.say(Reserve("elsewhere", 0)) == [Load("elsewhere")]
    assert it.say(Settled("elsewhere")) == []
    assert it.say(Release("elsewhere")) == []


def test_who_is_not_patient_is_told_what_is_in_its_way() -> None:
    it = Told(10 * GIB)
    it.loaded("big", 6 * GIB)
    it.loaded("small", 1 * GIB, pinned=True)
    it.say(Reserve("elsewhere", 0))
    (full,) = it.say(Reserve("c", 4 * GIB, patient=False))
    assert full == Full(
        "c",
        "needs 4.0 GB, 3.0 GB of 10.0 GB free: "
        "in its way are big 6.0 GB (used less than 15 s ago), small 1.0 GB (pinned)",
    )
    (never,) = it.say(Reserve("huge", 11 * GIB))
    assert isinstance(never, Full)
    assert "can never fit" in never.why
    (pins,) = it.say(Reserve("large", 10 * GIB))  # Only without the pinned one.
    assert isinstance(pins, Full)
    assert pins.why.endswith("it can never fit beside what is pinned (small 1.0 GB)")


def test_pinned_first_then_largest() -> None:
    sizes = {"s": 1, "l": 9, "m": 5, "m2": 5, "p": 2}
    assert load_order(sizes, frozenset({"p"})) == ["p", "l", "m", "m2", "s"]


# Eviction


def test_an_idle_model_goes_once_it_was_quiet_for_the_gap() -> None:
    it = Told(10)
    it.loaded("a", 6)
    it.say(Began("a", 1), 5.0)
    (held,) = it.say(Reserve("b", 6), 6.0, held=True)
    assert isinstance(held, Held)
    assert held.why.endswith("(answering)")
    assert it.say(Ended("a", 0), 10.0) == []
    assert it.wait(24.9) == []
    assert it.wait(25.0) == [Evict("a", "its room goes to b", "evicted")]
    assert it.rail.yields("a")
    assert it.say(Release("a")) == [Load("b")]
    assert it.rail.used_bytes == 6


def test_never_three_where_one_is_enough() -> None:
    it = Told(12)
    it.loaded("big", 6, load_s=60.0)
    for name in ("s1", "s2", "s3"):
        it.loaded(name, 2)
    it.used("big", 9)
    it.now = 20.0
    assert evicted(it.say(Reserve("b", 6))) == ["big"]


def test_the_cheapest_to_bring_back_goes() -> None:
    it = Told(10)
    it.loaded("slow", 5, load_s=30.0)
    it.loaded("quick", 5, load_s=2.0)
    it.used("slow", 3)
    it.used("quick", 3)
    it.now = 20.0
    assert evicted(it.say(Reserve("b", 4))) == ["quick"]


def test_what_is_asked_for_often_stays() -> None:
    it = Told(10)
    it.loaded("often", 5, load_s=5.0)
    it.loaded("once", 5, load_s=20.0)
    it.used("often", 50)
    it.used("once")
    it.now = 20.0
    assert evicted(it.say(Reserve("b", 4))) == ["once"]


def test_what_was_asked_for_often_long_ago_does_not() -> None:
    it = Told(10, demand_half_life_s=60.0)
    it.loaded("then", 5)
    it.loaded("now", 5)
    it.used("then", 50)
    it.now = 1200.0
    it.used("now", 1)
    it.now = 1300.0
    assert evicted(it.say(Reserve("b", 4))) == ["then"]


def test_a_pinned_model_never_goes() -> None:
    it = Told(10)
    it.loaded("pinned", 5, pinned=True, keep_s=1.0)
    it.loaded("other", 5, load_s=99.0)
    it.used("other", 9)
    it.now = 100.0
    assert evicted(it.say(Reserve("b", 4))) == ["other"]
    assert evicted(it.wait(1000.0)) == []


def test_the_gap_can_change() -> None:
    it = Told(10)
    it.loaded("a", 6)
    it.say(Reserve("b", 6), 1.0)
    assert evicted(it.say(Gap(1.0))) == ["a"]


# Turns of those who wait


def test_small_ones_that_keep_coming_do_not_starve_a_big_one() -> None:
    it = Told(10, turn_s=20.0)
    it.loaded("s1", 5)
    it.loaded("s2", 5)
    it.say(Began("s1", 1))
    it.say(Began("s2", 1), 1.0)
    assert it.say(Reserve("big", 9), 2.0) == []
    it.say(Ended("s1", 0), 3.0)
    it.say(Began("s1", 1), 4.0)
    assert not it.rail.yields("s1")
    assert it.wait(22.0) == []
    assert it.rail.yields("s1")
    assert it.rail.yields("s2")
    assert it.say(Reserve("s3", 2), 23.0) == []  # It would take what the big one needs.
    assert it.say(Ended("s2", 0), 24.0) == [Evict("s2", "its room goes to big", "evicted")]
    assert it.say(Release("s2"), 25.0) == []
    assert it.say(Ended("s1", 0), 26.0) == [Evict("s1", "its room goes to big", "evicted")]
    assert it.say(Release("s1"), 27.0) == [Load("big")]
    assert it.say(Settled("big"), 28.0) == []
    assert evicted(it.wait(48.0)) == ["big"]  # The next turn.
    assert it.say(Release("big")) == [Load("s3")]


def test_what_fits_beside_a_claim_is_loaded() -> None:
    it = Told(10, turn_s=20.0)
    it.loaded("a", 6)
    it.say(Began("a", 1))
    it.say(Reserve("big", 7))
    it.wait(30.0)
    assert it.rail.yields("a")
    assert it.say(Reserve("fits", 3)) == [Load("fits")]
    assert it.say(Reserve("not", 1)) == []


def test_before_its_time_others_may_pass_a_blocked_one() -> None:
    it = Told(10, turn_s=20.0)
    it.loaded("a", 6)
    it.say(Began("a", 1))
    assert it.say(Reserve("big", 6), 1.0) == []
    assert it.say(Reserve("small", 4), 2.0) == [Load("small")]
    it.say(Settled("small"), 3.0)
    assert it.wait(20.9) == []
    assert not it.rail.yields("a")
    assert it.wait(21.0) == []
    assert it.rail.yields("a")
    assert it.say(Ended("a", 0), 25.0) == [Evict("a", "its room goes to big", "evicted")]
    assert not it.rail.yields("small")  # One is enough.


def test_a_model_just_loaded_is_not_claimed_before_its_turn_is_over() -> None:
    it = Told(10, turn_s=20.0)
    assert it.say(Reserve("a", 6)) == [Load("a")]
    it.say(Reserve("b", 6), 1.0)
    it.say(Began("a", 1), 30.0)
    it.say(Settled("a"), 30.0)
    it.wait(49.9)
    assert not it.rail.yields("a")
    it.wait(50.0)
    assert it.rail.yields("a")
    it.say(Release("b"), 51.0)  # Nobody waits any more.
    assert not it.rail.yields("a")


def test_the_line_is_first_come_first() -> None:
    it = Told(10)
    it.loaded("a", 10)
    it.say(Began("a", 1))
    for number, name in enumerate("bcd"):
        it.say(Reserve(name, 10), float(number))
    assert it.rail.line == ("b", "c", "d")
    it.say(Release("c"))
    it.wait(40.0)
    it.say(Ended("a", 0))
    assert it.say(Release("a")) == [Load("b")]
    assert it.rail.line == ("d",)
    assert it.rail.wait_s("x", 10, it.now) == 40.0
    assert it.rail.wait_s("d", 10, it.now) == 20.0


def test_who_waits_is_told_when_the_reason_changes() -> None:
    it = Told(10 * GIB)
    it.loaded("a", 6 * GIB)
    it.say(Began("a", 1))
    (held,) = it.say(Reserve("b", 6 * GIB), held=True)
    assert held == Held("b", "needs 6.0 GB, 4.0 GB of 10.0 GB free: in its way are a 6.0 GB (answering)")
    assert it.say(Tick(), held=True) == []
    (held,) = it.say(Reserve("c", 6 * GIB), held=True)
    assert isinstance(held, Held)
    assert held.why.endswith("b, which waits longer")
    assert len(it.say(Ended("a", 0), held=True)) == 2


# Budgets and truth


def test_a_smaller_budget_reserves_nothing_new_and_idle_models_go_first() -> None:
    it = Told(10)
    it.loaded("busy", 4)
    it.loaded("idle", 3)
    it.loaded("pinned", 2, pinned=True)
    it.say(Began("busy", 1))
    assert evicted(it.say(Budget(8))) == ["idle"]  # The gap does not count: the machine is short of memory.
    assert it.say(Reserve("b", 1)) == []
    assert it.say(Release("idle")) == [Load("b")]
    it.say(Settled("b"))
    assert evicted(it.say(Budget(5))) == ["b"]
    it.say(Release("b"))
    assert it.say(Reserve("c", 1)) == []
    assert it.rail.headroom_bytes == 0
    it.wait(it.now + 20.0)
    assert it.rail.yields("busy")
    assert evicted(it.say(Ended("busy", 0))) == ["busy"]
    assert it.say(Release("busy")) == [Load("c")]


def test_a_budget_too_small_for_who_waits_says_so() -> None:
    it = Told(10)
    it.loaded("a", 6)
    it.say(Reserve("b", 6))
    effects = it.say(Budget(5))
    assert [type(e) for e in effects] == [Full, Evict]


def test_a_model_measured_larger_than_thought_makes_idle_ones_go() -> None:
    it = Told(10)
    it.loaded("a", 4)
    it.loaded("b", 4)
    it.say(Began("a", 1))
    assert it.say(Measured("a", 6)) == []
    assert it.rail.used_bytes == 10
    assert evicted(it.say(Measured("a", 7))) == ["b"]
    assert it.say(Measured("gone", 7)) == []
    it.say(Measured("a", 2))
    assert it.rail.headroom_bytes == 4
    assert it.rail.evictable_bytes == 6


def test_a_model_is_forgotten() -> None:
    it = Told(10)
    it.loaded("a", 4)
    it.say(Release("a"))
    it.say(Forget("a"))
    assert it.rail._models == {}
