"""When nobody can serve it now: it waits for a model that is started again, or is refused with what would help."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.types import ModelState, NodeId, NodeStatus, Pressure, RequestId
from router.errors import ErrorCode
from router.schedule import FirstToken, NodeChanged, NodeDown, NodeUp, Tick
from tests.router.fleets import GB, ask, granted, model, node, refused, scheduler


def test_an_unknown_name_is_refused_with_what_exists() -> None:
    s = scheduler(node("a", model("qwen", aliases=("standard",))), node("b", model("tiny")))
    error = refused(s.step(ask("1", "gpt-4"), 0.0)).error
    assert error.code is ErrorCode.MODEL_NOT_FOUND
    assert error.message == "no model is called 'gpt-4'. There are: qwen, standard, tiny"
    assert error.param == "model"
    empty = refused(scheduler().step(ask("1"), 0.0)).error
    assert "none yet" in empty.message


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (node("a", draining=True), ErrorCode.NO_NODE_AVAILABLE, "draining"),
        (node("a", model(state=ModelState.FAILED, error="bad config")), ErrorCode.MODEL_FAILED, "bad config"),
        (
            node("a", model(state=ModelState.ABSENT), headroom_bytes=GB),
            ErrorCode.NO_NODE_AVAILABLE,
            "absent and does not fit: needs 4.0 GB, headroom 1.0 GB",
        ),
        (
            node("a", model(state=ModelState.ABSENT), pressure=Pressure.CRITICAL),
            ErrorCode.NO_NODE_AVAILABLE,
            "memory pressure is critical there, and it would have to load the model",
        ),
    ],
)
def test_a_model_nobody_can_serve_is_refused_with_every_reason(status: NodeStatus, code: ErrorCode, why: str) -> None:
    error = refused(scheduler(status).step(ask("1"), 0.0)).error
    assert error.code is code
    assert f"a: {why}" in error.message.replace("failed there: ", "")
    assert error.retry_after_s is not None
    assert 4.0 <= error.retry_after_s <= 6.0


def test_a_node_that_failed_a_request_does_not_get_it_again() -> None:
    s = scheduler(node("a"), node("b"))
    assert granted(s.step(ask("1", excluded=(NodeId("a"),)), 0.0)) == [("1", "b")]
    error = refused(s.step(ask("2", excluded=(NodeId("a"), NodeId("b"))), 0.0)).error
    assert error.code is ErrorCode.MODEL_FAILED


BROKEN = model(state=ModelState.FAILED, error="ended by SIGKILL", retry_s=40.0)


def test_a_model_that_is_started_again_in_time_is_waited_for_in_order() -> None:
    s = scheduler(node("a", BROKEN))
    assert s.step(ask("1", deadline=600.0), 0.0) == []
    assert s.step(ask("2", deadline=600.0), 1.0) == []
    assert [(name, place, wait_s) for name, place, wait_s in s.waiting()] == [("1", 1, 40.0), ("2", 2, 40.0)]
    assert s.step(NodeChanged(node("a", structs.replace(BROKEN, state=ModelState.LOADING))), 41.0) == []
    assert granted(s.step(NodeChanged(node("a")), 45.0)) == [("1", "a")]
    assert granted(s.step(FirstToken(RequestId("1")), 46.0)) == [("2", "a")]


def test_another_node_that_serves_it_is_not_waited_beside() -> None:
    s = scheduler(node("a", BROKEN), node("b", bandwidth=10.0))
    assert granted(s.step(ask("1", deadline=600.0), 0.0)) == [("1", "b")]
    s = scheduler(node("a", BROKEN), node("b", model("small")))
    assert granted(s.step(ask("1", "qwen", "small", deadline=600.0), 0.0)) == [("1", "b")]  # Its fallback, too.
    s = scheduler(node("a", BROKEN))
    assert s.step(ask("1", deadline=600.0), 0.0) == []
    assert granted(s.step(NodeUp(node("b")), 1.0)) == [("1", "b")]


def test_a_request_is_not_held_for_a_broken_node_while_it_bars_one_that_was_only_busy() -> None:
    s = scheduler(node("a", BROKEN), node("b"))
    assert refused(s.step(ask("1", excluded=("b",), deadline=600.0), 0.0)).error.code is ErrorCode.MODEL_FAILED
    assert granted(s.step(ask("1", deadline=600.0), 1.0)) == [("1", "b")], "its edge asks again without bars"


def test_one_that_is_back_too_late_is_refused_with_when() -> None:
    error = refused(scheduler(node("a", BROKEN)).step(ask("1", deadline=30.0), 0.0)).error
    assert error.code is ErrorCode.MODEL_FAILED
    assert "ended by SIGKILL; started again in 40 s" in error.message
    assert error.retry_after_s is not None
    assert 40.0 <= error.retry_after_s <= 60.0


def test_one_that_is_given_up_while_requests_wait_for_it_refuses_them() -> None:
    s = scheduler(node("a", BROKEN))
    assert s.step(ask("1", deadline=600.0), 0.0) == []
    gone = structs.replace(BROKEN, retry_s=None, error="failed five times")
    assert "failed five times" in refused(s.step(NodeChanged(node("a", gone)), 1.0)).error.message
    s = scheduler(node("a", BROKEN))
    assert s.step(ask("1", deadline=60.0), 0.0) == []
    error = refused(s.step(Tick(), 60.0)).error
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert "ended by SIGKILL" in error.message


def test_a_full_queue_refuses_early_and_says_when_to_come_back() -> None:
    s = scheduler(node("a", model(slots=1)), queue_limit=2)
    for i in range(3):
        s.step(ask(str(i)), 0.0)
    error = refused(s.step(ask("x"), 0.0)).error
    assert error.code is ErrorCode.MESH_SATURATED
    assert "2 requests wait already" in error.message
    assert error.retry_after_s is not None


def test_a_node_that_goes_down_frees_its_requests_and_its_models_stay_known() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("2"), 0.0)
    error = refused(s.step(NodeDown(NodeId("a")), 1.0)).error
    assert error.code is ErrorCode.NO_NODE_AVAILABLE
    assert "a held it and is gone" in error.message
    assert s.in_flight() == {}
    assert refused(s.step(ask("3"), 700.0)).error.code is ErrorCode.MODEL_NOT_FOUND
