"""The Scheduler's promises one by one: where a request goes, why, and what it says when it goes nowhere."""

from __future__ import annotations

import random

import pytest
from msgspec import structs

from node.types import ModelState, ModelStatus, NodeId, NodeStatus, Pressure, RequestId, Usage
from router.cost import NAMES
from router.errors import ErrorCode
from router.schedule import (
    Adopt,
    Cancel,
    Finished,
    FirstToken,
    Grant,
    Loaded,
    NodeChanged,
    NodeDown,
    NodeUp,
    Refuse,
    Request,
    Scheduler,
    SchedulerEffect,
    Submit,
    Tick,
)
from router.settings import RouterSettings

GB = 10**9


def model(name: str = "qwen", /, **changes: object) -> ModelStatus:
    base = ModelStatus(name=name, state=ModelState.READY, slots=2, size_bytes=4 * GB, load_s=5.0)
    return structs.replace(base, **changes)


def node(name: str, *models: ModelStatus, **changes: object) -> NodeStatus:
    base = NodeStatus(
        node=NodeId(name), name=name, bandwidth=200.0, headroom_bytes=10 * GB, models=models or (model(),)
    )
    return structs.replace(base, **changes)


def ask(name: str, *models: str, **changes: object) -> Submit:
    base = Request(id=RequestId(name), models=models or ("qwen",), prompt_tokens=100, max_tokens=50)
    return Submit(structs.replace(base, **changes))


def scheduler(*statuses: NodeStatus, now: float = 0.0, **bounds: object) -> Scheduler:
    made = Scheduler(RouterSettings(**bounds), random.Random(1))  # type: ignore[arg-type]
    for status in statuses:
        assert made.step(NodeUp(status), now) == []
    return made


def granted(effects: list[SchedulerEffect]) -> list[tuple[str, str]]:
    assert all(isinstance(e, Grant) for e in effects), effects
    return [(e.id, e.node) for e in effects if isinstance(e, Grant)]


def refused(effects: list[SchedulerEffect]) -> Refuse:
    [effect] = effects
    assert isinstance(effect, Refuse), effect
    return effect


def test_a_free_node_gets_the_request_at_once_and_the_decision_explains_it() -> None:
    s = scheduler(node("a"), node("b", model("other")))
    [grant] = s.step(ask("1"), 1.0)
    assert isinstance(grant, Grant)
    assert (grant.node, grant.model) == ("a", "qwen")
    chosen, other = grant.decision.candidates
    assert grant.decision.chosen == "a"
    assert [t.name for t in chosen.terms] == list(NAMES)
    assert chosen.total_s == sum(t.seconds for t in chosen.terms)
    assert all(t.why for t in chosen.terms)
    assert (other.node, other.total_s, other.excluded) == ("b", None, "model not served there")
    assert grant.decision.request["model"] == "qwen"
    assert grant.decision.waited_ms == 0.0


def test_requests_spread_over_equal_nodes_and_the_rest_wait_in_order() -> None:
    s = scheduler(node("a"), node("b"))
    grants = [pair for i in range(6) for pair in granted(s.step(ask(str(i)), 0.001 * i))]
    assert sorted(grants) == [("0", "a"), ("1", "b")]  # One prompt is read at a time.
    grants += [pair for i in range(4) for pair in granted(s.step(FirstToken(RequestId(str(i))), 0.5))]
    assert sorted(n for _, n in grants) == ["a", "a", "b", "b"]
    assert [g[0] for g in grants] == ["0", "1", "2", "3"]
    assert [(name, position) for name, position, _ in s.waiting()] == [("4", 1), ("5", 2)]
    assert all(wait_s > 0 for *_, wait_s in s.waiting())
    assert granted(s.step(Finished(RequestId("1"), "ok", Usage(100, 0, 50)), 1.0)) == [("4", dict(grants)["1"])]
    s.step(FirstToken(RequestId("4")), 1.1)
    assert granted(s.step(Cancel(RequestId("2")), 1.1)) == [("5", dict(grants)["2"])]


