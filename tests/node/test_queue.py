"""Slots and the line before them."""

from __future__ import annotations

import pytest

from node.errors import NodeError, NodeErrorCode
from node.queue import Key, ModelQueue
from node.types import RequestId


def key(request: str, attempt: int = 1) -> Key:
    return RequestId(request), attempt


def refusal(queue: ModelQueue, asked: Key) -> NodeError:
    with pytest.raises(NodeError) as error:
        queue.admit(asked, 0.0)
    assert error.value.code is NodeErrorCode.NODE_BUSY
    return error.value


def test_first_come_first_served() -> None:
    queue = ModelQueue(2, 10)
    for name in "abcd":
        queue.admit(key(name), 0.0)
    assert queue.start(0.0) == [key("a"), key("b")]
    assert (queue.in_flight, queue.queue_depth) == (2, 2)
    queue.leave(key("b"), 1.0)
    assert queue.start(1.0) == [key("c")]
    assert queue.start(1.0) == []


def test_the_line_is_as_long_as_there_are_slots() -> None:
    queue = ModelQueue(1, 10)
    queue.admit(key("a"), 0.0)
    queue.admit(key("b"), 0.0)
    assert "0 in flight and 2 waiting on 1 slots" in refusal(queue, key("c")).message
    queue.start(0.0)
    assert "1 in flight and 1 waiting" in refusal(queue, key("c")).message
    queue.leave(key("b"), 0.0)
    queue.admit(key("c"), 0.0)


def test_the_hint_follows_what_requests_take() -> None:
    queue = ModelQueue(1, 100)
    assert queue.retry_after_s() == 5.0
    for n in range(40):
        queue.admit(key(str(n)), n * 2.0)
        queue.start(n * 2.0)
        queue.leave(key(str(n)), n * 2.0 + 2.0)
    assert queue.retry_after_s() == pytest.approx(2.0, abs=0.01)
    queue.admit(key("long"), 0.0)
    queue.start(0.0)
    queue.leave(key("long"), 1e6)
    assert queue.retry_after_s() == 60.0


def test_a_repeated_attempt_is_refused_while_remembered() -> None:
    queue = ModelQueue(2, 2)
    queue.admit(key("a"), 0.0)
    assert "already here" in refusal(queue, key("a")).message
    queue.start(0.0)
    assert "already here" in refusal(queue, key("a")).message
    queue.leave(key("a"), 0.0)
    assert "already here" in refusal(queue, key("a")).message
    queue.admit(key("a", 2), 0.0)
    for name in "xy":
        queue.admit(key(name), 0.0)
        queue.leave(key(name), 0.0)
    queue.admit(key("a"), 0.0)  # Two others have ended since: it is forgotten.


def test_leaving_twice_or_unknown_changes_nothing() -> None:
    queue = ModelQueue(1, 10)
    queue.leave(key("a"), 0.0)
    queue.admit(key("a"), 0.0)
    queue.leave(key("a"), 0.0)
    queue.leave(key("a"), 0.0)
    assert (queue.in_flight, queue.queue_depth) == (0, 0)


def test_who_must_run_alone_keeps_its_place_and_has_the_worker_for_itself() -> None:
    queue = ModelQueue(3, 10)
    queue.admit(key("a"), 0.0)
    queue.admit(key("seeded"), 0.0, alone=True)
    for name in "bc":
        queue.admit(key(name), 0.0)
    assert queue.slots == 1, "so that nobody sends more than can run"
    assert queue.start(0.0) == [key("a")]
    assert queue.start(0.0) == [], "nobody overtakes it"
    queue.leave(key("a"), 1.0)
    assert queue.start(1.0) == [key("seeded")]
    assert queue.start(1.0) == []
    queue.leave(key("seeded"), 2.0)
    assert queue.slots == 3
    assert queue.start(2.0) == [key("b"), key("c")]


def test_who_must_run_alone_and_leaves_early_blocks_nobody() -> None:
    queue = ModelQueue(2, 10)
    for name in "ab":
        queue.admit(key(name), 0.0, alone=True)
    queue.admit(key("c"), 0.0)
    assert queue.start(0.0) == [key("a")]
    queue.leave(key("b"), 0.0)
    queue.leave(key("a"), 0.0)
    assert queue.start(0.0) == [key("c")]
    assert queue.slots == 2
