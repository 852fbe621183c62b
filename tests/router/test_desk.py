"""The desk: idempotent frames, late frames, silence of edges and nodes, and the change of who rules."""

from __future__ import annotations

import random

from msgspec import structs

from node.types import NodeId, NodeStatus, RequestId, RunningReport, Usage
from router.desk import Desk, DeskEvent, EdgeLost, FromEdge, Reported, Rule
from router.errors import ErrorCode
from router.events import NodeChanged, NodeDown, NodeUp, Outcome, Request, Tick
from router.frames import Ask, CancelAsk, Carrying, Done, EdgeFrame, First, Granted, Queued, Refused, Say, Taken
from router.settings import RouterSettings
from tests.router.fleets import serving

ME, A, B, E1, E2 = (NodeId(n) for n in ("me", "a", "b", "e1", "e2"))


def ask(
    name: str, attempt: int = 1, age_s: float = 0.0, last: Outcome | None = None, *, not_on: tuple[NodeId, ...] = ()
) -> Ask:
    request = Request(
        id=RequestId(name), models=("qwen",), prompt_tokens=100, max_tokens=50, deadline=100.0, excluded=not_on
    )
    return Ask(request, attempt, age_s, last)


def carrying(name: str, node: NodeId, attempt: int = 1) -> Carrying:
    return Carrying(ask(name).request, attempt, node, "qwen", 1.0, first_token=True)


class Driven:
    """A desk with a clock of its own; says what was said to an edge, in short."""

    def __init__(self, *statuses: NodeStatus, ruling: bool = True) -> None:
        self.desk, self.now = Desk(ME, RouterSettings(), random.Random(1)), 0.0
        self.do(Rule(ruling))
        for each in statuses:
            self.do(NodeUp(each))

    def do(self, event: DeskEvent) -> list[Say]:
        return self.desk.step(event, self.now)

    def hear(self, frame: EdgeFrame, sender: NodeId = E1) -> list[Say]:
        return self.do(FromEdge(sender, frame))

    def run(self, seconds: float) -> list[Say]:
        """Ticks at every deadline within `seconds`."""
        end, said = self.now + seconds, []
        while self.desk.deadline is not None and self.desk.deadline <= end:
            self.now = max(self.now + 1e-6, self.desk.deadline)
            said += self.do(Tick())
        self.now = end
        return said

    def flights(self) -> dict[tuple[NodeId, str], int]:
        return self.desk.scheduler.in_flight()


def grants(said: list[Say]) -> list[tuple[str, str, int, str]]:
    return [(s.to, s.frame.id, s.frame.attempt, s.frame.node) for s in said if isinstance(s.frame, Granted)]


def test_an_ask_is_granted_or_hears_its_place_soon() -> None:
    d = Driven(serving(A, 1))
    assert grants(d.hear(ask("1"))) == [(E1, "1", 1, A)]
    assert d.hear(ask("2"), E2) == []
    [said] = d.run(0.15)
    assert said.to == E2
    assert isinstance(said.frame, Queued)
    assert (said.frame.position, said.frame.attempt) == (1, 1)
    assert said.frame.wait_s > 0


def test_asking_twice_changes_nothing_and_is_answered_again() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    assert grants(d.hear(ask("1"))) == [(E1, "1", 1, A)]
    d.hear(Taken(RequestId("1"), 1))
    assert d.hear(ask("1")) == []
    d.hear(ask("2"))
    d.hear(ask("3"))
    [again] = d.hear(ask("2"))
    assert isinstance(again.frame, Queued)
    assert again.frame.position == 1
    assert d.flights() == {(A, "qwen"): 1}


def test_an_older_request_keeps_its_place_at_a_new_coordinator() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.hear(ask("young", age_s=1.0))
    d.hear(ask("old", age_s=9.0))
    [said] = [s for s in d.run(0.15) if isinstance(s.frame, Queued) and s.frame.id == "old"]
    assert isinstance(said.frame, Queued)
    assert said.frame.position == 1
    assert [s[1] for s in grants(d.hear(Done(RequestId("1"), 1, "ok")))] == ["old"]