def test_the_faster_machine_is_preferred_and_worth_waiting_for() -> None:
    s = scheduler(node("fast", model(slots=1), bandwidth=800.0), node("slow", model(slots=1), bandwidth=20.0))
    long = {"prompt_tokens": 4000, "max_tokens": 20}
    assert granted(s.step(ask("1", **long), 0.0)) == [("1", "fast")]
    assert s.step(ask("2", **long), 0.0) == []  # 100 s on the slow one, 6 s on the fast one
    assert granted(s.step(Finished(RequestId("1"), "ok", Usage(4000, 0, 20)), 3.0)) == [("2", "fast")]


def test_no_node_that_could_start_it_stands_idle_for_longer_than_the_bound() -> None:
    s = scheduler(node("fast", model(slots=1), bandwidth=800.0), node("slow", model(slots=1), bandwidth=2.0))
    s.step(ask("1", prompt_tokens=20_000), 0.0)
    assert s.step(ask("2", prompt_tokens=20_000), 0.0) == []
    now = 0.0
    effects: list[SchedulerEffect] = []
    while not effects:
        assert s.deadline is not None
        now = max(now + 0.001, s.deadline)
        effects = s.step(Tick(), now)
    assert granted(effects) == [("2", "slow")]
    assert 44.0 <= now <= 47.0
    [grant] = effects
    assert isinstance(grant, Grant)
    assert "stood idle for 4" in str(grant.decision.request["idle"])


def test_a_request_behind_others_that_cannot_start_is_not_held_up_by_them() -> None:
    s = scheduler(node("a", model(slots=1)), node("b", model("other")))
    for i in range(100):
        s.step(ask(str(i)), 0.0)
    assert granted(s.step(ask("x", "other"), 0.1)) == [("x", "b")]


def test_low_priority_waits_behind_normal_but_not_for_ever() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("low", priority="low"), 0.0)
    s.step(ask("2"), 10.0)
    s.step(ask("3"), 40.0)
    assert [name for name, *_ in s.waiting()] == ["2", "low", "3"]


def test_submitting_twice_keeps_the_place_and_an_age_gives_an_older_one_back() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 10.0)
    s.step(ask("2"), 11.0)
    s.step(ask("3"), 12.0)
    assert s.step(ask("2"), 13.0) == []
    assert s.step(ask("1"), 13.0) == []  # It runs already: the grant stands.
    s.step(Submit(ask("0").request, age_s=5.0), 13.0)
    assert [name for name, *_ in s.waiting()] == ["0", "2", "3"]


def test_aliases_match_on_the_node_that_defines_them_and_names_go_first() -> None:
    s = scheduler(node("a", model("small", aliases=("fast",)), model("fast")), node("b", model("big")))
    [grant] = s.step(ask("1", "fast"), 0.0)
    assert isinstance(grant, Grant)
    assert grant.model == "fast"
    s.step(FirstToken(RequestId("1")), 0.0)
    [grant] = s.step(ask("2", "small"), 0.0)
    assert isinstance(grant, Grant)
    assert grant.model == "small"


def test_a_fallback_answers_only_when_nobody_can_serve_the_name_asked_for() -> None:
    s = scheduler(node("a", model("big", slots=1)), node("b", model("small")))
    assert granted(s.step(ask("1", "big", "small"), 0.0)) == [("1", "a")]
    assert s.step(ask("2", "big", "small"), 0.0) == []  # it waits for the one it wants
    [grant] = s.step(NodeChanged(node("a", model("big", state=ModelState.FAILED, error="no memory"))), 1.0)
    assert isinstance(grant, Grant)
    assert (grant.node, grant.model) == ("b", "small")
    assert grant.decision.request["fallback"] == "no node can serve 'big' now, 'small' is its fallback"
    assert "failed there: no memory" in [c.excluded for c in grant.decision.candidates]


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


def test_critical_pressure_does_not_bar_a_model_that_is_loaded() -> None:
    assert granted(scheduler(node("a", pressure=Pressure.CRITICAL)).step(ask("1"), 0.0)) == [("1", "a")]


def test_a_model_that_is_loading_is_waited_for() -> None:
    s = scheduler(node("a", model(state=ModelState.LOADING)))
    assert s.step(ask("1"), 1.0) == []
    assert s.waiting()[0][2] == pytest.approx(4.0)
    assert granted(s.step(Loaded(NodeId("a"), "qwen", 4.5), 5.0)) == [("1", "a")]


