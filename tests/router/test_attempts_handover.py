"""An answer that broke off: who is asked to go on with it, how often, and how it ends when nobody can."""

from __future__ import annotations

import pytest

from node.errors import NodeErrorCode
from node.types import NodeId, RequestId, Usage
from router.attempt_events import (
    AskFor,
    Broke,
    ClientLeft,
    CloseUpstream,
    Comfort,
    Completed,
    Denied,
    Effect,
    Fail,
    Finish,
    FirstByte,
    Hopeless,
    Joined,
    Mismatch,
    NodeLost,
    Open,
    Placed,
    Tick,
    Unkept,
)
from router.attempts import Attempts
from router.errors import ErrorCode, Refusal
from router.events import Decision, Why
from router.facts import Mode
from router.frames import CancelAsk, Done, First, Taken
from router.settings import EdgeSettings

ID = RequestId("r1")
A, B, C = NodeId("a" * 16), NodeId("b" * 16), NodeId("c" * 16)
SETTINGS = EdgeSettings(cuts_limit=3)
DECISION = Why(Decision(request={}, chosen=None, waited_ms=0.0, candidates=()))
NOBODY = Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody is left")
FULL = Refusal(ErrorCode.MESH_SATURATED, "1024 wait")


def placed(attempt: int, node: NodeId, mode: Mode = "continue") -> Placed:
    return Placed(attempt, node, "m", DECISION, mode)


def reset(attempt: int) -> Broke:
    return Broke(attempt, NodeErrorCode.UNREACHABLE, "reset")


def flowing(*, streamed: bool = True, deadline_s: float = 60.0) -> Attempts:
    """The first attempt, on A, has given some of the answer."""
    m = Attempts(ID, settings=SETTINGS, streamed=streamed, deadline_s=deadline_s, now=0.0)
    m.step(Tick(), 0.0)
    m.step(placed(1, A, "start"), 0.0)
    m.step(FirstByte(1), 0.1)
    return m


def cut(m: Attempts, attempt: int = 1, now: float = 1.0) -> list[Effect]:
    return m.step(reset(attempt), now)


def lost(effects: list[Effect]) -> tuple[str | None, str]:
    """How the end names it."""
    last = effects[-1]
    assert isinstance(last, Fail)
    assert last.refusal.code is ErrorCode.STREAM_LOST
    return last.lost, last.refusal.message


def test_an_answer_that_breaks_off_goes_on_elsewhere_and_ends_well() -> None:
    m = flowing()
    assert cut(m) == [AskFor(2, (A,), "failed", begun=True)]
    assert m.step(placed(2, B), 1.0) == [Taken(ID, 2), Open(2, B, "m", "continue")]
    assert m.step(FirstByte(2), 1.5) == [First(ID, 2)]
    assert m.step(Joined(2), 1.5) == []
    whole, own = Usage(5, 0, 20), Usage(15, 0, 10)
    assert m.step(Completed(2, whole, own), 3.0) == [Done(ID, 2, "ok", own), Finish("ok", whole)]
    first, second = m.facts
    assert (first.node, first.outcome, first.error, first.cut) == (A, "failed", "unreachable: reset", True)
    assert (second.node, second.outcome, second.mode, second.cut) == (B, "ok", "continue", False)


def test_a_dead_node_is_left_in_the_middle_of_its_stream() -> None:
    m = flowing()
    assert m.step(NodeLost(A), 1.0) == [CloseUpstream(), AskFor(2, (A,), "failed", begun=True)]
    assert m.step(reset(1), 1.1) == []


@pytest.mark.parametrize("code", [NodeErrorCode.DRAINING, NodeErrorCode.NODE_BUSY])
def test_a_node_that_is_drained_now_hands_over_without_having_failed(code: NodeErrorCode) -> None:
    m = flowing()
    assert m.step(Broke(1, code, "this node stopped"), 1.0) == [AskFor(2, (A,), "busy", begun=True)]
    assert m.step(Denied(2, NOBODY), 1.0) == []
    assert m.step(Tick(), 1.0 + SETTINGS.busy_pause_s) == [AskFor(3, (), None, begun=True, refused=True)]


def test_the_client_is_comforted_until_something_new_comes() -> None:
    m = flowing()
    assert m.deadline == 60.0
    cut(m)
    assert m.deadline == 1.0 + SETTINGS.comfort_every_s
    assert m.step(Tick(), 6.0) == [Comfort()]
    m.step(placed(2, B, "replay"), 6.5)
    m.step(FirstByte(2), 7.0)  # it repeats what the client has
    assert m.step(Tick(), 11.0) == [Comfort()]
    m.step(Joined(2), 12.0)
    assert m.deadline == 60.0


