"""The asker: what an edge says to whom, how often, and what it does with answers from several desks."""

from __future__ import annotations

from msgspec import structs

from node.types import NodeId, RequestId
from router.asker import Answer, Asker, AskerEffect, AskerEvent, Follow, FromDesk, LinkBack, LinkLost, Release
from router.errors import ErrorCode, Refusal
from router.events import Decision, Request, Tick, Why
from router.frames import Ask, CancelAsk, Carrying, Done, First, Granted, Queued, Refused, Say, Taken
from router.settings import RouterSettings

ME, C1, C2 = NodeId("me"), NodeId("c1"), NodeId("c2")
ONE = RequestId("1")


def ask(name: str = "1", attempt: int = 1, deadline: float = 100.0, age_s: float = 0.0) -> Ask:
    return Ask(Request(id=RequestId(name), models=("qwen",), deadline=deadline), attempt, age_s)


def granted(node: str = "n", attempt: int = 1) -> Granted:
    decision = Decision(request={}, chosen=NodeId(node), waited_ms=0.0, candidates=())
    return Granted(ONE, attempt, NodeId(node), "qwen", Why(decision))


class Driven:
    def __init__(self, coordinator: NodeId | None = C1, *, ruling: bool = False) -> None:
        self.now = 0.0
        self.asker = Asker(ME, RouterSettings(), 0.0)
        if coordinator is not None or ruling:
            self.do(Follow(coordinator, 1, ruling))

    def do(self, event: AskerEvent, at: float | None = None) -> list[AskerEffect]:
        self.now = self.now if at is None else at
        return self.asker.step(event, self.now)

    def run(self, until: float) -> list[tuple[float, AskerEffect]]:
        """Ticks at every deadline up to `until`; nobody hears what is said."""
        seen: list[tuple[float, AskerEffect]] = []
        while self.asker.deadline is not None and self.asker.deadline <= until:
            assert len(seen) < 1000, "it must not spin"
            self.now = max(self.now, self.asker.deadline)
            seen += [(round(self.now, 3), e) for e in self.do(Tick())]
        self.now = until
        return seen


def said(effects: list[AskerEffect]) -> list[tuple[str, type]]:
    return [(e.to, type(e.frame)) for e in effects if isinstance(e, Say)]


def test_an_ask_goes_to_the_coordinator_with_the_time_that_is_left() -> None:
    d = Driven()
    d.do(ask(deadline=60.0, age_s=1.5), at=10.0)
    [effect] = d.do(Follow(C2, 2, ruling=False), at=14.0)
    assert isinstance(effect, Say)
    assert isinstance(effect.frame, Ask)
    assert (effect.to, effect.frame.age_s, effect.frame.request.deadline) == (C2, 5.5, 56.0)


def test_no_answer_is_asked_again_and_an_answer_is_enough_for_long() -> None:
    d = Driven()
    assert said(d.do(ask())) == [(C1, Ask)]
    assert [t for t, _ in d.run(1.6)] == [0.5, 1.0, 1.5]
    assert d.do(FromDesk(C1, Queued(ONE, 1, 3, 4.0))) == [Answer(Queued(ONE, 1, 3, 4.0))]
    assert [t for t, _ in d.run(6.7)] == [6.6]
    d.do(FromDesk(C1, granted()))
    assert d.run(60.0) == []


def test_without_a_coordinator_it_waits_and_then_asks_its_own_desk() -> None:
    d = Driven()
    d.do(Follow(None, 1, ruling=False), at=10.0)
    assert d.do(ask(), at=11.0) == []
    assert d.asker.deadline == 12.0
    assert said([e for _, e in d.run(12.0)]) == [(ME, Ask)]
    assert said(d.do(ask("2"))) == [(ME, Ask)]  # gone for longer already: decided at once


def test_the_own_desk_is_released_when_somebody_coordinates_again() -> None:
    d = Driven(None)
    d.do(ask(), at=5.0)
    d.do(FromDesk(ME, granted()))
    d.do(Taken(ONE, 1))
    effects = d.do(Follow(C2, 7, ruling=False))
    assert isinstance(effects[0], Release)
    assert said(effects) == [(C2, Carrying)]


def test_a_ruling_node_asks_itself_at_once() -> None:
    d = Driven(None, ruling=True)
    assert said(d.do(ask())) == [(ME, Ask)]


