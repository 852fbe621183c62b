"""The coordinator killed under load: nothing runs twice, nothing is lost, no slot leaks (kill_trials has the mesh)."""

from __future__ import annotations

from tests.lab.counted import Answered, Run
from tests.lab.kill_trials import CLIENTS, SLOTS, Result, count, killed


async def test_three_coordinators_killed_under_load() -> None:
    found = await killed(3)
    assert found.unanswered == []
    assert found.twice == []
    assert found.again == []
    assert found.held == []
    assert found.asked > CLIENTS
    assert found.runs == found.asked
    assert found.most_open <= 2 * SLOTS


def test_what_is_counted() -> None:
    """Of notes as a mesh that does everything wrong would leave them."""
    one = [Run("a", "begin", 1.0, 1), Run("a", "end", 3.0, 0), Run("b", "begin", 4.0, 1), Run("b", "cut", 5.0, 0)]
    two = [Run("a", "begin", 2.0, 1), Run("b", "begin", 5.5, 2), Run("c", "begin", 6.0, 3)]
    found = Result()
    count(found, [Answered("a", 0.5, 3.0), Answered("b", 3.5, 9.0, "status 503")], [one, two])
    assert found.twice == ["a"]
    assert found.again == ["a: 2 times", "b: 2 times"]
    assert found.unanswered == ["b: status 503", "c: its client never heard of it"]
    assert found.held == [f"an engine still works on {mark}" for mark in "abc"]
    assert (found.asked, found.runs, found.most_open, found.waits_s) == (2, 5, 3, [2.5])
