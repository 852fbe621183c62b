from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from node.types import NodeId
from router.events import Candidate, Decision, Term
from router.explain import compact


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