def test_places_are_told_when_they_change_but_not_too_often() -> None:
    d = Driven(serving(A, 1))
    for name in ("1", "2", "3"):
        d.hear(ask(name))
    d.hear(Taken(RequestId("1"), 1))
    places = [s.frame for s in d.run(0.2) if isinstance(s.frame, Queued)]
    assert [(q.id, q.position) for q in places] == [("2", 1), ("3", 2)]
    said = d.hear(Done(RequestId("1"), 1, "ok"))
    assert grants(said) == [(E1, "2", 1, A)]
    assert not [s for s in said if isinstance(s.frame, Queued)]
    d.hear(Taken(RequestId("2"), 1))
    places = [s.frame for s in d.run(1.5) if isinstance(s.frame, Queued)]
    assert [(q.id, q.position) for q in places] == [("3", 1)]
    d.now += 0.01
    assert d.run(0.5) == []


def test_a_grant_not_taken_in_time_is_withdrawn_and_planned_again() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.now = 0.2
    d.hear(ask("2", age_s=5.0), E2)
    said = d.run(1.3)
    assert grants(said) == [(E2, "2", 1, A)]  # the older one was next in line
    assert d.flights() == {(A, "qwen"): 1}
    d.hear(Taken(RequestId("2"), 1), E2)
    assert grants(d.run(3.0)) == []


def test_a_grant_taken_just_too_late_is_taken_all_the_same() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.now = 0.5
    d.hear(ask("2", age_s=5.0), E2)
    d.run(0.9)
    d.hear(Taken(RequestId("2"), 1), E2)
    d.hear(Taken(RequestId("1"), 1))
    assert d.flights() == {(A, "qwen"): 2}  # one too many for a moment, but true
    assert d.desk.scheduler.waiting() == []


def test_the_next_attempt_ends_the_one_before_in_one_step() -> None:
    d = Driven(serving(A, 1), serving(B, 1))
    d.hear(ask("1"))
    d.hear(Taken(RequestId("1"), 1))
    assert grants(d.hear(ask("1", 2, last="failed", not_on=(A,)))) == [(E1, "1", 2, B)]
    assert d.flights() == {(B, "qwen"): 1}


def test_late_frames_of_an_attempt_that_is_over_are_ignored() -> None:
    d = Driven(serving(A, 1), serving(B, 1))
    d.hear(ask("1"))
    d.hear(ask("1", 2, last="failed", not_on=(A,)))
    late: list[EdgeFrame] = [ask("1", 1), Taken(RequestId("1"), 1), First(RequestId("1"), 1)]
    late += [Done(RequestId("1"), 1, "ok"), CancelAsk(RequestId("1"), 1), carrying("1", A)]
    for frame in late:
        assert d.hear(frame) == []
    assert d.flights() == {(B, "qwen"): 1}
    d.hear(Done(RequestId("1"), 2, "ok"))
    assert d.hear(ask("1", 2)) == []
    assert d.hear(carrying("1", B, 2)) == []
    assert d.flights() == {}


def test_what_runs_already_is_counted_wherever_it_was_granted() -> None:
    d = Driven(serving(A, 1), serving(B, 1))
    d.hear(carrying("1", A))
    assert d.flights() == {(A, "qwen"): 1}
    d.hear(ask("2"))
    d.hear(carrying("2", B))
    d.hear(carrying("2", B))
    assert d.flights() == {(A, "qwen"): 1, (B, "qwen"): 1}
    d.hear(carrying("2", A))  # the edge knows where it runs
    assert d.flights() == {(A, "qwen"): 2}
    d.hear(Done(RequestId("1"), 1, "ok"))
    d.hear(Done(RequestId("2"), 1, "ok"))
    assert d.flights() == {}


def test_only_the_one_that_rules_answers_and_its_own_edge_always_gets_an_answer() -> None:
    d = Driven(serving(A, 1), ruling=False)
    assert d.hear(ask("1"), E1) == []
    assert grants(d.hear(ask("2"), ME)) == [(ME, "2", 1, A)]


def test_who_stops_ruling_forgets_everything() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.hear(ask("2"))
    d.do(Rule(ruling=False))
    assert d.flights() == {}
    assert list(d.desk.open()) == []
    d.do(Rule(ruling=True))
    assert grants(d.hear(ask("2"))) == [(E1, "2", 1, A)]


