"""The terms of a cost: each one's seconds, and that they are the total."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId
from router.cost import Lane, explain, seconds, service_s
from router.events import Request
from router.settings import RouterSettings
from router.speed import Rates

SETTINGS = RouterSettings()


def lane(slots: int = 2, *, rtt_s: float = 0.004, headroom: int = 16 * 10**9, load_s: float = 0.0) -> Lane:
    model = ModelStatus(name="qwen", state=ModelState.READY, slots=slots, size_bytes=4 * 10**9)
    status = NodeStatus(node=NodeId("n"), rtt_s=rtt_s, headroom_bytes=headroom, models=(model,))
    return Lane(status, model, Rates(200.0, 20.0), load_s, "loaded" if load_s == 0 else "loading")


def request(tokens: int = 400) -> Request:
    return Request(id=RequestId("1"), models=("qwen",), prompt_tokens=tokens)


def test_the_terms_of_a_free_node() -> None:
    wait, load, prefill, decode, network, headroom = seconds(lane(), request(), 100.0, SETTINGS)
    assert (wait, load, network) == (0.0, 0.0, 0.004)
    assert prefill == pytest.approx(0.03 + 400 / 200)
    assert decode == pytest.approx(0.25 * 100 / 20)
    assert headroom == pytest.approx(0.005)  # half of the most, at 16 GB left


def test_waiting_is_for_a_slot_or_for_the_prompts_ahead_whichever_is_longer() -> None:
    busy = lane(slots=2)
    busy.occupy(9.0)
    assert busy.free[0] == 0.0
    busy.reading_s = 1.5
    assert seconds(busy, request(), 100.0, SETTINGS)[0] == 1.5
    busy.occupy(4.0)
    assert not busy.open
    assert seconds(busy, request(), 100.0, SETTINGS)[0] == 4.0
    busy.occupy(3.0)  # queued behind the one that ends first
    assert seconds(busy, request(), 100.0, SETTINGS)[0] == 7.0


def test_more_streams_make_every_step_longer() -> None:
    busy = lane(slots=4)
    busy.streams = 2
    assert seconds(busy, request(), 100.0, SETTINGS)[3] == pytest.approx(0.25 * 100 / 20 * 1.3)
    assert service_s(busy, request(), 100.0, SETTINGS) == pytest.approx((2.03, 6.5))


def test_the_node_with_more_memory_left_wins_a_tie_and_only_a_tie() -> None:
    roomy, tight = lane(headroom=100 * 10**9), lane(headroom=10**9)
    assert sum(seconds(roomy, request(), 9.0, SETTINGS)) < sum(seconds(tight, request(), 9.0, SETTINGS))
    near = lane(headroom=0, rtt_s=0.0)
    far = lane(headroom=10**12, rtt_s=0.02)
    assert sum(seconds(near, request(), 9.0, SETTINGS)) < sum(seconds(far, request(), 9.0, SETTINGS))


@given(
    st.lists(st.floats(0, 50), max_size=6),
    st.integers(0, 30_000),
    st.floats(1, 2000),
    st.floats(0, 60),
    st.floats(0, 60),
)
def test_the_explained_terms_are_the_total(
    ahead: list[float], tokens: int, output: float, load_s: float, pause_s: float
) -> None:
    busy = lane(load_s=load_s)
    busy.pause_s = pause_s
    for left_s in ahead:
        busy.occupy(left_s)
    shown = explain(busy, request(tokens), output, SETTINGS)
    assert shown.total_s == sum(seconds(busy, request(tokens), output, SETTINGS))
    assert shown.total_s == sum(t.seconds for t in shown.terms)
    assert all(t.seconds >= 0 and t.why for t in shown.terms)
    assert shown.excluded is None
