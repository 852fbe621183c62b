"""What a drill may do to a node, and how often."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.drill_guard import Guard
from mesh.settings import DrillSettings
from node.types import NodeId

A, B = NodeId("a"), NodeId("b")
SETTINGS = DrillSettings(hold_s=20.0, gap_s=5.0, window_s=600.0, kills_max=3, falls_max=4)


@pytest.fixture
def guard() -> Guard:
    return Guard(SETTINGS)


def test_nothing_is_stopped_for_a_drill_that_was_not_announced(guard: Guard) -> None:
    assert "no such drill" in guard.kill(A, "d", 0.0)
    assert guard.hold(A, "d", 0.0) == ""
    assert "no such drill" in guard.fall(B, "d", 1.0), "another node's"
    assert "no such drill" in guard.fall(A, "e", 1.0), "another one of the same node"
    assert guard.kill(A, "d", 1.0) == ""


def test_one_drill_at_a_time_until_it_is_over_or_silent(guard: Guard) -> None:
    assert guard.hold(A, "d", 0.0) == ""
    assert guard.hold(B, "e", 19.0) == "another drill runs"
    assert guard.hold(A, "d", 19.0) == ""
    assert guard.hold(B, "e", 38.0) == "another drill runs"
    guard.release(B, "e")
    assert guard.hold(B, "e", 38.5) == "another drill runs", "only its own drill is released"
    guard.release(A, "d")
    assert guard.hold(B, "e", 38.6) == ""
    assert guard.hold(A, "f", 59.0) == "", "who was killed in the middle of a drill holds nothing for ever"


def test_a_drill_that_has_fallen_silent_stops_nothing_any_more(guard: Guard) -> None:
    guard.hold(A, "d", 0.0)
    assert "no such drill" in guard.fall(A, "d", 20.0)


def test_two_faults_need_a_pause(guard: Guard) -> None:
    guard.hold(A, "d", 0.0)
    assert guard.kill(A, "d", 1.0) == ""
    assert "less than 5 s ago" in guard.fall(A, "d", 5.9)
    assert guard.fall(A, "d", 6.0) == ""


@pytest.mark.parametrize(("fault", "most"), [(Guard.kill, 3), (Guard.fall, 4)])
def test_so_many_within_ten_minutes_are_enough(
    guard: Guard, fault: Callable[[Guard, NodeId, str, float], str], most: int
) -> None:
    for i in range(most):
        guard.hold(A, "d", 10.0 * i)
        assert fault(guard, A, "d", 10.0 * i) == ""
    guard.hold(A, "d", 50.0)
    assert "within 10 minutes are enough" in fault(guard, A, "d", 50.0)
    guard.hold(A, "d", 600.0)
    assert fault(guard, A, "d", 600.0) == "", "the first is ten minutes ago"


@given(st.lists(st.tuples(st.sampled_from(["hold", "kill", "fall"]), st.sampled_from([A, B]), st.floats(0, 60))))
def test_whatever_is_asked_the_bounds_hold(asked: list[tuple[str, NodeId, float]]) -> None:
    guard, now, kills = Guard(SETTINGS), 0.0, list[float]()
    faults = list[float]()
    for what, who, pause_s in asked:
        now += pause_s
        if getattr(guard, what)(who, "d", now) == "" and what != "hold":
            assert not faults or now - faults[-1] >= SETTINGS.gap_s
            faults.append(now)
            if what == "kill":
                kills.append(now)
                assert len([at for at in kills if at > now - SETTINGS.window_s]) <= SETTINGS.kills_max
