"""The account of model memory."""

from __future__ import annotations

from node.headroom import GIB
from node.rail import Budget, Full, Load, Rail, Release, Reserve, Settled, load_order


def test_one_load_at_a_time_in_the_order_asked() -> None:
    rail = Rail(10)
    assert rail.step(Reserve("a", 4)) == [Load("a")]
    assert rail.step(Reserve("b", 3)) == []
    assert rail.step(Reserve("c", 3)) == []
    assert (rail.used_bytes, rail.headroom_bytes) == (10, 0)
    assert rail.step(Settled("a")) == [Load("b")]
    assert rail.step(Release("c")) == []  # Given up while it waited for its turn.
    assert rail.step(Settled("b")) == []
    assert rail.used_bytes == 7


def test_a_load_that_dies_gives_its_turn_on() -> None:
    rail = Rail(10)
    rail.step(Reserve("a", 4))
    rail.step(Reserve("b", 4))
    assert rail.step(Release("a")) == [Load("b")]
    assert rail.step(Release("a")) == []


def test_what_does_not_fit_is_told_what_is_in_its_way() -> None:
    rail = Rail(10 * GIB)
    rail.step(Reserve("big", 6 * GIB))
    rail.step(Reserve("small", 1 * GIB))
    rail.step(Reserve("elsewhere", 0))
    (full,) = rail.step(Reserve("c", 4 * GIB))
    assert full == Full("c", "needs 4.0 GB, 3.0 GB of 10.0 GB free: in memory are big 6.0 GB, small 1.0 GB")
    (never,) = rail.step(Reserve("huge", 11 * GIB))
    assert isinstance(never, Full)
    assert "can never fit" in never.why
    rail.step(Release("big"))
    assert rail.step(Reserve("c", 4 * GIB)) == []
    assert rail.step(Settled("small")) == [Load("c")]


def test_a_server_that_is_not_ours_waits_for_nobody() -> None:
    rail = Rail(5)
    rail.step(Reserve("a", 5))
    assert rail.step(Reserve("elsewhere", 0)) == [Load("elsewhere")]
    assert rail.step(Settled("elsewhere")) == []
    assert rail.step(Release("elsewhere")) == []


def test_a_smaller_budget_reserves_nothing_new() -> None:
    rail = Rail(10)
    rail.step(Reserve("a", 8))
    rail.step(Budget(5))
    assert rail.headroom_bytes == 0
    assert isinstance(rail.step(Reserve("b", 1))[0], Full)
    rail.step(Release("a"))
    assert rail.headroom_bytes == 5


def test_pinned_first_then_largest() -> None:
    sizes = {"s": 1, "l": 9, "m": 5, "m2": 5, "p": 2}
    assert load_order(sizes, frozenset({"p"})) == ["p", "l", "m", "m2", "s"]