def test_one_that_only_repeated_what_was_sent_has_cut_nothing() -> None:
    m = flowing()
    cut(m)
    m.step(placed(2, B, "replay"), 1.0)
    m.step(FirstByte(2), 1.1)
    assert m.step(reset(2), 1.2) == [AskFor(3, (A, B), "failed", begun=True)]
    assert [fact.cut for fact in m.facts] == [True, False]


@pytest.mark.parametrize("code", [NodeErrorCode.CANNOT_RESUME, NodeErrorCode.BAD_REQUEST])
def test_a_node_that_cannot_continue_or_takes_it_for_nonsense_may_run_it_again(code: NodeErrorCode) -> None:
    m = flowing()
    cut(m)
    m.step(placed(2, B), 1.0)
    cannot = Broke(2, code, "its engine cannot")
    assert m.step(cannot, 1.1) == [AskFor(3, (A,), "cancelled", begun=True, cannot=(B,))]
    assert m.step(placed(3, B, "replay"), 1.1) == [Taken(ID, 3), Open(3, B, "m", "replay")]
    again = Broke(3, NodeErrorCode.CANNOT_RESUME, "its engine cannot")
    assert m.step(again, 1.2) == [AskFor(4, (A, B), "cancelled", begun=True, cannot=(B,))]


def test_a_second_run_that_says_something_else_ends_it_and_is_not_held_against_the_node() -> None:
    m = flowing()
    cut(m)
    m.step(placed(2, B, "replay"), 1.0)
    m.step(FirstByte(2), 1.1)
    effects = m.step(Mismatch(2, "the second run says something else"), 1.2)
    assert effects[0] == Done(ID, 2, "cancelled")
    assert lost(effects) == ("mismatch", "the second run says something else")
    assert m.facts[1].error == "mismatch: the second run says something else"


def test_what_is_not_kept_cannot_go_on() -> None:
    m = flowing()
    assert m.step(Unkept("more than 8 bytes of it were sent"), 0.5) == []
    effects = cut(m)
    assert effects[0] == Done(ID, 1, "failed")
    assert lost(effects) == ("not_kept", "reset (after 1 attempt); more than 8 bytes of it were sent")


def test_what_is_dropped_during_a_hand_over_cannot_go_on_either() -> None:
    m = flowing()
    cut(m)
    cancel, fail = m.step(Unkept("younger streams took the room"), 1.5)
    assert cancel == CancelAsk(ID, 2)
    assert lost([fail]) == ("not_kept", "reset (after 1 attempt); younger streams took the room")
    m = flowing()
    cut(m)
    m.step(placed(2, B, "replay"), 1.0)
    m.step(FirstByte(2), 1.1)
    close, done, fail = m.step(Unkept("too much"), 1.5)
    assert (close, done) == (CloseUpstream(), Done(ID, 2, "cancelled"))
    assert lost([fail])[0] == "not_kept"
    m = flowing()
    cut(m)
    m.step(Denied(2, NOBODY), 1.0)
    assert lost(m.step(Unkept("too much"), 1.5))[0] == "not_kept"


def test_what_nobody_could_ever_go_on_with_ends_at_once() -> None:
    m = flowing()
    cut(m)
    assert m.step(Hopeless(1, "engine", "no"), 1.0) == []
    effects = m.step(Hopeless(2, "engine", "no engine can go on with it"), 1.0)
    assert effects[0] == Done(ID, 1, "failed")
    assert lost(effects) == ("engine", "no engine can go on with it")


def test_the_node_it_broke_off_on_is_asked_again_in_a_later_round() -> None:
    m = flowing()
    cut(m)
    assert m.step(Denied(2, NOBODY), 1.0) == []
    assert m.step(Tick(), 2.0) == [AskFor(3, (), None, begun=True, refused=True)]
    m.step(placed(3, A), 2.0)
    m.step(FirstByte(3), 2.5)
    m.step(Joined(3), 2.5)
    assert m.step(Completed(3, Usage()), 3.0)[-1] == Finish("ok")


