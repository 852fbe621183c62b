"""mesh/joining.py, one node: whom it asks, when it waits, and what makes it ask again."""

from __future__ import annotations

from random import Random
from typing import Any

from mesh.join_settings import JoinSettings
from mesh.joining import Ask, Call, Event, Home, Hurry, Joining, Settle, Sight, Stay, Tick
from node.types import NodeId

MINE, LOWER, HIGHER = "8" * 16, "1" * 16, "f" * 16
A, B = NodeId("a" * 16), NodeId("b" * 16)


class Node:
    def __init__(self, *, settled: bool = False, **home: Any) -> None:
        self.now = 100.0
        self.home = Home(mesh=MINE, **home)
        self.machine = Joining(self.home, Random(1), self.now, settled=settled)

    def tell(self, event: Event) -> list[str]:
        """Whom it asks; "settles"."""
        found = self.machine.step(event, self.now)
        return [e.sight.node if isinstance(e, Ask) else "settles" for e in found if isinstance(e, Ask | Settle)]

    def later(self, seconds: float) -> list[str]:
        end, said = self.now + seconds, list[str]()
        while (due := self.machine.deadline) is not None and due <= end:
            self.now = max(self.now, due)
            said += self.tell(Tick())
        self.now = end
        return said


def sight(node: NodeId = A, mesh: str = LOWER, stance: Any = "open", **more: Any) -> Sight:
    return Sight(node=node, name=node, mesh=mesh, stance=stance, **more)


def test_a_founding_that_sees_nobody_settles_after_three_seconds() -> None:
    node = Node()
    assert node.machine.stance == "looking"
    assert node.later(2.9) == []
    assert node.later(0.2) == ["settles"]
    assert node.machine.stance == "open"
    assert node.machine.deadline is None, "nothing is left to wake for"


def test_it_joins_what_is_settled_whatever_the_id_and_of_the_unsettled_the_lower() -> None:
    assert Node().tell(sight(mesh=HIGHER)) == [A]
    higher, lower = Node(), Node()
    assert higher.tell(sight(mesh=HIGHER, stance="looking")) == higher.later(1.0) == []
    assert lower.tell(sight(mesh=LOWER, stance="looking")) == [], "a settled one may be heard in the first second"
    assert lower.later(1.0) == [A]


def test_it_waits_a_moment_for_a_settled_one_before_it_joins_one_as_new_as_itself() -> None:
    node = Node()
    assert node.tell(sight(mesh=LOWER, stance="looking")) == []
    assert node.tell(sight(B, mesh=HIGHER)) == [B]


def test_of_two_settled_ones_the_higher_goes_to_the_lower_but_never_one_that_is_kept_or_closed() -> None:
    assert Node(settled=True, others=2).tell(sight()) == [A]
    assert Node(settled=True, others=2).tell(sight(mesh=HIGHER)) == []
    assert Node(settled=True, others=2).tell(sight(mesh=HIGHER, stance="kept")) == [A]
    assert Node(settled=True, others=2, kept=True).tell(sight()) == []
    assert Node(settled=True, others=2, open=False).tell(sight()) == []


def test_what_is_far_is_left_alone_unless_a_person_has_named_it() -> None:
    assert Node().tell(sight(may=False)) == []
    assert Node(settled=True, open=False).tell(sight(mesh=HIGHER, stance="closed", by_hand=True)) == [A]
    assert Node(settled=True, others=1).tell(sight(mesh=HIGHER, by_hand=True)) == [], "it is not alone to decide"


def test_before_a_closed_mesh_it_waits_and_does_not_begin_another_beside_it() -> None:
    node = Node()
    assert node.tell(sight(stance="closed")) == [A]
    assert node.tell(Call(A, "waiting", revealed=True)) == []
    assert node.machine.stance == "out"
    asked = node.later(120.0)
    assert set(asked) == {A}
    assert 3 <= len(asked) <= 8


def test_who_is_accepted_is_told_so_and_asks_at_once_but_not_for_every_hint() -> None:
    node = Node()
    node.tell(sight(stance="closed"))
    node.tell(Call(A, "waiting", revealed=True))
    asked = 0
    for _ in range(100):
        node.tell(Hurry(A))
        if A in node.later(1.0):
            asked += 1
            node.tell(Call(A, "waiting", revealed=True))
    assert JoinSettings().hurries_max <= asked <= JoinSettings().hurries_max + 5


def test_a_person_may_want_a_mesh_of_this_nodes_own_beside_the_closed_one() -> None:
    node = Node()
    node.tell(sight(stance="closed"))
    node.tell(Call(A, "waiting", revealed=True))
    node.tell(Stay())
    assert node.machine.stance == "open"
    assert node.later(300.0) == []


def test_a_mesh_that_answers_no_more_is_not_waited_for_for_ever() -> None:
    node = Node()
    node.tell(sight(stance="closed"))
    node.tell(Call(A, "waiting", revealed=True))
    for _ in range(20):
        if A in node.later(20.0):
            node.tell(Call(A, "failed"))
        if node.machine.stance == "open":
            return
    raise AssertionError("it still waits")


def test_tries_to_meet_a_number_are_few_however_many_meshes_somebody_announces() -> None:
    """Each mesh id is a new one to ask; each call tells a nonce and fails then."""
    node, asked = Node(), 0
    for i in range(1800):
        for who in node.tell(sight(NodeId(f"{i:016x}"), f"{i:016x}", "kept")) + node.later(1.0):
            if who != "settles":
                asked += 1
                node.tell(Call(NodeId(who), "failed", revealed=True))
    assert asked < 50


def test_one_that_does_not_answer_keeps_nobody_from_the_others() -> None:
    node = Node()
    assert node.tell(sight(A, LOWER)) == [A]
    assert node.tell(sight(B, HIGHER)) == []
    assert B in node.tell(Call(A, "failed")) + node.later(1.0)


def test_who_was_removed_asks_its_own_mesh_and_no_other() -> None:
    node = Node(settled=True, removed=True)
    assert node.tell(sight(B, LOWER)) == []
    assert node.tell(sight(A, MINE)) == [A]
    assert node.machine.stance == "out"
