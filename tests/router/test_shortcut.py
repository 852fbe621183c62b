"""The shortcut gives the answer of the whole walk: the same node, for the same reasons."""

from __future__ import annotations

import random
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, RequestId, Usage
from router.events import Decision, Finished, FirstToken, Grant, NodeChanged, NodeUp, Request, Submit
from router.schedule import Scheduler
from router.settings import RouterSettings

GB = 10**9

models = st.builds(
    ModelStatus,
    name=st.just("m"),
    aliases=st.sampled_from([(), ("n",)]),
    state=st.sampled_from([ModelState.READY, ModelState.READY, ModelState.BUSY, ModelState.ABSENT]),
    slots=st.integers(1, 3),
    size_bytes=st.sampled_from([0, 4 * GB, 9 * GB]),
    own=st.booleans(),
    cache_seqs=st.integers(0, 3),
    cache_tokens=st.sampled_from([0, 5000]),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeStatus]:
    return [
        NodeStatus(
            node=NodeId(name),
            bandwidth=draw(st.sampled_from([0.0, 100.0, 100.0, 800.0])),
            headroom_bytes=draw(st.sampled_from([0, 20 * GB])),
            rtt_s=draw(st.sampled_from([0.0, 0.002])),
            foreign_in_flight=draw(st.sampled_from([0, 0, 0, 1])),
            models=(draw(models),),
        )
        for name in "abcd"[: draw(st.integers(1, 4))]
    ]


requests = st.builds(
    Request,
    id=st.just(RequestId("")),
    models=st.sampled_from([("m",), ("n", "m")]),
    prompt_tokens=st.integers(0, 9000),
    max_tokens=st.sampled_from([0, 40]),
    blocks=st.lists(st.integers(0, 1), max_size=5).map(lambda p: tuple(hash(tuple(p[: k + 1])) for k in range(len(p)))),
    block_tokens=st.just(1000),
)
scripts = st.lists(st.tuples(requests, st.floats(0, 40), st.floats(0, 9), st.integers(0, 6)), min_size=1, max_size=12)


@given(fleets(), scripts)
def test_it_answers_as_the_whole_walk_would(
    fleet: list[NodeStatus], script: list[tuple[Request, float, float, int]]
) -> None:
    """Two schedulers live through the same; one of them has no shortcut. Some requests stay open for a while."""
    one, other = (Scheduler(RouterSettings(), random.Random(0)) for _ in range(2))
    for status in fleet:
        one.step(NodeUp(status), 0.0)
        other.step(NodeUp(status), 0.0)
    now, still_open = 0.0, list[RequestId]()
    for number, (like, after_s, took_s, keep) in enumerate(script):
        now += after_s
        request = Request(
            id=RequestId(str(number)),
            models=like.models,
            prompt_tokens=like.prompt_tokens,
            max_tokens=like.max_tokens,
            blocks=like.blocks,
            block_tokens=like.block_tokens,
        )
        effects = one.step(Submit(request), now)
        with patch("router.schedule.quickest", lambda *_: None):
            expected = other.step(Submit(request), now)
        assert [type(e) for e in effects] == [type(e) for e in expected]
        for effect, same in zip(effects, expected, strict=True):
            if isinstance(effect, Grant) and isinstance(same, Grant):
                assert effect == same
        still_open.append(request.id)
        if number % 2:  # Half of those that stay open answer already.
            for s in (one, other):
                s.step(FirstToken(request.id), now + took_s / 2)
        while len(still_open) > keep:
            done = still_open.pop(0)
            for s in (one, other):
                s.step(FirstToken(done), now + took_s / 2)
                s.step(Finished(done, "ok", Usage(request.prompt_tokens, 0, 30)), now + took_s)
        now += took_s


def test_it_is_taken_unless_a_request_has_to_wait() -> None:
    held = ModelStatus(name="m", state=ModelState.READY, slots=1, size_bytes=4 * GB)
    s = Scheduler(RouterSettings(), random.Random(0))
    for name in "ab":
        s.step(NodeUp(NodeStatus(node=NodeId(name), bandwidth=200.0, models=(held,))), 0.0)
    with patch("router.schedule.Walk", side_effect=AssertionError("it walked")):
        [grant] = s.step(Submit(Request(id=RequestId("1"), models=("m",), prompt_tokens=100)), 1.0)
        assert isinstance(grant, Grant)
        assert grant.node == "a"
        assert len(grant.decision.candidates) == 2
        s.step(FirstToken(RequestId("1")), 2.0)
        [grant] = s.step(Submit(Request(id=RequestId("2"), models=("m",), prompt_tokens=100)), 2.0)
        assert isinstance(grant, Grant)
        assert grant.node == "b"  # a answers still
    assert s.step(Submit(Request(id=RequestId("3"), models=("m",), prompt_tokens=100)), 2.0) == []
    assert [name for name, *_ in s.waiting()] == ["3"]


def test_whoever_reads_why_later_changes_nothing() -> None:
    def status(cache_tokens: int) -> NodeStatus:
        model = ModelStatus(name="m", state=ModelState.READY, slots=4, cache_tokens=cache_tokens, cache_seqs=10)
        return NodeStatus(node=NodeId("a"), models=(model,))

    def last(*, read: bool) -> Decision:
        """Why the last of three was placed, whether somebody has read the first one's reasons before it or not."""
        scheduler = Scheduler(RouterSettings(), random.Random(1))
        scheduler.step(NodeUp(status(1024)), 0.0)
        grants = []
        for now, blocks in ((1.0, 4), (3.0, 100), (5.0, 101)):
            id_, tokens = RequestId(str(blocks)), 64 * blocks
            asked = Request(id=id_, models=("m",), prompt_tokens=tokens, blocks=tuple(range(blocks)), block_tokens=64)
            (grant,) = scheduler.step(Submit(asked), now)
            assert isinstance(grant, Grant)
            grants.append(grant)
            scheduler.step(FirstToken(id_, 0), now + 0.5)
            scheduler.step(Finished(id_, "ok", Usage(prompt=tokens, completion=3)), now + 1)
            scheduler.step(NodeChanged(status(100_000)), now + 1)  # since the first its cache may be larger
            if read and now > 1:
                assert grants[0].why.decision.chosen == "a"
        return grants[-1].why.decision

    assert last(read=True) == last(read=False)
