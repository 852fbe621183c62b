"""Whatever comes and goes: bounds hold, nothing is lost, the order is kept."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from node.errors import NodeError
from node.queue import Key, ModelQueue
from node.types import RequestId

steps = st.lists(st.tuples(st.sampled_from(["admit", "start", "leave"]), st.integers(0, 11)), max_size=60)


@given(slots=st.integers(1, 4), steps=steps)
def test_counts_order_and_bounds(slots: int, steps: list[tuple[str, int]]) -> None:
    queue = ModelQueue(slots, 5)
    line: list[Key] = []  # a plain model of it
    flying: set[Key] = set()
    for now, (what, number) in enumerate(steps):
        asked: Key = (RequestId(str(number)), 1)
        if what == "admit":
            room = len(line) + len(flying) < 2 * slots
            try:
                queue.admit(asked, float(now))
                line.append(asked)
                admitted = True
            except NodeError as error:
                admitted = "already here" in error.message  # Repeated keys are refused, room or not.
            assert admitted or not room
        elif what == "start":
            started = queue.start(float(now))
            assert started == line[: len(started)]
            del line[: len(started)]
            flying |= set(started)
            assert not line or len(flying) == slots  # Nobody waits while a slot is free.
        else:
            queue.leave(asked, float(now))
            flying.discard(asked)
            if asked in line:
                line.remove(asked)
        assert queue.in_flight == len(flying) <= slots
        assert queue.queue_depth == len(line)
        assert len(line) + len(flying) <= 2 * slots


@given(slots=st.integers(1, 4), steps=steps)
def test_who_must_run_alone_does_and_nobody_waits_for_ever(slots: int, steps: list[tuple[str, int]]) -> None:
    """Every third request must have the worker for itself."""
    queue, flying = ModelQueue(slots, 5), list[Key]()
    for now, (what, number) in enumerate(steps):
        asked: Key = (RequestId(str(number)), now)
        if what == "admit":
            with suppress(NodeError):
                queue.admit(asked, float(now), alone=number % 3 == 0)
        elif what == "start":
            flying += queue.start(float(now))
        elif flying:
            queue.leave(flying.pop(), float(now))
        alone = [key for key in flying if int(key[0]) % 3 == 0]
        assert not alone or flying == alone[:1]
        assert not alone or queue.slots == 1
    while queue.in_flight or queue.queue_depth:
        flying += queue.start(1e6)
        assert flying, "somebody always runs"
        queue.leave(flying.pop(), 1e6)
    assert queue.slots == slots