def test_a_lost_link_takes_its_requests_out_of_the_queue_until_they_are_asked_again() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.hear(Taken(RequestId("1"), 1))
    d.hear(ask("2"))
    d.hear(ask("3"), E2)
    d.do(EdgeLost(E1))
    assert grants(d.hear(Done(RequestId("1"), 1, "ok"))) == [(E2, "3", 1, A)]
    d.hear(Taken(RequestId("3"), 1), E2)
    d.now += 1.0
    [said] = d.hear(ask("2", age_s=1.0))
    assert isinstance(said.frame, Queued)
    assert len(list(d.desk.open())) == 2


def test_an_edge_that_stays_away_is_forgotten() -> None:
    d = Driven(serving(A, 2))
    d.hear(ask("1"))
    d.hear(Taken(RequestId("1"), 1))
    d.hear(ask("2"))
    d.do(EdgeLost(E1))
    assert d.flights() == {(A, "qwen"): 1}  # the grant not taken is withdrawn at once, what runs may go on
    d.run(11.0)
    assert d.flights() == {}
    assert list(d.desk.open()) == []
    assert d.desk.deadline is None


def test_a_node_that_goes_down_frees_its_slots_and_comes_back_with_what_it_runs() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.hear(Taken(RequestId("1"), 1))
    d.do(NodeDown(A))
    assert d.flights() == {}
    d.do(NodeUp(serving(A, 1)))
    assert d.flights() == {(A, "qwen"): 1}
    d.do(NodeDown(A))
    d.do(NodeUp(serving(B, 1)))
    assert grants(d.hear(ask("1", 2, last="failed", not_on=(A,)))) == [(E1, "1", 2, B)]


def test_a_grant_on_a_node_that_goes_down_before_it_is_taken_is_planned_again() -> None:
    d = Driven(serving(A, 1), serving(B, 1))
    assert grants(d.hear(ask("1"))) == [(E1, "1", 1, A)]
    assert grants(d.do(NodeDown(A))) == [(E1, "1", 1, B)]


def test_what_a_node_reports_beside_our_grants_takes_slots_too() -> None:
    d = Driven(serving(A, 1))
    other = RunningReport(RequestId("x"), 1, "qwen", started=True, age_s=1.0)
    d.do(Reported(A, (other,)))
    assert d.hear(ask("1")) == []
    assert grants(d.do(Reported(A, ()))) == [(E1, "1", 1, A)]
    mine = RunningReport(RequestId("1"), 1, "qwen", started=True, age_s=0.0)
    d.hear(Taken(RequestId("1"), 1))
    d.do(Reported(A, (mine,)))
    d.hear(ask("2"))
    # Its end is known here before the node's next report: the old report must not block the slot.
    assert grants(d.hear(Done(RequestId("1"), 1, "ok", Usage(1, 0, 1)))) == [(E1, "2", 1, A)]


def test_a_request_its_node_does_not_report_for_long_does_not_run() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.hear(Taken(RequestId("1"), 1))
    d.now = 4.0
    d.do(Reported(A, ()))
    assert d.flights() == {(A, "qwen"): 1}
    d.now = 5.5
    d.do(Reported(A, ()))
    assert d.flights() == {}
    d.hear(carrying("1", A))  # its edge knows better: it is counted again
    assert d.flights() == {(A, "qwen"): 1}


def test_the_whole_desk_has_a_bound() -> None:
    d = Driven(serving(A, 1))
    d.desk._settings = structs.replace(RouterSettings(), open_limit=2, queue_limit=2)
    for name in ("1", "2"):
        d.hear(ask(name))
    [said] = d.hear(ask("3"))
    assert isinstance(said.frame, Refused)
    assert said.frame.error.code is ErrorCode.MESH_SATURATED


def test_a_changed_node_reaches_the_queue() -> None:
    d = Driven(serving(A, 1))
    d.hear(ask("1"))
    d.hear(Taken(RequestId("1"), 1))
    d.hear(First(RequestId("1"), 1, 0))
    d.hear(ask("2"))
    assert grants(d.do(NodeChanged(serving(A, 2)))) == [(E1, "2", 1, A)]