def test_an_ask_that_was_refused_is_said_to_be_until_something_new_comes() -> None:
    m = flowing()
    assert cut(m) == [AskFor(2, (A,), "failed", begun=True)]
    m.step(Denied(2, NOBODY), 1.0)
    assert m.step(Tick(), 2.0) == [AskFor(3, (), None, begun=True, refused=True)]
    m.step(placed(3, B), 2.0)
    assert m.step(reset(3), 2.1) == [AskFor(4, (B,), "failed", begun=True, refused=True)]
    m.step(placed(4, C), 2.2)
    m.step(FirstByte(4), 2.3)
    m.step(Joined(4), 2.3)
    assert m.step(reset(4), 2.4) == [AskFor(5, (C,), "failed", begun=True)]


@pytest.mark.parametrize("refusal", [NOBODY, FULL])
def test_when_nobody_comes_for_all_the_rounds_it_is_lost(refusal: Refusal) -> None:
    m, attempt = flowing(), 2
    effects = cut(m)
    for _ in range(SETTINGS.rounds):
        assert [type(e) for e in effects] == [AskFor]
        effects = m.step(Denied(attempt, refusal), m.deadline)
        while not m.over and effects in ([], [Comfort()]):
            effects = m.step(Tick(), m.deadline)
        attempt += 1
    assert lost(effects) == ("nobody", "reset (after 1 attempt); nobody could go on with it")


def test_the_coordinators_deadline_ends_it_by_that_name() -> None:
    m = flowing()
    cut(m)
    late = Refusal(ErrorCode.DEADLINE_EXCEEDED, "it waited 59 s")
    assert m.step(Denied(2, late), 2.0) == [Fail(late)]


def test_its_own_deadline_ends_a_hand_over_by_that_name() -> None:
    m = flowing(deadline_s=10.0)
    cut(m)
    cancel, fail = m.step(Tick(), 10.0)
    assert cancel == CancelAsk(ID, 2)
    assert isinstance(fail, Fail)
    assert fail.refusal.code is ErrorCode.DEADLINE_EXCEEDED
    m = flowing(deadline_s=10.0)
    assert m.step(Broke(1, NodeErrorCode.NODE_BUSY, "the deadline passed"), 9.9) == [
        AskFor(2, (A,), "busy", begun=True)
    ]


def test_failures_before_anything_new_came_are_counted_until_their_limit() -> None:
    m, now = flowing(), 1.0
    effects = cut(m)
    for attempt in range(2, SETTINGS.failures_limit + 1):
        assert [type(e) for e in effects] == [AskFor]
        m.step(placed(attempt, B, "replay"), now)
        m.step(FirstByte(attempt), now)
        effects = m.step(Broke(attempt, NodeErrorCode.BAD_REQUEST, "what is this"), now)
    assert effects[0] == Done(
        ID, SETTINGS.failures_limit, "failed"
    )  # the request was good before: it is the node's fault
    assert lost(effects)[0] == "failures"


def test_something_new_gives_it_new_failures_but_it_may_not_break_off_for_ever() -> None:
    m = flowing()
    effects, attempt = cut(m), 1
    for _ in range(SETTINGS.cuts_limit):
        for _ in range(SETTINGS.failures_limit - 1):
            assert [type(e) for e in effects] == [AskFor]
            attempt += 1
            m.step(placed(attempt, B), 1.0)
            m.step(FirstByte(attempt), 1.0)
            last = effects
            effects = m.step(reset(attempt), 1.0) if _ < SETTINGS.failures_limit - 2 else []
        assert [type(e) for e in last] == [AskFor]
        m.step(Joined(attempt), 1.0)
        effects = m.step(reset(attempt), 1.0)
    why, message = lost(effects)
    assert why == "cuts"
    assert f"it broke off {SETTINGS.cuts_limit + 1} times" in message


def test_a_client_that_leaves_during_a_hand_over_takes_the_ask_back() -> None:
    m = flowing()
    cut(m)
    assert m.step(ClientLeft(), 1.5) == [CancelAsk(ID, 2), Finish("cancelled")]


def test_a_whole_answer_that_begins_again_and_again_has_one_budget() -> None:
    m, now = flowing(streamed=False), 1.0
    effects = cut(m)
    attempt = 2
    while not m.over:
        assert [type(e) for e in effects] == [AskFor]
        m.step(placed(attempt, B, "start"), now)
        m.step(FirstByte(attempt), now)
        effects = m.step(reset(attempt), now)
        attempt += 1
    assert len(m.facts) == SETTINGS.failures_limit
    (_, fail) = effects
    assert isinstance(fail, Fail)
    assert (fail.refusal.code, fail.lost) == (ErrorCode.NO_NODE_AVAILABLE, None)
