"""Nodes that are no members, as membership has them: shown with what to do, given nothing, taken up when let in."""

from __future__ import annotations

from mesh.events import Belong, Changed, Dial, Down, HangUp, Known, LinkUp, Outsiders, Seen, Tick
from mesh.member import PROTOCOL
from mesh.settings import MembershipSettings
from node.types import NodeId
from router.view import NodeState
from tests.mesh.members import A, B, World, hello, seen


def guarded(*members: NodeId) -> World:
    w = World()
    w.tell(Belong(frozenset(members)))
    return w


def test_a_node_that_is_no_member_is_shown_with_what_to_do_and_given_nothing() -> None:
    w = guarded()
    assert w.tell(Seen(seen(A))) == [Changed()]
    w.tell(Outsiders({A: "asks to be let in: `mlx-stack mesh accept a`"}))
    found = w.m.view().node(A)
    assert found is not None
    assert (found.state, found.member, found.reachable) == (NodeState.WAITING, False, False)
    assert found.reason == "asks to be let in: `mlx-stack mesh accept a`"
    assert w.m.gossip() == ()
    assert w.m.alive() == frozenset()


def test_who_is_let_in_is_dialled_where_it_was_seen() -> None:
    w = guarded()
    w.tell(Seen(seen(A)))
    effects = w.tell(Belong(frozenset({A})))
    assert {type(e) for e in effects} == {Known, Dial, Changed}
    found = w.m.view().node(A)
    assert found is not None
    assert found.member


def test_who_is_put_out_is_let_go_of_at_once() -> None:
    w = guarded(A)
    w.join(A)
    effects = w.tell(Belong(frozenset()))
    assert Down(A, "no member of this mesh") in effects
    assert HangUp(A, "no member of this mesh") in effects
    assert w.m.view().node(A) is None
    assert HangUp(A, "no member of this mesh") in w.tell(LinkUp(hello(A), "10.0.0.2"))


def test_of_whom_nothing_is_to_be_said_nothing_is_shown() -> None:
    w = guarded()
    w.tell(Seen(seen(A)))
    w.tell(Outsiders({}, frozenset({A})))
    assert w.m.view().node(A) is None


def test_one_of_another_protocol_is_shown_as_incompatible() -> None:
    w = guarded()
    w.tell(Seen(seen(A, protocol=PROTOCOL - 1)))
    found = w.m.view().node(A)
    assert found is not None
    assert found.state is NodeState.INCOMPATIBLE


def test_strangers_are_bounded_and_forgotten_but_not_those_who_wait() -> None:
    s, w = MembershipSettings(), guarded()
    w.tell(Outsiders({A: "waits"}))
    w.tell(Seen(seen(A)))
    for i in range(s.strangers_max + 5):
        w.tell(Seen(seen(NodeId(f"{i:016x}"))))
    nodes = {n.report.id for n in w.m.view().nodes}
    assert A in nodes
    assert len(nodes) == s.strangers_max + 1
    w.now += s.stranger_kept_s + 1
    w.tell(Tick())
    assert {n.report.id for n in w.m.view().nodes if not n.member} == {A}
    assert B not in nodes
