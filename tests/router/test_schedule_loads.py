"""Models that are not in memory: who starts a load, who waits for it, and who has to leave for it."""

from __future__ import annotations

import pytest

from node.types import ModelState, NodeId, Pressure, RequestId, Usage
from router.schedule import Finished, FirstToken, Grant, Loaded, NodeChanged
from tests.router.fleets import GB, ask, granted, model, node, refused, scheduler


def test_critical_pressure_does_not_bar_a_model_that_is_loaded() -> None:
    assert granted(scheduler(node("a", pressure=Pressure.CRITICAL)).step(ask("1"), 0.0)) == [("1", "a")]


def test_a_model_that_is_loading_is_waited_for() -> None:
    s = scheduler(node("a", model(state=ModelState.LOADING)))
    assert s.step(ask("1"), 1.0) == []
    assert s.waiting()[0][2] == pytest.approx(4.0)
    assert granted(s.step(Loaded(NodeId("a"), "qwen", 4.5), 5.0)) == [("1", "a")]


def test_one_grant_starts_a_load_and_the_others_wait_for_it() -> None:
    s = scheduler(node("a", model(state=ModelState.ABSENT)))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]
    assert s.step(ask("2"), 0.1) == []
    assert s.step(NodeChanged(node("a")), 6.0) == []  # It is loaded, and reads the first one's prompt.
    assert granted(s.step(FirstToken(RequestId("1")), 6.5)) == [("2", "a")]


def test_two_loads_do_not_share_the_same_headroom() -> None:
    absent = ModelState.ABSENT
    s = scheduler(node("a", model("x", state=absent, size_bytes=6 * GB), model("y", state=absent, size_bytes=6 * GB)))
    assert granted(s.step(ask("1", "x"), 0.0)) == [("1", "a")]
    error = refused(s.step(ask("2", "y"), 0.1)).error
    assert "needs 6.0 GB, headroom 4.0 GB" in error.message


def test_a_load_is_weighed_against_waiting() -> None:
    s = scheduler(node("a", model(slots=1)), node("b", model(state=ModelState.ABSENT, slots=1, load_s=60.0)))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]
    assert s.step(ask("2"), 0.0) == []  # a is free in 2 s; b would load for 60 s
    s = scheduler(node("a", model(slots=1)), node("b", model(state=ModelState.ABSENT, slots=1, load_s=0.5)))
    assert granted(s.step(ask("1", max_tokens=4000), 0.0)) == [("1", "a")]
    assert granted(s.step(ask("2", max_tokens=4000), 0.0)) == [("2", "b")]


def test_a_swap_waits_until_those_who_run_have_ended_and_is_one_load() -> None:
    big = model("big", state=ModelState.ABSENT, size_bytes=9 * GB, slots=1)
    s = scheduler(node("a", model(size_bytes=9 * GB), big, headroom_bytes=GB, evictable_bytes=9 * GB))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]
    s.step(FirstToken(RequestId("1")), 1.0)
    assert s.step(ask("2", "big"), 1.0) == []
    assert s.step(ask("3"), 1.5) == []  # It would come between, and the older one wait for it.
    [grant] = s.step(Finished(RequestId("1"), "ok", Usage(100, 0, 50)), 3.0)
    assert isinstance(grant, Grant)
    assert (grant.id, grant.model) == ("2", "big")
    load = grant.decision.candidates[0].terms[1]
    assert load.seconds == 5.0
    assert load.why == "not in memory there, loading takes about 5.0 s; 'qwen' has to leave for it"
