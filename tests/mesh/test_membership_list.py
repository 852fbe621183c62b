"""mesh/membership.py: whom the list holds, for how long, and who finds no place in it."""

from __future__ import annotations

from mesh.events import (
    Added,
    Beat,
    Belong,
    Changed,
    Dial,
    Down,
    Event,
    Forgotten,
    HangUp,
    LinkClosed,
    LinkUp,
    Removed,
    Ruled,
    SaidBye,
    Save,
    Seen,
    Switch,
    Unfit,
)
from mesh.settings import MembershipSettings
from mesh.wire import PROTOCOL
from node.types import NodeId
from router.view import NodeState
from tests.mesh.members import A, B, World, hello, seen


def test_dead_nodes_leave_after_a_week() -> None:
    w = World()
    w.join()
    w.tell(SaidBye(A, "x"), LinkClosed(A, "bye", eof=True))
    w.wait(7 * 86400 - 1)
    assert w.node().state is NodeState.DEAD
    w.wait(2)
    assert w.m.view().node(A) is None
    assert [e for _, e in w.times(Forgotten)] == [Forgotten(A)]


def test_one_that_was_put_out_is_let_go_of_and_neither_dialled_nor_followed_until_it_belongs_again() -> None:
    w = World()
    w.join()
    effects = w.tell(Belong(frozenset({B})))
    assert {type(e) for e in effects} == {Down, HangUp, Forgotten, Changed}
    effects = w.tell(Seen(seen()), Seen(seen(via="gossip")), Beat(A, "b1"))
    assert not any(isinstance(e, Dial) for e in effects)
    assert w.tell(LinkUp(hello(), "10.0.0.2")) == [HangUp(A, "no member of this mesh")]
    assert w.m.shuns(A)
    assert not any(w.m.shuns(NodeId(node)) for node in ("", B, w.m.view().self_id))
    assert not w.node().member
    effects = w.tell(Belong(frozenset({A, B})))
    assert any(isinstance(e, Dial) and e.peer.id == A for e in effects)
    assert w.node().member
    assert not w.m.shuns(A)


def test_one_that_is_not_there_is_forgotten_when_a_person_says_so() -> None:
    w = World()
    w.join()
    w.tell(SaidBye(A, "x"), LinkClosed(A, "bye", eof=True))
    effects = w.tell(Removed(A))
    assert {type(e) for e in effects} == {HangUp, Forgotten, Save, Changed}
    assert w.m.view().node(A) is None
    w.tell(Belong(frozenset({B})), Seen(seen()))
    assert w.m.view().node(A) is not None  # outside, and waiting
    w.tell(Removed(A))
    assert w.m.view().node(A) is None


def test_another_mesh_is_not_shown() -> None:
    w = World()
    w.tell(Seen(seen(mesh="lab")), Unfit(hello(B, mesh="lab"), "other_mesh"))
    assert len(w.m.view().nodes) == 1
    w.tell(Seen(seen()))
    w.tell(Seen(seen(mesh="lab")))  # it moved
    assert len(w.m.view().nodes) == 1


def test_another_protocol_is_incompatible_with_the_reason() -> None:
    w = World()
    effects = w.tell(Seen(seen(protocol=PROTOCOL + 1, version="9.0")))
    assert not any(isinstance(e, Dial) for e in effects)
    assert w.node().state is NodeState.INCOMPATIBLE
    assert (
        w.node().reason
        == f"speaks protocol {PROTOCOL + 1} (version 9.0), this node speaks {PROTOCOL}: update this node"
    )
    effects = w.tell(Seen(seen(protocol=PROTOCOL)))
    assert any(isinstance(e, Dial) for e in effects)
    w.tell(Unfit(hello(B, protocol=PROTOCOL - 1), "other_version"))
    assert "update it" in w.node(B).reason


def test_switching_off_lets_everybody_go() -> None:
    w = World()
    w.join()
    w.tell(Ruled(A, 4, alone=False, url="http://mlx-mesh.local:4000/v1"))
    assert w.m.view().coordinator == A
    effects = w.tell(Switch(enabled=False, mesh_name="default"))
    assert {type(e) for e in effects} == {Down, HangUp, Forgotten, Changed}
    view = w.m.view()
    assert (view.enabled, view.coordinator, view.term, len(view.nodes)) == (False, None, 4, 1)
    assert w.tell(Seen(seen())) == []
    w.tell(Switch(enabled=True, mesh_name="lab"), Seen(seen(mesh="lab")))
    assert w.node().state is NodeState.WAITING


def test_the_list_is_bounded_and_the_oldest_dead_go_first() -> None:
    w = World(peers_max=2)
    w.join(A)
    w.tell(Seen(seen(B)))
    c = NodeId("cc" * 8)
    w.tell(Seen(seen(c)))
    assert w.m.view().node(c) is None
    w.wait(6, beats=(A,))  # B was never reached
    w.tell(Seen(seen(c)))
    assert w.m.view().node(B) is None
    assert w.node(c).state is NodeState.WAITING


def strangers(count: int) -> list[Event]:
    return [Seen(seen(NodeId(f"{n:016x}"), via="gossip")) for n in range(0x100, 0x100 + count)]


def test_ten_thousand_announced_nodes_take_a_bounded_place_and_keep_nobody_out() -> None:
    w = World()
    w.join(A)
    for _ in range(3):
        w.tell(*strangers(10_000))
        w.wait(6.0, beats=(A,))
    bound = MembershipSettings().strangers_max
    assert len(w.m.view().nodes) == 2 + bound
    dialled, hung_up = {e.peer.id for _, e in w.times(Dial)}, {e.node for _, e in w.times(HangUp)}
    assert len(dialled - hung_up) <= bound + 1, "who is let go is dialled no more"
    assert w.node(A).state is NodeState.OK
    w.tell(*strangers(10_000))
    w.join(B)
    assert w.node(B).state is NodeState.OK
    assert {A, B} == {p.id for p in w.m.gossip()} == {p.id for p in w.m.to_keep()}


def test_strangers_of_another_protocol_keep_no_place_from_a_node_of_ours() -> None:
    w = World(strangers_max=4)
    w.tell(*[Seen(seen(NodeId(f"{n:016x}"), protocol=PROTOCOL + 1)) for n in range(100)])
    w.tell(Seen(seen(B)))
    assert w.node(B).state is NodeState.WAITING


def test_one_that_is_linked_displaces_one_that_was_only_announced() -> None:
    w = World(peers_max=4, strangers_max=4)
    w.tell(*strangers(4))
    w.join(B)
    assert w.node(B).state is NodeState.OK
    assert len(w.m.view().nodes) == 5
    for n in range(3):
        w.join(NodeId(f"{n + 1:016x}"))
    effects = w.tell(LinkUp(hello(A), "10.0.0.2"))
    assert HangUp(A, "too many nodes") in effects, "all that are there are real"


def test_a_ghost_leaves_the_list_and_one_added_by_hand_stays() -> None:
    w = World()
    w.tell(Seen(seen(A)), Added(seen(B, via="static")))
    w.wait(6.0)
    assert w.node(A).reason.startswith("never reached")
    w.wait(MembershipSettings().stranger_kept_s)
    assert w.m.view().node(A) is None
    assert w.node(B).state is NodeState.DEAD