def test_a_lost_link_is_tried_again_and_after_the_hold_this_node_decides_alone() -> None:
    d = Driven()
    d.do(ask())
    d.do(FromDesk(C1, Queued(ONE, 1, 1, 1.0)))
    assert d.do(LinkLost(C2)) == []
    assert d.do(LinkLost(C1), at=1.0) == []
    tried: list[tuple[float, str]] = []
    while d.now < 3.2:
        assert d.asker.deadline is not None
        said_now = d.do(Tick(), at=d.asker.deadline)
        while said_now:
            effect = said_now.pop(0)
            assert isinstance(effect, Say)
            tried.append((d.now, effect.to))
            said_now += d.do(LinkLost(C1)) if effect.to == C1 else []
            if effect.to == ME:
                d.do(FromDesk(ME, Queued(ONE, 1, 1, 1.0)))
    assert tried == [(1.5, C1), (2.0, C1), (2.5, C1), (3.0, C1), (3.0, ME), (3.5, C1)]


def test_a_link_that_is_back_is_told_everything_again_ends_included() -> None:
    d = Driven()
    d.do(ask("1"))
    d.do(ask("2"))
    d.do(FromDesk(C1, granted()))
    d.do(Taken(ONE, 1))
    d.do(LinkLost(C1), at=1.0)
    d.do(Done(RequestId("2"), 1, "ok"))
    effects = d.do(LinkBack(C1), at=1.5)
    assert said(effects) == [(C1, Done), (C1, Carrying)]
    assert not d.asker.unreachable


def test_an_end_that_may_be_lost_with_its_link_is_said_again_even_with_nothing_open() -> None:
    d = Driven()
    d.do(ask())
    d.do(Done(ONE, 1, "ok"))
    d.do(LinkLost(C1), at=1.0)
    assert d.asker.deadline == 1.5
    assert said(d.do(Tick(), at=1.5)) == [(C1, Done)]
    assert d.run(60.0)[-1][0] <= 31.0
    assert d.asker.deadline is None


def test_a_grant_for_nobody_gives_its_slot_back() -> None:
    d = Driven()
    assert d.do(FromDesk(C1, granted())) == [Say(C1, Done(ONE, 1, "cancelled"))]
    d.do(ask(attempt=2))
    assert d.do(FromDesk(C1, granted(attempt=1))) == [Say(C1, Done(ONE, 1, "cancelled"))]
    assert d.do(FromDesk(C1, Refused(ONE, 1, Refusal(ErrorCode.NO_NODE_AVAILABLE, "no")))) == []


def test_a_second_grant_of_one_attempt_is_never_carried_out() -> None:
    d = Driven()
    d.do(ask())
    assert d.do(FromDesk(C1, granted("n"))) == [Answer(granted("n"))]
    assert said(d.do(FromDesk(C1, granted("n")))) == [(C1, Taken)]
    [effect] = d.do(FromDesk(C1, granted("m")))
    assert isinstance(effect, Say)
    assert isinstance(effect.frame, Carrying)
    assert effect.frame.node == "n"


def test_a_grant_of_an_old_coordinator_stays_valid_and_the_new_one_hears_of_it() -> None:
    d = Driven()
    d.do(ask())
    d.do(Follow(C2, 2, ruling=False))
    effects = d.do(FromDesk(C1, granted()))
    assert said(effects) == [(C2, Carrying)]
    assert Answer(granted()) in effects
    assert said(d.do(First(ONE, 1))) == [(C2, First)]


def test_a_refusal_of_an_old_coordinator_means_nothing() -> None:
    d = Driven()
    d.do(ask())
    d.do(Follow(C2, 2, ruling=False))
    no = Refused(ONE, 1, Refusal(ErrorCode.NO_NODE_AVAILABLE, "no"))
    assert d.do(FromDesk(C1, no)) == []
    assert d.do(FromDesk(C2, no)) == [Answer(no)]
    assert d.asker.standings() == []


def test_a_deadline_nobody_keeps_is_kept_here() -> None:
    d = Driven()
    d.do(ask(deadline=3.0))
    [(at, effect)] = [(t, e) for t, e in d.run(10.0) if isinstance(e, Answer)]
    assert at == 3.5
    assert isinstance(effect, Answer)
    assert isinstance(effect.frame, Refused)
    assert effect.frame.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert d.asker.deadline is None


def test_an_end_is_remembered_for_a_while_only() -> None:
    d = Driven()
    d.do(ask())
    d.do(CancelAsk(ONE, 1))
    assert d.asker.ended(ONE)
    d.do(ask("2"), at=40.0)
    d.do(Done(RequestId("2"), 1, "ok"))
    assert not d.asker.ended(ONE)


def test_one_edge_has_a_bound() -> None:
    d = Driven()
    d.asker._settings = structs.replace(RouterSettings(), open_limit=1, queue_limit=1)
    d.do(ask())
    [effect] = d.do(ask("2"))
    assert isinstance(effect, Answer)
    assert isinstance(effect.frame, Refused)
    assert effect.frame.error.code is ErrorCode.MESH_SATURATED
