"""Conversations: they go where their prompt cache is, and stay on the weights they began with."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.types import ModelState, NodeId, NodeStatus, RequestId, Usage
from router.schedule import Finished, FirstToken, Grant, NodeChanged, NodeDown, NodeUp
from tests.router.fleets import GB, ask, granted, model, node, scheduler

TALK: dict[str, object] = {"prompt_tokens": 4000, "block_tokens": 100}
CACHED: dict[str, object] = {"cache_seqs": 10, "cache_tokens": 100_000}


def turns(count: int) -> tuple[int, ...]:
    """Blocks of a conversation that has come so far."""
    return tuple(range(1000, 1000 + count))


def test_a_conversation_goes_where_its_cache_is_and_away_when_that_node_drains() -> None:
    a, b = node("a", model(**CACHED)), node("b", model(**CACHED))
    s = scheduler(a, b)
    assert granted(s.step(ask("0", prompt_tokens=900), 0.0)) == [("0", "a")]
    assert granted(s.step(ask("1", blocks=turns(30), **TALK), 0.0)) == [("1", "b")]
    s.step(FirstToken(RequestId("0")), 1.0)
    s.step(FirstToken(RequestId("1")), 10.0)
    s.step(Finished(RequestId("0"), "ok", Usage(900, 0, 50)), 12.0)
    s.step(Finished(RequestId("1"), "ok", Usage(4000, 0, 50)), 12.0)
    [grant] = s.step(ask("2", blocks=turns(36), **TALK), 20.0)
    assert isinstance(grant, Grant)
    assert grant.node == "b"
    assert grant.decision.request["cached_tokens"] == 3000
    prefill = {c.node: c.terms[2] for c in grant.decision.candidates}
    assert prefill[NodeId("b")].why.startswith("3000 of 4000 tokens are in its prompt cache, 1000 to read at ")
    assert prefill[NodeId("b")].seconds < prefill[NodeId("a")].seconds
    s.step(FirstToken(RequestId("2"), 3000), 22.0)
    s.step(Finished(RequestId("2"), "ok", Usage(4000, 3000, 50)), 23.0)
    s.step(NodeChanged(structs.replace(b, draining=True)), 24.0)
    assert granted(s.step(ask("3", blocks=turns(38), **TALK), 25.0)) == [("3", "a")]


def test_a_short_turn_of_a_known_conversation_counts_as_a_little_older() -> None:
    s = scheduler(node("a", model(slots=1, **CACHED)))
    s.step(ask("1", blocks=turns(30), **TALK), 0.0)
    s.step(ask("new", prompt_tokens=4000), 3.0)
    s.step(ask("turn", blocks=turns(31), prompt_tokens=3100, block_tokens=100), 5.0)
    s.step(ask("late turn", blocks=turns(32), prompt_tokens=3200, block_tokens=100), 12.0)
    assert [name for name, *_ in s.waiting()] == ["turn", "new", "late turn"]


def test_a_cache_that_did_not_hold_what_was_believed_is_believed_no_more() -> None:
    s = scheduler(node("a", model(**CACHED)))
    for n, (count, cached) in enumerate(((30, 0), (36, 0), (39, 3600))):
        [grant] = s.step(ask(str(n), blocks=turns(count), **TALK), 20.0 * n)
        assert isinstance(grant, Grant)
        assert grant.decision.request["cached_tokens"] == (0, 3000, 3600)[n]
        s.step(ask(f"other {n}", blocks=(1, 2), prompt_tokens=300, block_tokens=100), 20.0 * n)
        s.step(FirstToken(RequestId(str(n))), 20.0 * n + 9)
        s.step(FirstToken(RequestId(f"other {n}")), 20.0 * n + 9.5)
        s.step(Finished(RequestId(f"other {n}"), "ok"), 20.0 * n + 10)
        s.step(Finished(RequestId(str(n)), "ok", Usage(4000, cached, 50)), 20.0 * n + 11)


def test_a_model_that_left_memory_has_no_cache() -> None:
    s = scheduler(node("a", model(**CACHED)))
    s.step(ask("1", blocks=turns(30), **TALK), 0.0)
    s.step(Finished(RequestId("1"), "ok", Usage(4000, 0, 50)), 9.0)
    s.step(NodeChanged(node("a", model(state=ModelState.ABSENT, **CACHED))), 10.0)
    s.step(NodeChanged(node("a", model(**CACHED))), 20.0)
    [grant] = s.step(ask("2", blocks=turns(36), **TALK), 21.0)
    assert isinstance(grant, Grant)
    assert grant.decision.request["cached_tokens"] == 0


@pytest.mark.parametrize("read", [True, False])
def test_one_name_for_two_weights_and_a_conversation_stays_on_those_it_began_with(*, read: bool) -> None:
    """Two models that nobody can read the files of are told apart by their names."""

    def standard(name: str, weights: str) -> NodeStatus:
        fingerprint = weights if read else ""
        return node(name, model(f"{weights}-4b", aliases=("standard",), fingerprint=fingerprint, slots=1))

    a, b = standard("a", "x"), structs.replace(standard("b", "y"), bandwidth=100.0)
    s = scheduler(a)
    assert granted(s.step(ask("1", "standard", blocks=turns(3), prompt_tokens=300), 0.0)) == [("1", "a")]
    s.step(NodeUp(b), 1.0)
    assert s.step(ask("2", "standard", blocks=turns(5), prompt_tokens=500), 1.0) == []  # b is free, and another model
    assert granted(s.step(ask("3", "standard", blocks=(7, 8), prompt_tokens=200), 1.0)) == [("3", "b")]
    [grant] = s.step(Finished(RequestId("1"), "ok", Usage(300, 0, 9)), 4.0)
    assert isinstance(grant, Grant)
    assert (grant.id, grant.node) == ("2", "a")
    assert grant.decision.candidates[1].excluded == "this conversation began with other weights of that name"
    s.step(NodeDown(NodeId("a")), 5.0)
    s.step(Finished(RequestId("3"), "ok", Usage(200, 0, 9)), 6.0)
    assert granted(s.step(ask("4", "standard", blocks=turns(6), prompt_tokens=600), 7.0)) == [("4", "b")]


def test_short_turns_stay_on_their_weights_and_conversations_that_begin_alike_do_not() -> None:
    a, b = (node(name, model(f"{name}-4b", aliases=("standard",), fingerprint=name, slots=1)) for name in ("a", "b"))
    s = scheduler(a, b)
    assert granted(s.step(ask("1", "standard", whole=11), 0.0)) == [("1", "a")]
    assert granted(s.step(ask("2", "standard", whole=11), 0.0)) == [("2", "b")]  # says the same, follows nothing
    s.step(Finished(RequestId("1"), "ok", Usage(100, 0, 9)), 4.0)
    assert s.step(ask("3", "standard", whole=12, follows=11), 4.0) == []  # its weights are b's, which is taken
    [grant] = s.step(Finished(RequestId("2"), "ok", Usage(100, 0, 9)), 5.0)
    assert isinstance(grant, Grant)
    assert (grant.id, grant.node) == ("3", "b")


def test_a_conversation_that_will_go_on_rather_waits_at_home_than_is_read_twice() -> None:
    """A guest's cache goes with it when that machine's own model comes back."""

    def placed(cached: int) -> dict[str, float]:
        """What it costs more on each node because of its next turn, when talks were (not) found in caches so far."""
        guest = model(own=False, state=ModelState.ABSENT, size_bytes=9 * GB, **CACHED)
        big = model("big", size_bytes=9 * GB)
        s = scheduler(node("home", model(**CACHED)), node("a", big, guest, headroom_bytes=0, evictable_bytes=9 * GB))
        now = 0.0
        for turn in range(60):
            now += 10.0
            for name, wanted in (("b", "big"), ("t", "qwen")):
                blocks = turns(30 + turn) if wanted == "qwen" else ()
                s.step(ask(f"{name}{turn}", wanted, blocks=blocks, **TALK), now)
                s.step(FirstToken(RequestId(f"{name}{turn}"), cached if blocks else 0), now + 2.0)
                s.step(Finished(RequestId(f"{name}{turn}"), "ok", Usage(4000, cached if blocks else 0, 50)), now + 3.0)
        [grant] = s.step(ask("new", blocks=(1, 2, 3), **TALK), now + 4.0)
        assert isinstance(grant, Grant)
        assert grant.node == "home"
        return {c.node: t.seconds for c in grant.decision.candidates for t in c.terms if t.name == "again"}

    assert placed(0) == {}
    assert placed(3900)["a"] > 1.0
