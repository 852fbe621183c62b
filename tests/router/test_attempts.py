"""One request's attempts, step by step: what is said to the coordinator, when it is tried again, how it ends."""

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
    NodeLost,
    Open,
    Placed,
    Tick,
)
from router.attempts import Attempts
from router.errors import ErrorCode, Refusal
from router.events import Decision, Why
from router.frames import CancelAsk, Done, First, Taken
from router.settings import EdgeSettings

ID = RequestId("r1")
A, B, C = NodeId("a" * 16), NodeId("b" * 16), NodeId("c" * 16)
SETTINGS = EdgeSettings()
DECISION = Why(Decision(request={}, chosen=None, waited_ms=0.0, candidates=()))
NOBODY = Refusal(ErrorCode.NO_NODE_AVAILABLE, "nobody is left")


def machine(*, streamed: bool = True, deadline_s: float = 60.0, barred: tuple[NodeId, ...] = ()) -> Attempts:
    return Attempts(ID, settings=SETTINGS, streamed=streamed, deadline_s=deadline_s, now=0.0, barred=barred)


def placed(attempt: int, node: NodeId) -> Placed:
    return Placed(attempt, node, "m", DECISION)


def opened(m: Attempts, node: NodeId = A, now: float = 0.0) -> list[Effect]:
    """The first attempt, open on `node`."""
    assert m.step(Tick(), now) == [AskFor(1, (), None)]
    return m.step(placed(1, node), now)


def test_a_request_that_goes_well() -> None:
    m = machine()
    assert m.deadline == 0.0
    assert m.step(Tick(), 0.0) == [AskFor(1, (), None)]
    assert m.step(placed(1, A), 0.25) == [Taken(ID, 1), Open(1, A, "m")]
    assert m.step(FirstByte(1), 0.5) == [First(ID, 1)]
    usage = Usage(5, 0, 7)
    assert m.step(Completed(1, usage), 2.25) == [Done(ID, 1, "ok", usage), Finish("ok", usage)]
    assert m.over
    assert m.deadline == float("inf")
    assert m.waited_s == 0.25
    assert [(f.node, f.outcome, f.ms) for f in m.facts] == [(A, "ok", 2000.0)]


def test_before_the_first_byte_a_failure_is_asked_for_again_elsewhere() -> None:
    m = machine()
    opened(m)
    assert m.step(Broke(1, NodeErrorCode.MODEL_FAILED, "crashed"), 1.0) == [AskFor(2, (A,), "failed")]
    assert m.step(placed(2, B), 1.0) == [Taken(ID, 2), Open(2, B, "m")]
    assert m.facts[0].error == "model_failed: crashed"


def test_a_non_streamed_answer_is_retried_until_it_is_whole() -> None:
    m = machine(streamed=False)
    opened(m)
    m.step(FirstByte(1), 0.1)
    assert m.step(Broke(1, NodeErrorCode.UNREACHABLE, "reset"), 0.2) == [AskFor(2, (A,), "failed", begun=True)]
    m.step(placed(2, B), 0.2)
    assert m.step(FirstByte(2), 0.3) == [First(ID, 2)]


def test_the_clients_own_fault_is_not_retried_and_not_held_against_the_node() -> None:
    m = machine()
    opened(m)
    assert m.step(Broke(1, NodeErrorCode.BAD_REQUEST, "no such tool"), 0.1) == [
        Done(ID, 1, "cancelled"),
        Fail(Refusal(ErrorCode.INVALID_REQUEST, "no such tool")),
    ]


def test_a_full_node_is_left_out_once_and_asked_again_when_nobody_else_is_there() -> None:
    m = machine()
    opened(m)
    assert m.step(Broke(1, NodeErrorCode.NODE_BUSY, "full"), 0.0) == [AskFor(2, (A,), "busy")]
    assert m.step(Denied(2, NOBODY), 0.0) == []
    assert m.deadline == SETTINGS.busy_pause_s
    assert m.step(Tick(), 0.05) == []
    assert m.step(Tick(), 0.1) == [AskFor(3, (), None)]
    m.step(placed(3, A), 0.1)
    m.step(Broke(3, NodeErrorCode.NODE_BUSY, "full"), 0.1)
    m.step(Denied(4, NOBODY), 0.1)
    assert m.deadline == 0.1 + 2 * SETTINGS.busy_pause_s
    assert [f.outcome for f in m.facts] == ["busy", "busy"]


