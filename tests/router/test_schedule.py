"""Where a request goes, why, and in which order: the Scheduler's promises one by one."""

from __future__ import annotations

import pytest
from msgspec import structs

from node.types import ModelState, NodeId, RequestId, Usage
from router.cost import NAMES
from router.errors import ErrorCode
from router.schedule import Adopt, Cancel, Finished, FirstToken, Grant, NodeChanged, SchedulerEffect, Submit, Tick
from tests.router.fleets import ask, granted, model, node, refused, scheduler


def test_a_free_node_gets_the_request_at_once_and_the_decision_explains_it() -> None:
    s = scheduler(node("a"), node("b", model("other")))
    [grant] = s.step(ask("1"), 1.0)
    assert isinstance(grant, Grant)
    assert (grant.node, grant.model) == ("a", "qwen")
    chosen, other = grant.decision.candidates
    assert grant.decision.chosen == "a"
    assert [t.name for t in chosen.terms] == list(NAMES[:-1])
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


def test_requests_of_others_take_slots_and_those_of_another_model_do_not() -> None:
    busy = node("a", model(slots=2), foreign_in_flight=2)
    s = scheduler(busy)
    assert s.step(ask("1"), 0.0) == []
    assert granted(s.step(NodeChanged(structs.replace(busy, foreign_in_flight=1)), 1.0)) == [("1", "a")]
    s = scheduler(node("a", model(slots=2), model("other", foreign_in_flight=2), foreign_in_flight=2))
    assert granted(s.step(ask("1"), 0.0)) == [("1", "a")]


def test_a_deadline_names_what_it_waited_for() -> None:
    s = scheduler(node("a", model(slots=1)))
    s.step(ask("1"), 0.0)
    s.step(ask("2", deadline=3.0), 1.0)
    assert s.deadline == 3.0
    assert s.step(Tick(), 2.9) == []
    error = refused(s.step(Tick(), 3.0)).error
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert error.message == "waited 2.0 s for a free slot on a to run 'qwen'"


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


def test_where_first_tokens_come_at_once_prompts_are_read_side_by_side() -> None:
    """A server elsewhere, or a cache: one after the other would cost a round trip each. Slots still bound it."""
    s = scheduler(node("a", model(slots=3)))
    now = 0.0
    for name in "123":
        assert granted(s.step(ask(name), now)) == [(name, "a")]
        s.step(FirstToken(RequestId(name)), now + 0.005)
        s.step(Finished(RequestId(name), "ok", Usage(100, 0, 5)), now + 0.01)
        now += 1.0
    assert [pair for name in "456" for pair in granted(s.step(ask(name), now))] == [("4", "a"), ("5", "a"), ("6", "a")]
    assert s.step(ask("7"), now) == []
    assert s.step(ask("8"), now) == []
    s.step(Finished(RequestId("4"), "failed"), now)
    done = s.step(Finished(RequestId("5"), "failed"), now)
    assert granted(done) == [("8", "a")]
    for name in "678":  # Now they take a while: one after the other again.
        s.step(FirstToken(RequestId(name)), now + 2.0)
        s.step(Finished(RequestId(name), "ok", Usage(100, 0, 5)), now + 3.0)
    assert granted(s.step(ask("9"), now + 4.0)) == [("9", "a")]
    assert s.step(ask("10"), now + 4.0) == []


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
