"""How long a model stays that nobody uses: keep_alive, as Ollama documents it (docs/memory.md)."""

from __future__ import annotations

import pytest

from node.rail_events import (
    FOREVER,
    Began,
    Ended,
    Release,
    Reserve,
    Settled,
)
from tests.node.rails import Told, evicted


@pytest.mark.parametrize(
    ("asked", "unloads_after_s"),
    [
        ([None], 300.0),  # absent: the default
        ([60.0], 60.0),
        ([0.0], 0.0),  # right after this reply
        ([FOREVER], None),
        ([60.0, None], 60.0),  # absent: unchanged
        ([FOREVER, None], None),
        ([FOREVER, 30.0], 30.0),
        ([30.0, FOREVER], None),
        ([0.4], 0.4),
    ],
)
def test_keep_alive(asked: list[float | None], unloads_after_s: float | None) -> None:
    it = Told(10)
    it.loaded("a", 4, keep_s=300.0)
    for number, keep_s in enumerate(asked):
        it.say(Began("a", number + 1, keep_s), 100.0)
    for left in reversed(range(len(asked))):
        effects = it.say(Ended("a", left), 100.0 + 10 * (len(asked) - left))
        assert left == 0 or effects == []
    began = it.now
    if unloads_after_s == 0.0:
        assert evicted(effects) == ["a"]
        return
    assert effects == []
    if unloads_after_s is None:
        assert it.rail.unloads_at("a") is None
        assert it.wait(1e9) == []
        return
    assert it.rail.unloads_at("a") == began + unloads_after_s
    assert evicted(it.wait(began + unloads_after_s)) == ["a"]
    assert it.now == began + unloads_after_s


def test_the_timer_starts_when_the_last_request_ends() -> None:
    it = Told(10)
    it.loaded("a", 4, keep_s=50.0)
    it.say(Began("a", 1, 5.0), 1.0)
    it.say(Began("a", 2), 2.0)
    it.say(Ended("a", 1), 3.0)
    assert it.wait(100.0) == []
    it.say(Ended("a", 0), 100.0)
    assert it.wait(104.9) == []
    assert evicted(it.wait(105.0)) == ["a"]


def test_a_new_load_begins_with_the_default_again() -> None:
    it = Told(10)
    it.loaded("a", 4, keep_s=50.0)
    it.say(Began("a", 1, 0.0), 1.0)
    assert evicted(it.say(Ended("a", 0), 2.0)) == ["a"]
    it.say(Release("a"), 3.0)
    it.say(Reserve("a", 4), 4.0)
    it.say(Settled("a"), 5.0)
    assert it.rail.unloads_at("a") == 55.0


def test_what_was_loaded_before_anybody_asked_stays_for_the_first_answer() -> None:
    it = Told(10)
    it.loaded("a", 4, keep_s=0.0)
    assert it.wait(1e6) == []
    it.say(Began("a", 1))
    assert evicted(it.say(Ended("a", 0))) == ["a"]


def test_a_kept_model_may_still_be_evicted_for_another() -> None:
    it = Told(10)
    it.loaded("a", 6)
    it.say(Began("a", 1, FOREVER))
    it.say(Ended("a", 0))
    it.now = 20.0
    assert evicted(it.say(Reserve("b", 6))) == ["a"]