def test_one_grant_starts_a_load_and_the_others_wait_for_it() -> None:
    s = scheduler(node("a", model(state=ModelState.ABSENT)))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]
    assert s.step(ask("2"), 0.1) == []
    assert s.step(NodeChanged(node("a")), 6.0) == []  # It is loaded, and reads the first one's prompt.
    assert granted(s.step(FirstToken(RequestId("1")), 6.5)) == [("2", "a")]


def test_two_loads_do_not_share_the_same_headroom() -> None:
    absent = ModelState.ABSENT
    s = scheduler(node("a", model("x", state=absent, size_bytes=6 * GB), model("y", state=absent, size_bytes=6 * GB)))
    assert granted(s.step(ask("1", "x"), 0.0)) == [("1", "a")]
    error = refused(s.step(ask("2", "y"), 0.1)).error
    assert "needs 6.0 GB, headroom 4.0 GB" in error.message


def test_a_load_is_weighed_against_waiting() -> None:
    s = scheduler(node("a", model(slots=1)), node("b", model(state=ModelState.ABSENT, slots=1, load_s=60.0)))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]
    assert s.step(ask("2"), 0.0) == []  # a is free in 2 s; b would load for 60 s
    s = scheduler(node("a", model(slots=1)), node("b", model(state=ModelState.ABSENT, slots=1, load_s=0.5)))
    assert granted(s.step(ask("1", max_tokens=4000), 0.0)) == [("1", "a")]
    assert granted(s.step(ask("2", max_tokens=4000), 0.0)) == [("2", "b")]


def test_requests_of_others_take_slots_and_those_of_another_model_do_not() -> None:
    busy = node("a", model(slots=2), foreign_in_flight=2)
    s = scheduler(busy)
    assert s.step(ask("1"), 0.0) == []
    assert granted(s.step(NodeChanged(structs.replace(busy, foreign_in_flight=1)), 1.0)) == [("1", "a")]
    s = scheduler(node("a", model(slots=2), model("other", foreign_in_flight=2), foreign_in_flight=2))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]


def test_a_full_queue_refuses_early_and_says_when_to_come_back() -> None:
    s = scheduler(node("a", model(slots=1)), queue_limit=2)
    for i in range(3):
        s.step(ask(str(i)), 0.0)
    error = refused(s.step(ask("x"), 0.0)).error
    assert error.code is ErrorCode.MESH_SATURATED
    assert "2 requests wait already" in error.message
    assert error.retry_after_s is not None


def test_a_deadline_names_what_it_waited_for() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("2", deadline=3.0), 1.0)
    assert s.deadline == 3.0
    assert s.step(Tick(), 2.9) == []
    error = refused(s.step(Tick(), 3.0)).error
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert error.message == "waited 2.0 s for a free slot on a to run 'qwen'"


def test_a_node_that_goes_down_frees_its_requests_and_its_models_stay_known() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("2"), 0.0)
    error = refused(s.step(NodeDown(NodeId("a")), 1.0)).error
    assert error.code is ErrorCode.NO_NODE_AVAILABLE
    assert "a held it and is gone" in error.message
    assert s.in_flight() == {}
    assert refused(s.step(ask("3"), 700.0)).error.code is ErrorCode.MODEL_NOT_FOUND


def test_an_adopted_request_holds_its_slot_and_cannot_be_granted_again() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(Adopt(ask("1").request, NodeId("a"), sent_s_ago=2.0, first_token=True), 5.0)
    assert s.in_flight() == {("a", "qwen"): 1}
    assert s.step(ask("1"), 5.0) == []
    assert s.step(ask("2"), 5.0) == []
    assert granted(s.step(Finished(RequestId("1"), "ok", Usage(1, 0, 9)), 6.0)) == [("2", "a")]


def test_a_waiting_request_that_turns_out_to_run_leaves_the_queue() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("2"), 0.0)
    s.step(Adopt(ask("2").request, NodeId("a"), 0.1, first_token=False), 0.2)
    assert s.waiting() == []
    assert s.in_flight() == {("a", "qwen"): 2}