def test_a_full_node_comes_back_before_a_failed_one() -> None:
    m = machine()
    opened(m)
    m.step(Broke(1, NodeErrorCode.MODEL_FAILED, "crashed"), 0.0)
    m.step(placed(2, B), 0.0)
    assert m.step(Broke(2, NodeErrorCode.NODE_BUSY, "full"), 0.0) == [AskFor(3, (A, B), "busy")]
    m.step(Denied(3, NOBODY), 0.0)
    assert m.step(Tick(), 1.0) == [AskFor(4, (A,), None)]


def test_when_every_candidate_has_failed_there_is_another_round_and_then_an_end() -> None:
    m, now, attempt = machine(), 0.0, 1
    m.step(Tick(), now)
    for round_ in range(1, SETTINGS.rounds + 1):
        m.step(placed(attempt, A), now)
        assert m.step(Broke(attempt, NodeErrorCode.MODEL_FAILED, "crashed"), now) == [
            AskFor(attempt + 1, (A,), "failed")
        ]
        effects = m.step(Denied(attempt + 1, NOBODY), now)
        if round_ < SETTINGS.rounds:
            assert effects == []
            assert m.deadline == now + SETTINGS.round_pause_s
            now = m.deadline
            attempt += 2
            assert m.step(Tick(), now) == [AskFor(attempt, (), None)]
    (fail,) = effects
    assert isinstance(fail, Fail)
    assert fail.refusal.code is ErrorCode.MODEL_FAILED
    assert fail.refusal.retry_after_s == SETTINGS.retry_after_s
    assert fail.refusal.message == f"crashed (after {SETTINGS.rounds} attempts)"


def test_a_model_that_restarts_is_waited_for() -> None:
    m = machine()
    opened(m)
    m.step(Broke(1, NodeErrorCode.MODEL_FAILED, "crashed"), 0.0)
    assert m.step(Denied(2, NOBODY), 0.0) == []
    assert m.step(Tick(), 1.0) == [AskFor(3, (), None)]
    assert m.step(Denied(3, NOBODY), 1.0) == []  # it is still down, though nobody is excluded any more
    assert m.step(Tick(), 2.0) == [AskFor(4, (), None)]
    assert m.step(placed(4, A), 2.0) == [Taken(ID, 4), Open(4, A, "m")]


def test_nodes_that_cannot_be_reached_end_as_no_node_available() -> None:
    m = machine()
    m.step(Tick(), 0.0)
    for attempt in range(1, SETTINGS.failures_limit + 1):
        m.step(placed(attempt, A), 0.0)
        effects = m.step(Broke(attempt, NodeErrorCode.UNREACHABLE, "refused"), 0.0)
    assert effects[0] == Done(ID, SETTINGS.failures_limit, "failed")
    assert isinstance(effects[1], Fail)
    assert effects[1].refusal.code is ErrorCode.NO_NODE_AVAILABLE


def test_a_refusal_without_any_failure_is_final() -> None:
    m = machine()
    m.step(Tick(), 0.0)
    full = Refusal(ErrorCode.MESH_SATURATED, "1024 wait", 3.0)
    assert m.step(Denied(1, full), 0.0) == [Fail(full)]
    m = machine(barred=(C,))
    assert m.step(Tick(), 0.0) == [AskFor(1, (C,), None)]
    assert m.step(Denied(1, NOBODY), 0.0) == [Fail(NOBODY)]


@pytest.mark.parametrize("code", [ErrorCode.NO_NODE_AVAILABLE, ErrorCode.MODEL_NOT_FOUND])
def test_a_model_whose_nodes_were_lost_a_moment_ago_is_asked_for_again_for_some_rounds(code: ErrorCode) -> None:
    m, now, gone = machine(), 0.0, Refusal(code, "air held it and is gone", 2.0)
    m.step(Tick(), now)
    for attempt in range(1, SETTINGS.rounds):
        assert m.step(Denied(attempt, gone, lately=True), now) == []
        now += SETTINGS.round_pause_s
        assert m.deadline == now
        assert m.step(Tick(), now) == [AskFor(attempt + 1, (), None)]
    (fail,) = m.step(Denied(SETTINGS.rounds, gone, lately=True), now)
    said = f"air held it and is gone; waited {now:.1f} s for a node that has it to come back"
    assert fail == Fail(Refusal(code, said, 2.0))


def test_a_model_whose_node_comes_back_is_answered() -> None:
    m = machine()
    m.step(Tick(), 0.0)
    assert m.step(Denied(1, NOBODY, lately=True), 0.5) == []
    assert m.step(Tick(), 1.5) == [AskFor(2, (), None)]
    assert m.step(placed(2, A), 1.5) == [Taken(ID, 2), Open(2, A, "m")]
    assert m.waited_s == 1.5


