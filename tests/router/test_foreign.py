"""What nodes report beside our grants, counted only where something changed: the same as counting all, each time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.types import NodeId, NodeStatus, RequestId, RunningReport
from router.foreign import Foreign

A, B = NodeId("a"), NodeId("b")
UP = {node: NodeStatus(node=node) for node in (A, B)}
IDS = [RequestId(str(n)) for n in range(4)]


def report(request: RequestId, model: str = "qwen") -> RunningReport:
    return RunningReport(request, 1, model, started=True, age_s=0.0)


class Desk:
    """Until when each request is ours, as a desk would say it."""

    def __init__(self) -> None:
        self.until: dict[RequestId, float] = {}
        self.foreign = Foreign(lambda _, r: self.until.get(r.id, -math.inf))
        self.told: dict[NodeId, dict[str, int]] = {}

    def recount(self, now: float) -> None:
        for node in self.foreign.recount(UP, now):
            self.told[node] = self.foreign.counts(node)

    def is_right(self, now: float) -> bool:
        """Against a count of everything."""
        for node in UP:
            running = [r for n, r in self.foreign.reports() if n == node and self.until.get(r.id, -math.inf) <= now]
            if sum(self.told.get(node, {}).values()) != len(running):
                return False
        return True


things = st.one_of(
    st.tuples(st.just("reports"), st.sampled_from([A, B]), st.sets(st.sampled_from(IDS))),
    st.tuples(st.just("ours"), st.sampled_from(IDS), st.sampled_from([-math.inf, 1.0, 3.0, math.inf])),
    st.tuples(st.just("gone"), st.sampled_from([A, B])),
)


@given(st.lists(st.tuples(things, st.floats(0, 2)), max_size=30))
def test_it_is_the_count_of_everything(script: list[tuple[tuple[object, ...], float]]) -> None:
    desk, now = Desk(), 0.0
    for thing, after_s in script:
        now += after_s
        match thing:
            case ("reports", str(node), set(ids)):
                desk.foreign.reported(NodeId(node), tuple(report(r) for r in sorted(ids)))
            case ("ours", str(request), float(left_s)):
                desk.until[RequestId(request)] = now + left_s
                desk.foreign.changed(RequestId(request))
            case ("gone", str(node)):
                desk.foreign.drop(NodeId(node))
                desk.told.pop(NodeId(node), None)
        desk.recount(now)
        assert desk.is_right(now)


def test_two_attempts_of_one_request_on_a_node_that_goes_are_forgotten_with_it() -> None:
    desk = Desk()
    first = report(IDS[0])
    desk.foreign.reported(A, (first, replace(first, attempt=2)))
    desk.foreign.reported(B, (first,))
    desk.foreign.drop(A)
    desk.recount(1.0)
    assert desk.told == {B: {"qwen": 1}}


def test_one_that_ended_here_is_counted_when_its_node_reports_it_for_too_long() -> None:
    desk = Desk()
    desk.until[IDS[0]] = 2.0
    desk.foreign.reported(A, (report(IDS[0]),))
    desk.recount(1.0)
    assert desk.told == {}
    desk.recount(2.0)
    assert desk.told == {A: {"qwen": 1}}


def test_a_node_that_is_not_up_is_counted_when_it_comes() -> None:
    desk = Desk()
    desk.foreign.reported(A, (report(IDS[0]),))
    assert desk.foreign.recount({}, 0.0) == []
    assert desk.foreign.recount(UP, 0.0) == [A]


def test_after_a_reign_nothing_is_ours() -> None:
    desk = Desk()
    desk.until[IDS[0]] = math.inf
    desk.foreign.reported(A, (report(IDS[0]),))
    desk.recount(0.0)
    desk.until.clear()
    desk.foreign.forget()
    desk.recount(0.0)
    assert desk.told == {A: {"qwen": 1}}