def test_node_busy_is_no_failure_but_that_node_gets_a_pause() -> None:
    s = scheduler(node("a"))
    s.step(ask("1"), 0.0)
    s.step(Finished(RequestId("1"), "busy"), 0.1)
    assert s.step(ask("1"), 0.1) == []
    assert s.deadline == pytest.approx(0.6)
    assert granted(s.step(Tick(), 0.6)) == [("1", "a")]


def test_a_granted_request_nobody_ends_is_forgotten_in_the_end() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1", deadline=100.0), 0.0)
    assert s.deadline == 160.0
    s.step(Tick(), 160.0)
    assert s.in_flight() == {}
    assert s.deadline is None


def test_speeds_are_learned_from_what_happens() -> None:
    s = scheduler(node("a"), node("b"))
    for i in range(10):
        now = 10.0 * i
        s.step(ask(str(i), prompt_tokens=1000, excluded=(NodeId("b"),)), now)
        s.step(FirstToken(RequestId(str(i))), now + 4.03)
        s.step(Finished(RequestId(str(i)), "ok", Usage(1000, 0, 51)), now + 9.03)
    learned, prior = s.rates(NodeId("a"), "qwen", 100.0), s.rates(NodeId("b"), "qwen", 100.0)
    assert learned is not None
    assert prior is not None
    assert learned.prefill_tps == pytest.approx(250.0, rel=0.1)
    assert learned.decode_tps == pytest.approx(10.0, rel=0.2)
    assert granted(s.step(ask("x", prompt_tokens=1000), 100.0)) == [("x", "b")]
    faded = s.rates(NodeId("a"), "qwen", 100.0 + 20 * 900)
    assert faded is not None
    assert faded.prefill_tps == pytest.approx(prior.prefill_tps, rel=0.01)


def test_forget_drops_requests_and_keeps_nodes() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("2"), 0.0)
    s.forget()
    assert (s.waiting(), s.in_flight()) == ([], {})
    assert granted(s.step(ask("3"), 1.0)) == [("3", "a")]


def test_a_prompt_that_is_late_is_not_waited_for_for_ever() -> None:
    s = scheduler(node("a"))
    s.step(ask("1", prompt_tokens=4000), 0.0)
    assert s.step(ask("2"), 0.0) == []
    now = 0.0
    while not (effects := s.step(Tick(), now)):
        assert s.deadline is not None
        now = max(now + 0.001, s.deadline)
    assert granted(effects) == [("2", "a")]
    assert 10.0 <= now <= 20.0  # 4000 tokens at 380/s, and a quarter more


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


def test_one_name_for_two_weights_and_a_conversation_stays_on_those_it_began_with() -> None:
    def standard(name: str, weights: str) -> NodeStatus:
        return node(name, model(f"{weights}-4b", aliases=("standard",), fingerprint=weights, slots=1))

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


def test_a_swap_waits_until_those_who_run_have_ended_and_is_one_load() -> None:
    big = model("big", state=ModelState.ABSENT, size_bytes=9 * GB, slots=1)
    s = scheduler(node("a", model(size_bytes=9 * GB), big, headroom_bytes=GB, evictable_bytes=9 * GB))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]
    s.step(FirstToken(RequestId("1")), 1.0)
    assert s.step(ask("2", "big"), 1.0) == []
    assert s.step(ask("3"), 1.5) == []  # It would come between, and the older one wait for it.
    [grant] = s.step(Finished(RequestId("1"), "ok", Usage(100, 0, 50)), 3.0)
    assert isinstance(grant, Grant)
    assert (grant.id, grant.model) == ("2", "big")
    load = grant.decision.candidates[0].terms[1]
    assert load.seconds == 5.0
    assert load.why == "not in memory there, loading takes about 5.0 s; 'qwen' has to leave for it"


def test_clients_share_and_the_queue_says_so() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("0", client="x"), 0.0)
    for n in range(3):
        s.step(ask(f"x{n}", client="x"), 0.1)
    for n in range(3):
        s.step(ask(f"y{n}", client="y"), 0.2)
    assert [name for name, *_ in s.waiting()] == ["x0", "y0", "x1", "y1", "x2", "y2"]
    assert granted(s.step(Finished(RequestId("0"), "ok"), 1.0)) == [("x0", "a")]
    assert granted(s.step(Finished(RequestId("x0"), "ok"), 2.0)) == [("y0", "a")]
