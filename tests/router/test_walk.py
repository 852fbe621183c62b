"""One walk of the queue: who is cheapest, who holds a place, and what those behind see of it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId, Usage
from router.events import Finished, FirstToken, Grant, NodeUp, Request, SchedulerEffect, Submit, Tick
from router.schedule import Scheduler
from router.settings import RouterSettings

GB = 10**9


def node(name: str, bandwidth: float, slots: int = 4) -> NodeStatus:
    held = ModelStatus(
        name="m", state=ModelState.READY, slots=slots, size_bytes=4 * GB, cache_seqs=50, cache_tokens=10**6
    )
    return NodeStatus(node=NodeId(name), bandwidth=bandwidth, headroom_bytes=9 * GB, models=(held,))


def scheduler(*statuses: NodeStatus) -> Scheduler:
    made = Scheduler(RouterSettings(), random.Random(0))
    for status in statuses:
        made.step(NodeUp(status), 0.0)
    return made


def ask(name: str, tokens: int = 4000, blocks: tuple[int, ...] = ()) -> Submit:
    request = Request(id=RequestId(name), models=("m",), prompt_tokens=tokens, blocks=blocks, block_tokens=100)
    return Submit(request)


def granted(effects: list[SchedulerEffect]) -> list[tuple[str, str]]:
    return [(e.id, e.node) for e in effects if isinstance(e, Grant)]


def test_a_place_that_is_held_is_seen_by_those_behind() -> None:
    s = scheduler(node("fast", 800.0), node("slow", 200.0))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "fast")]
    assert granted(s.step(ask("2"), 0.0)) == []  # Better behind the first on the fast one than on the slow one,
    assert granted(s.step(ask("3"), 0.0)) == [("3", "slow")] or len(s.waiting()) == 2
    waits = [wait_s for *_, wait_s in s.waiting()]
    assert waits == sorted(waits)
    assert all(w > 0 for w in waits)


def test_prompts_that_start_alike_follow_each_other_on_one_node() -> None:
    """The second would have to read all of it on the free node; on the busy one its start is being read already."""
    s = scheduler(node("a", 200.0), node("b", 200.0))
    start = tuple(range(38))
    assert granted(s.step(ask("1", 4000, start), 0.0)) == [("1", "a")]
    assert granted(s.step(ask("2", 4000, (*start, 100)), 0.1)) == [("2", "b")]  # It would wait as long as read.
    s = scheduler(node("a", 200.0), node("b", 200.0))
    s.step(ask("1", 4000, start), 0.0)
    assert granted(s.step(ask("2", 4000, (*start, 100)), 9.0)) == []
    assert granted(s.step(FirstToken(RequestId("1")), 10.5)) == [("2", "a")]


def test_of_equals_the_oldest_takes_what_comes_free() -> None:
    s = scheduler(node("fast", 800.0, slots=1), node("slow", 100.0, slots=1))
    s.step(ask("1"), 0.0)
    order = [g for n in range(2, 5) for g in granted(s.step(ask(str(n)), 0.1 * n))]
    for at in range(1, 60):
        order += granted(s.step(Tick(), float(at)))
    assert [int(name) for name, _ in order] == sorted(int(name) for name, _ in order)


bands = st.sampled_from([2.0, 100.0, 800.0])


@given(
    st.lists(bands, min_size=2, max_size=3),
    st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 30_000), st.integers(0, 2000)), min_size=8, max_size=20),
    st.randoms(),
)
def test_whatever_was_learned_no_machine_stands_idle_while_work_waits(
    fleet: list[float], lessons: list[tuple[float, int, int]], rng: random.Random
) -> None:
    """First every machine is made to look as fast or slow as one likes; then requests come faster than they end."""
    statuses = [node(str(i), bandwidth, slots=2) for i, bandwidth in enumerate(fleet)]
    s = scheduler(*statuses)
    now = 0.0
    for n, (took_s, tokens, answer) in enumerate(lessons):
        only = rng.choice(statuses).node
        others = tuple(x.node for x in statuses if x.node != only)
        request = Request(id=RequestId(f"l{n}"), models=("m",), prompt_tokens=tokens, excluded=others)
        s.step(Submit(request), now)
        s.step(FirstToken(request.id), now + took_s / 2)
        now += took_s
        s.step(Finished(request.id, "ok", Usage(tokens, 0, answer)), now)
    busy: dict[str, str] = {}
    idle_since = {x.node: now for x in statuses}
    start = now
    for n in range(60):
        now = max(now + 0.001, min(s.deadline or now + 1, now + 5))
        effects = s.step(ask(f"r{n}", rng.choice([50, 4000, 30_000])), now) if n < 20 else s.step(Tick(), now)
        busy.update(granted(effects))
        for x in statuses:
            if x.node in busy.values() or not s.waiting():
                idle_since[NodeId(x.node)] = now
            assert now - idle_since[NodeId(x.node)] <= 60.0, (x.node, now - start)
        if n % 7 == 6 and busy:
            ended, _ = busy.popitem()
            busy.update(granted(s.step(Finished(RequestId(ended), "ok", Usage(100, 0, 9)), now)))


def joined(chip_known: bool) -> float | None:
    """Seconds until a node that joins gets the request that waits for one whose speed is known to be high."""
    s = scheduler(node("known", 0.0))
    for n in range(9):
        s.step(ask(f"{n}"), 10.0 * n)
        s.step(FirstToken(RequestId(f"{n}")), 10.0 * n + 1)
        s.step(Finished(RequestId(f"{n}"), "ok", Usage(4000, 0, 50)), 10.0 * n + 2)
    s.step(ask("9"), 100.0)
    assert granted(s.step(NodeUp(node("new", 50.0 if chip_known else 0.0)), 100.0)) == []
    s.step(ask("10"), 100.0)  # It waits for the known one: the new one should take 40 s.
    for tenth in range(600):
        now = 100.0 + tenth / 10
        if any(to == "new" for _, to in granted(s.step(Tick(), now))):
            return now - 100.0
    return None


def test_a_node_whose_speed_nobody_can_guess_has_a_try_soon() -> None:
    assert joined(chip_known=False) == 2.0
    assert joined(chip_known=True) is None