def test_only_that_nobody_is_there_is_waited_out() -> None:
    for code in (ErrorCode.MODEL_FAILED, ErrorCode.MESH_SATURATED, ErrorCode.DEADLINE_EXCEEDED):
        m, refusal = machine(), Refusal(code, "no")
        m.step(Tick(), 0.0)
        assert m.step(Denied(1, refusal, lately=True), 0.0) == [Fail(refusal)]


def test_the_deadline_ends_the_wait_for_a_lost_node_and_says_so() -> None:
    m = machine(deadline_s=1.5)
    m.step(Tick(), 0.0)
    m.step(Denied(1, NOBODY, lately=True), 0.0)
    m.step(Tick(), 1.0)
    m.step(Denied(2, NOBODY, lately=True), 1.0)
    (fail,) = m.step(Tick(), 1.5)
    assert isinstance(fail, Fail)
    assert fail.refusal.code is ErrorCode.DEADLINE_EXCEEDED
    assert NOBODY.message in fail.refusal.message
    assert "waited 1.5 s for a node that has it to come back" in fail.refusal.message


def test_a_dead_node_is_left_at_once() -> None:
    m = machine()
    opened(m)
    assert m.step(NodeLost(B), 0.1) == []
    assert m.step(NodeLost(A), 0.1) == [CloseUpstream(), AskFor(2, (A,), "failed")]
    assert m.step(Broke(1, NodeErrorCode.UNREACHABLE, "reset"), 0.2) == []  # its socket notices later


def test_a_client_that_leaves_while_waiting_takes_its_ask_back() -> None:
    m = machine()
    m.step(Tick(), 0.0)
    assert m.step(ClientLeft(), 0.5) == [CancelAsk(ID, 1), Finish("cancelled")]
    assert m.waited_s == 0.5
    assert m.step(placed(1, A), 0.6) == []


def test_a_client_that_leaves_closes_the_upstream() -> None:
    m = machine()
    opened(m)
    assert m.step(ClientLeft(), 0.5) == [CloseUpstream(), Done(ID, 1, "cancelled"), Finish("cancelled")]


def test_the_deadline_ends_everything() -> None:
    m = machine(deadline_s=5.0)
    opened(m)
    assert m.deadline == 5.0
    close, done, fail = m.step(Tick(), 5.0)
    assert (close, done) == (CloseUpstream(), Done(ID, 1, "cancelled"))
    assert isinstance(fail, Fail)
    assert fail.refusal.code is ErrorCode.DEADLINE_EXCEEDED


def test_a_node_that_was_full_until_shortly_before_the_deadline_has_the_last_word() -> None:
    for deadline_s, at in ((60.0, 58.6), (5.0, 4.6)):
        m = machine(deadline_s=deadline_s)
        opened(m)
        busy = Broke(1, NodeErrorCode.NODE_BUSY, "m waited 59 s for room: it needs 5 GB")
        done, fail = m.step(busy, at)
        assert done == Done(ID, 1, "busy")
        assert isinstance(fail, Fail)
        assert fail.refusal.code is ErrorCode.NO_NODE_AVAILABLE
        assert fail.refusal.message == "m waited 59 s for room: it needs 5 GB (after 1 attempt)"
        assert fail.refusal.retry_after_s is not None


def test_a_stream_that_waits_long_is_comforted_until_its_first_byte() -> None:
    m = machine()
    opened(m)
    assert m.deadline == SETTINGS.head_hold_s
    assert m.step(Tick(), 10.0) == [Comfort()]
    assert m.step(Tick(), 15.0) == [Comfort()]
    m.step(FirstByte(1), 16.0)
    assert m.deadline == 60.0
    assert m.step(Tick(), 20.0) == []


def test_a_whole_answer_is_not_comforted() -> None:
    m = machine(streamed=False)
    opened(m)
    assert m.deadline == 60.0


def test_what_an_earlier_attempt_still_says_does_not_count() -> None:
    m = machine()
    opened(m)
    m.step(Broke(1, NodeErrorCode.UNREACHABLE, "reset"), 0.1)
    assert m.step(placed(1, B), 0.1) == []
    assert m.step(FirstByte(1), 0.1) == []
    assert m.step(Completed(1, Usage()), 0.1) == []
    assert m.step(placed(2, B), 0.1) == [Taken(ID, 2), Open(2, B, "m")]
