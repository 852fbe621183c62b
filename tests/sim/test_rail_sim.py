"""A share of the rail's simulations, the same seed twice, and rules broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node.rail import Rail
from node.residents import Resident
from tests.sim import rail_runs
from tests.sim.checkers import ViolationError
from tests.sim.rail_checkers import RailChecker
from tests.sim.rail_world import World
from tests.sim.summary import Job, Summary

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_a_node_with_more_models_than_memory(first: int) -> None:
    answered = 0
    for seed in range(first, first + 50):
        try:
            answered += rail_runs.rail(seed).answered
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error}\nreplay: {Job('rail', seed, 1).command(seed)}", pytrace=False)
    assert answered > 500


def test_the_same_seed_gives_the_same_trace() -> None:
    worlds: list[World] = []
    assert rail_runs.rail(11, on_world=worlds.append) == rail_runs.rail(11, on_world=worlds.append)
    assert worlds[0].transcript == worlds[1].transcript
    assert rail_runs.rail(11).digest != rail_runs.rail(12).digest


def violation(limit: int = 60) -> str:
    """What the checkers say about the first seeds."""
    for seed in range(limit):
        try:
            rail_runs.rail(seed)
        except ViolationError as error:
            return str(error)
    return ""


def test_reserving_without_room_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rail, "_fits", lambda self, size_bytes: True)
    assert "reserved of" in violation()


def test_evicting_a_busy_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = property(lambda m: m.reserved and m.ready_at is not None and not m.ending)
    monkeypatch.setattr(Resident, "idle", idle)
    assert "evicted while it answered" in violation()


def test_evicting_a_pinned_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    learn: Callable[..., None] = Rail._learn

    def unpinned(self: Rail, event: object, now: float) -> None:
        learn(self, event, now)
        for model in self._models.values():
            model.pinned = False

    monkeypatch.setattr(Rail, "_learn", unpinned)
    assert "is pinned and was evicted" in violation(200)


def test_what_is_caught_is_raised_between_two_turns_of_the_loop_and_not_inside_the_node() -> None:
    """There it would be a fault of one of the node's tasks, whose group then drops what it still has to do."""
    checker = RailChecker(World(3))
    checker.demand(False, "the first")
    checker.demand(False, "the second")
    with pytest.raises(ViolationError, match="the first"):
        checker.turn_over()


def test_a_line_whose_head_never_claims_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rail, "_pressing", lambda self, now: None)
    assert "waits since" in violation(200)


def test_the_command_replays_a_seed() -> None:
    command = [sys.executable, *Job("rail", 3, 1).command(3).split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Reserve(model=" in done.stdout
    assert "holds: RailResult" in done.stdout


def test_the_summary_has_a_section_for_it() -> None:
    summary, result = Summary(), rail_runs.rail(5)
    summary.add(Job("rail", 5, 1), [result], [], core_s=1.0)
    figures = {f.name: f.value for f in summary.figures(1.0)}
    assert figures["rail: seeds"] == 1
    assert figures["rail: requests"] == result.requests
