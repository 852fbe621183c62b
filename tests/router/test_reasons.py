"""A decision as numbers, and the words made of them later: by the same node, by a later start of it, for people."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from node.types import NodeId, RequestId
from router.events import Decision, Finished, Grant, NodeUp, Why
from router.reasons import Reasons, named
from tests.router import fleets
from tests.router.fleets import ask, scheduler

A, B = NodeId("a"), NodeId("b")


def grant(*, queued: bool = False) -> Grant:
    """Of a request that two nodes could take; `queued`: it had to wait, so that a walk decided and not the shortcut."""
    model = fleets.model(slots=1)
    s = scheduler(fleets.node("a", model, rtt_s=0.002), fleets.node("b", model, bandwidth=150.0))
    s.step(NodeUp(fleets.node("c", fleets.model("other"))), 0.0)
    effects = s.step(ask("1", "qwen", prompt_tokens=500), 0.0)
    if queued:
        s.step(ask("2", "qwen"), 0.1)
        s.step(ask("3", "qwen"), 0.2)
        effects = s.step(Finished(RequestId("1"), "ok"), 9.0)
    (found,) = effects
    assert isinstance(found, Grant)
    return found


def reasons(queued: bool) -> Reasons:
    found = grant(queued=queued).why.grounds
    assert isinstance(found, Reasons)
    return found


@pytest.mark.parametrize("queued", [False, True])
def test_the_numbers_say_the_same_after_a_while_on_disk(queued: bool) -> None:
    found = reasons(queued)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Reasons)
    assert read == found
    assert read.decision == found.decision
    assert len([c for c in read.decision.candidates if c.total_s is not None]) == 2
    assert [c.node for c in read.decision.candidates if c.excluded] == ["c"]


@pytest.mark.parametrize("queued", [False, True])
def test_terms_add_up_and_the_cheapest_stands_first(queued: bool) -> None:
    decision = reasons(queued).decision
    able = [c for c in decision.candidates if c.total_s is not None]
    assert able == sorted(able, key=lambda c: (c.total_s or 0.0, c.node))
    for candidate in able:
        assert sum(t.seconds for t in candidate.terms) == pytest.approx(candidate.total_s, abs=1e-9)
        assert all(t.why for t in candidate.terms)


def test_a_few_words_are_the_largest_terms() -> None:
    found = reasons(queued=False)
    chosen = next(c for c in found.decision.candidates if c.node == found.chosen)
    assert chosen.total_s is not None
    most = max(chosen.terms, key=lambda t: t.seconds)
    assert found.brief == f"soonest of 2, expected {chosen.total_s:.2f} s, most of it {most.name}: {most.why}"


def test_people_read_names_and_the_edges_reasons() -> None:
    names: Mapping[NodeId, str] = {A: "studio", B: "mini", NodeId("c"): "air", NodeId("d"): "not in it"}
    left_out = {NodeId("c"): "other weights"}
    found = named(grant().why, names, left_out)
    assert isinstance(found, Reasons)
    assert NodeId("d") not in found.names
    decision = found.decision
    assert decision.chosen in ("studio", "mini")
    assert {c.node: c.excluded for c in decision.candidates} == {"studio": None, "mini": None, "air": "other weights"}
    over_a_link = named(Why(grant().decision), names, left_out)
    assert isinstance(over_a_link, Decision)
    assert over_a_link == decision


def test_whoever_the_request_excluded_is_named_too() -> None:
    s = scheduler(fleets.node("a", fleets.model()), fleets.node("b", fleets.model()))
    (found,) = s.step(ask("1", "qwen", excluded=(B,)), 0.0)
    assert isinstance(found, Grant)
    said = named(found.why, {A: "studio", B: "mini"}, {})
    assert isinstance(said, Reasons)
    assert said.decision.request["excluded"] == ["mini"]
