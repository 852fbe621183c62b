"""Why a request went where it went or was refused: the Decision, and what of it fits into a header."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.types import ModelState, NodeId, NodeStatus, RequestId
from router.errors import ErrorCode, Refusal
from router.events import (
    Candidate,
    Decision,
    Finished,
    Grant,
    NodeUp,
    Refuse,
    SchedulerEffect,
    Submit,
    Term,
    Tick,
)
from router.explain import compact, refused_unasked
from tests.router import fleets
from tests.router.fleets import scheduler


def decided(nodes: int, why: str = "because", name: str = "büro") -> Decision:
    terms = (Term("wait", 0.1, why), Term("prefill", 0.7, why))
    priced = tuple(Candidate(NodeId(f"{name} {n}"), "qwen", 0.1 + 0.7, terms) for n in range(nodes))
    excluded = Candidate(NodeId("mini"), "qwen", excluded="draining")
    return Decision(request={"id": "r"}, chosen=NodeId(name), waited_ms=1.5, candidates=(*priced, excluded))


def test_a_small_one_is_the_struct_itself() -> None:
    said = json.loads(compact(decided(2), 8_000))
    assert said["chosen"] == "büro"
    assert said["request"] == {"id": "r"}
    assert [c["excluded"] for c in said["candidates"]] == [None, None, "draining"]
    assert "left_off" not in said


@given(nodes=st.integers(0, 60), why=st.text(max_size=30), name=st.text(max_size=30), limit=st.integers(400, 9_000))
def test_it_is_one_line_of_ascii_within_its_bound_and_terms_add_up(nodes: int, why: str, name: str, limit: int) -> None:
    line = compact(decided(nodes, why, name), limit)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= limit
    said = json.loads(line)
    shown = said.get("candidates", [])
    assert len(shown) + said.get("left_off", 0) == nodes + 1
    for candidate in shown:
        assert candidate["excluded"] or sum(t["seconds"] for t in candidate["terms"]) == candidate["total_s"]


def test_what_does_not_fit_is_counted() -> None:
    said = json.loads(compact(decided(60), 2_000))
    assert 5 < len(said["candidates"]) < 30
    assert said["left_off"] == 61 - len(said["candidates"])


# What it says


def node(name: str, *, bandwidth: float = 200.0, **changes: object) -> NodeStatus:
    """One slot, and no measured load."""
    return fleets.node(name, fleets.model(**{"slots": 1, "load_s": 0.0} | changes), bandwidth=bandwidth)


def ask(name: str, **changes: object) -> Submit:
    return fleets.ask(name, **{"prompt_tokens": 500, "max_tokens": 500} | changes)


def the_only(effects: list[SchedulerEffect]) -> Decision:
    [effect] = effects
    assert isinstance(effect, Grant | Refuse)
    assert effect.decision is not None
    for candidate in effect.decision.candidates:
        assert (candidate.total_s is None) == (candidate.excluded is not None)
        if candidate.total_s is not None:
            assert sum(t.seconds for t in candidate.terms) == pytest.approx(candidate.total_s, abs=1e-9)
    return effect.decision


def test_a_grant_that_waited_says_for_what() -> None:
    s = scheduler(node("a"))
    assert the_only(s.step(ask("1"), 0.0)).request["waited_for"] is None
    s.step(ask("2"), 0.1)
    s.step(ask("3"), 0.2)
    s.step(Finished(RequestId("1"), "ok"), 5.0)
    decision = the_only(s.step(Finished(RequestId("2"), "ok"), 9.0))
    assert decision.chosen == "a"
    assert decision.waited_ms == pytest.approx(8800)
    waited_for = decision.request["waited_for"]
    assert isinstance(waited_for, str)
    assert waited_for.startswith("when it came, its best place was a: its only slot is taken, and free in about ")
    assert waited_for.endswith("; 1 stood before it in the queue")


def test_a_grant_that_waited_for_a_better_node_says_what_it_passed_over() -> None:
    s = scheduler(node("fast", bandwidth=800.0), node("slow", bandwidth=20.0))
    s.step(ask("1"), 0.0)
    assert s.step(ask("2"), 0.1) == [], "the slow one is free, but sooner done is the fast one"
    waited_for = the_only(s.step(Finished(RequestId("1"), "ok"), 2.0)).request["waited_for"]
    assert isinstance(waited_for, str)
    assert "; slow was free, but would have cost " in waited_for


def test_a_deadline_that_passed_says_what_every_node_would_still_have_cost() -> None:
    s = scheduler(node("a"), node("b"))
    s.step(ask("1"), 0.0)
    s.step(ask("2"), 0.0)
    s.step(ask("3", deadline=1.5), 0.5)
    decision = the_only(s.step(Tick(), 1.5))
    assert decision.chosen is None
    assert decision.request["refused"] == "waited 1.0 s for a free slot on a, b to run 'qwen'"
    assert [c.node for c in decision.candidates if c.total_s is not None] == ["a", "b"]
    assert "its only slot is taken" in str(decision.request["waited_for"])


def test_a_refusal_says_of_each_node_why_not() -> None:
    s = scheduler(node("a", state=ModelState.ABSENT, size_bytes=10**11), fleets.node("b", fleets.model("other")))
    decision = the_only(s.step(ask("1"), 0.0))
    assert decision.chosen is None
    assert {c.node: str(c.excluded).split(":")[0] for c in decision.candidates} == {
        "a": "absent and does not fit",
        "b": "model not served there",
    }
    assert str(decision.request["refused"]).startswith("no node can serve 'qwen' now: a: absent and does not fit")


def test_a_full_queue_says_what_it_would_have_cost() -> None:
    s = scheduler(node("a"), queue_limit=1)
    s.step(ask("1"), 0.0)
    s.step(ask("2"), 0.0)
    decision = the_only(s.step(ask("3"), 0.0))
    assert (decision.chosen, [c.node for c in decision.candidates]) == (None, ["a"])
    assert "the queue is full" in str(decision.request["refused"])


def test_a_model_that_comes_back_is_what_is_waited_for() -> None:
    s = scheduler(node("a", state=ModelState.FAILED, error="it crashed", retry_s=5.0))
    assert s.step(ask("1"), 0.0) == []
    waited_for = the_only(s.step(NodeUp(node("a")), 5.0)).request["waited_for"]
    assert waited_for == "when it came, nobody could serve it: a: failed there: it crashed; started again in 5 s"


def test_what_its_edge_refuses_is_said_like_the_rest() -> None:
    error = Refusal(ErrorCode.MODEL_NOT_FOUND, "model 'x' not found")
    decision = refused_unasked(error, "req-1", "x", {NodeId("a"): "model not served there"})
    assert (decision.chosen, decision.request["refused"]) == (None, "model 'x' not found")
    assert decision.candidates == (Candidate(NodeId("a"), "x", excluded="model not served there"),)
