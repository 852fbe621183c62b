"""mesh/membership.py: a list of nodes that is right soon, and says why."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import pytest

from mesh.errors import MeshError
from mesh.events import (
    Added,
    Beat,
    Changed,
    Dial,
    Down,
    Effect,
    Event,
    Forgotten,
    Framed,
    Gone,
    HangUp,
    Known,
    LinkClosed,
    LinkUp,
    Moved,
    Removed,
    Reported,
    Rtt,
    Ruled,
    SaidBye,
    Save,
    Seen,
    SelfChanged,
    Switch,
    Tick,
    Tried,
    Unfit,
    Up,
)
from mesh.membership import Membership
from mesh.names import resolve
from mesh.settings import MembershipSettings
from mesh.wire import PROTOCOL, Hello, PeerSeen
from node.types import NodeId, NodeReport
from router.view import NodeState, NodeView, View

ME, A, B = NodeId("00" * 8), NodeId("aa" * 8), NodeId("bb" * 8)
T = TypeVar("T", bound=Effect)


def report(id_: NodeId = A, boot: str = "b1", name: str = "mini", **more: Any) -> NodeReport:
    return NodeReport(
        id=id_, boot=boot, name=name, version="0.1", protocol=PROTOCOL, priority=100, uptime_s=1.0, **more
    )


def seen(id_: NodeId = A, **more: Any) -> PeerSeen:
    return PeerSeen(**{"id": id_, "name": "mini", "addresses": ("10.0.0.2",), **more})


def hello(id_: NodeId = A, boot: str = "b1", **more: Any) -> Hello:
    base: dict[str, Any] = {"mesh": "default", "mesh_id": "", "version": "0.1", "protocol": PROTOCOL}
    return Hello(**{**base, "id": id_, "boot": boot, "name": "mini", "peer_port": 4001, "port": 4000, **more})


class World:
    """One membership under a virtual clock, woken at its deadlines as the driver does."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.log: list[tuple[float, Effect]] = []
        self.m = Membership(report(ME, name="me"), enabled=True, settings=MembershipSettings(**settings))

    def tell(self, *events: Event) -> list[Effect]:
        effects = [effect for event in events for effect in self.m.step(event, self.now)]
        self.log += [(self.now, e) for e in effects]
        return effects

    def wait(self, seconds: float, *, beats: tuple[NodeId, ...] = (), every: float = 0.1, boot: str = "b1") -> None:
        """Time passes; the nodes in `beats` are heard `every` seconds."""
        end, beat = self.now + seconds, self.now + every
        while True:
            due = self.m.deadline
            self.now = min([end, *([beat] if beats else []), *([due] if due is not None else [])])
            if due is not None and due <= self.now:
                self.tell(Tick())
            if beats and beat <= self.now:
                self.tell(*(Beat(node, boot) for node in beats))
                beat += every
            if self.now >= end:
                return

    def join(self, id_: NodeId = A, boot: str = "b1") -> None:
        self.tell(Seen(seen(id_)), LinkUp(hello(id_, boot), "10.0.0.2"), Reported(report(id_, boot)), Beat(id_, boot))

    def node(self, id_: NodeId = A) -> NodeView:
        node = self.m.view().node(id_)
        assert node is not None
        return node

    def times(self, kind: type[T]) -> list[tuple[float, T]]:
        return [(at, e) for at, e in self.log if isinstance(e, kind)]


def test_found_dialled_linked_up() -> None:
    w = World()
    effects = w.tell(Seen(seen()))
    assert Known(A, last=False) in effects
    assert Dial(seen(), at_once=True) in effects
    assert w.node().state is NodeState.WAITING
    assert w.node().reason == "found by mdns, dialling"
    w.tell(LinkUp(hello(), "10.0.0.9"))
    assert w.times(Up) == []  # nothing is known of its models yet
    effects = w.tell(Reported(report()), Beat(A, "b1"))
    assert Up(A) in effects
    node = w.node()
    assert (node.state, node.reason, node.reachable) == (NodeState.OK, "", True)
    assert node.addresses == ("10.0.0.9", "10.0.0.2")  # what answered comes first
    assert w.m.gossip()[0].id == A


def test_a_cut_node_is_suspect_after_its_patience_and_dead_soon_after() -> None:
    w = World()
    w.join()
    w.wait(2, beats=(A,))
    last = w.now
    w.wait(0.36)
    assert w.node().state is NodeState.SUSPECT
    w.wait(0.2)
    assert w.node().state is NodeState.DEAD
    assert "silent for more than 0.50 s" in w.node().reason
    [(at, down)] = w.times(Down)
    assert at - last == pytest.approx(0.5)
    assert down.node == A
    assert w.times(Gone) == []  # silence is no proof
    w.tell(Beat(A, "b1"))
    assert w.node().state is NodeState.OK
    assert len(w.times(Up)) == 2


def test_patience_grows_with_the_longest_gap_and_forgets_it() -> None:
    w = World(gap_window_s=60.0)
    w.join()
    w.wait(1, beats=(A,))
    w.wait(0.38)  # suspect, not yet dead
    assert w.node().state is NodeState.SUSPECT
    w.wait(1, beats=(A,))
    start = w.now
    w.wait(3)
    [(at, _)] = w.times(Down)
    assert at - start == pytest.approx(1.5 * 0.48 + 0.1 + 0.15, abs=0.03)
    w.tell(Beat(A, "b1"))  # after three seconds of silence the cap holds
    w.wait(1, beats=(A,))
    start = w.now
    w.wait(3)
    assert w.times(Down)[1][0] - start == pytest.approx(1.65, abs=0.01)
    w.tell(Beat(A, "b1"))
    w.wait(70, beats=(A,))
    start = w.now
    w.wait(3)
    assert w.times(Down)[2][0] - start == pytest.approx(0.5, abs=0.01)


def test_a_stall_of_ours_is_nobody_elses_fault() -> None:
    w = World()
    w.join()
    w.wait(1, beats=(A,))
    w.now += 5.0  # the process slept; its timer fires late and first
    w.tell(Tick())
    assert w.node().state is NodeState.OK
    w.tell(Beat(A, "b1"))
    w.wait(0.51)  # and the gap was not learned either
    assert w.node().state is NodeState.DEAD


def test_eof_then_refused_is_gone_at_once() -> None:
    w = World()
    w.join()
    effects = w.tell(LinkClosed(A, "connection reset", eof=True))
    assert Dial(w.m.to_keep()[0], at_once=True) in effects
    assert w.node().state is NodeState.SUSPECT
    assert w.times(Down) == []
    effects = w.tell(Tried(A, "10.0.0.2", "refused", "connection refused", last_good=True))
    assert {type(e) for e in effects} >= {Gone, Down, Changed}
    assert w.node().state is NodeState.DEAD
    assert "nothing listens at 10.0.0.2" in w.node().reason


@pytest.mark.parametrize(
    "tried",
    [
        Tried(A, "10.0.0.2", "timeout", "timed out", last_good=True),
        Tried(A, "10.0.0.3", "refused", "refused", last_good=False),
        Tried(A, "10.0.0.2", "unreachable", "no route to host", last_good=True),
    ],
)
def test_other_failures_leave_it_to_the_heartbeats(tried: Tried) -> None:
    w = World()
    w.join()
    w.tell(LinkClosed(A, "end of stream", eof=True), tried)
    w.wait(1, beats=(A,))
    assert w.node().state is NodeState.SUSPECT
    assert tried.why in w.node().reason
    assert w.times(Gone) == []
    assert w.times(Down) == []
    w.wait(5, beats=(A,))  # heard, but it cannot be given work
    assert len(w.times(Down)) == 1
    assert not w.node().reachable
    w.tell(LinkUp(hello(), "10.0.0.2"))
    assert w.node().state is NodeState.OK
    assert len(w.times(Up)) == 2


def test_a_peer_that_is_heard_without_a_link_is_dialled_at_once_but_not_always() -> None:
    w = World()
    w.tell(Seen(seen()))
    w.wait(3.05, beats=(A,))
    assert 3 <= len(w.times(Dial)) - 1 <= 4


def test_bye_is_dead_at_once_and_late_datagrams_do_not_raise_it() -> None:
    w = World()
    w.join()
    effects = w.tell(SaidBye(A, "shutting down"), LinkClosed(A, "bye", eof=True))
    assert {type(e) for e in effects} >= {Gone, Down}
    assert not any(isinstance(e, Dial) for e in effects)
    w.tell(Beat(A, "b1"))
    assert (w.node().state, w.node().reason) == (NodeState.DEAD, "left: shutting down")
    w.tell(Beat(A, "b2"))
    assert w.node().state is NodeState.SUSPECT
    w.tell(LinkUp(hello(boot="b2"), "10.0.0.2"), Reported(report(boot="b2")))
    assert w.node().state is NodeState.OK


def test_a_restarted_peer_replaces_the_old_one() -> None:
    w = World()
    w.join()
    w.tell(Beat(A, "zz"))  # late or early, but the link is up: it knows better
    assert w.node().state is NodeState.OK
    w.tell(LinkClosed(A, "end of stream", eof=True))
    effects = w.tell(LinkUp(hello(boot="b2"), "10.0.0.2"))
    assert Down(A, "restarted") in effects
    w.tell(Reported(report(boot="b1", name="ghost")))  # of the process before
    assert w.node().report.name == "mini"
    effects = w.tell(Reported(report(boot="b2")))
    assert Up(A) in effects
    assert len([n for n in w.m.view().nodes if n.report.id == A]) == 1


def test_blocked_datagrams_are_named_and_the_link_decides() -> None:
    w = World()
    w.tell(Seen(seen()), LinkUp(hello(), "10.0.0.2"), Reported(report()))
    for _ in range(10):
        w.wait(1.0)
        w.tell(Framed(A))
    assert w.node().state is NodeState.OK
    assert "UDP port 4001" in w.node().reason
    w.wait(2)
    assert w.node().state is NodeState.DEAD


def test_what_is_never_reached_is_waiting_and_then_dead() -> None:
    w = World()
    w.tell(Seen(seen()), Tried(A, "10.0.0.2", "timeout", "10.0.0.2:4001 timed out", last_good=False))
    assert w.node().reason == "found by mdns, 10.0.0.2:4001 timed out"
    w.wait(5)
    assert w.node().state is NodeState.DEAD
    assert w.node().reason == "never reached: 10.0.0.2:4001 timed out"
    assert w.m.to_keep() == ()
    w.tell(Seen(seen(boot="b7")))  # started again: a new chance
    assert w.node().state is NodeState.WAITING


def test_mdns_never_decides_who_is_alive() -> None:
    w = World()
    w.join()
    w.tell(Seen(seen(boot="other", protocol=PROTOCOL + 1, name="stale", peer_port=9)))
    node = w.node()
    assert (node.state, node.report.name, w.m.to_keep()[0].peer_port) == (NodeState.OK, "mini", 4001)


def test_dead_nodes_leave_after_a_week() -> None:
    w = World()
    w.join()
    w.tell(SaidBye(A, "x"), LinkClosed(A, "bye", eof=True))
    w.wait(7 * 86400 - 1)
    assert w.node().state is NodeState.DEAD
    w.wait(2)
    assert w.m.view().node(A) is None
    assert [e for _, e in w.times(Forgotten)] == [Forgotten(A)]


def test_removed_stays_removed_until_added() -> None:
    w = World()
    w.join()
    effects = w.tell(Removed(A))
    assert {type(e) for e in effects} == {Down, HangUp, Forgotten, Save, Changed}
    w.tell(Seen(seen()), Seen(seen(via="gossip")), Beat(A, "b1"))
    assert w.tell(LinkUp(hello(), "10.0.0.2")) == [HangUp(A, "removed from the mesh")]
    assert w.m.view().node(A) is None
    assert w.m.removed == {A}
    effects = w.tell(Added(seen(via="static")))
    assert Dial(seen(via="static"), at_once=True) in effects
    assert w.m.removed == set()
    assert w.node().via == "static"


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


def test_addresses_merge_and_stay_bounded() -> None:
    w = World()
    w.join()
    effects = w.tell(Seen(seen(addresses=tuple(f"10.0.1.{i}" for i in range(40)))))
    [dial] = [e for e in effects if isinstance(e, Dial)]
    assert dial.peer.addresses[:2] == ("10.0.0.2", "10.0.1.0")
    assert len(dial.peer.addresses) == 16
    assert not any(isinstance(e, Dial) for e in w.tell(Seen(dial.peer)))  # nothing new: nothing said


def test_draining_shows_and_stays_up() -> None:
    w = World()
    w.join()
    w.tell(Reported(report(draining=True, drain_reason="by hand")))
    assert (w.node().state, w.node().reason) == (NodeState.DRAINING, "by hand")
    assert w.times(Down) == []
    w.tell(SelfChanged(report(ME, name="me", draining=True, drain_reason="battery")))
    assert (w.node(ME).state, w.node(ME).reason) == (NodeState.DRAINING, "battery")


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


def test_rtt_and_the_view_is_the_same_object_until_something_changes() -> None:
    w = World()
    w.join()
    before = w.m.view()
    assert w.m.view() is before
    w.tell(Beat(A, "b1"))
    assert w.m.view() is before
    w.tell(Rtt(A, 0.002))
    assert w.node().rtt_s == 0.002


def view_of(*named: tuple[NodeId, str]) -> View:
    return View(self_id=named[0][0], nodes=tuple(NodeView(report=report(i, name=n)) for i, n in named))


def test_equal_names_show_part_of_the_id() -> None:
    twins = view_of((A, "mini"), (B, "Mini"), (ME, "studio"))
    assert twins.names() == {A: "mini~aaaa", B: "Mini~bbbb", ME: "studio"}
    close = NodeId("aaaaaa00" * 2)
    assert view_of((A, "mini"), (close, "mini")).names() == {A: "mini~aaaaaaa", close: "mini~aaaaaa0"}


@pytest.mark.parametrize("text", ["mini~aaaa", "MINI~AAAA", A, "aaaa", "mini~aaaaaa", " mini~aaaa "])
def test_a_node_is_found_by_name_or_id(text: str) -> None:
    assert resolve(view_of((A, "mini"), (B, "mini"), (ME, "studio")), text) == A


def test_unclear_names_are_answered_with_the_candidates() -> None:
    view = view_of((A, "mini"), (B, "mini"), (ME, "studio"))
    assert resolve(view, "Studio") == resolve(view, "studio~0000") == ME
    with pytest.raises(MeshError, match="mini~aaaa, mini~bbbb") as caught:
        resolve(view, "mini")
    assert caught.value.code == "ambiguous_node"
    with pytest.raises(MeshError, match="there is: mini~aaaa, mini~bbbb, studio") as caught:
        resolve(view, "max")
    assert caught.value.code == "unknown_node"


def test_a_view_can_be_sent() -> None:
    w = World()
    w.join()
    assert msgspec.json.decode(msgspec.json.encode(w.m.view()), type=View) == w.m.view()


def test_a_new_life_has_no_link_yet_though_its_former_ones_is_still_being_closed() -> None:
    w = World()
    w.join()
    w.tell(SaidBye(A, "down"), Seen(seen(boot="b2")))
    w.wait(6)
    assert w.node().state is NodeState.DEAD
    assert w.node().reason.startswith("never reached")


def test_late_news_of_a_former_life_end_no_link_to_the_present_one() -> None:
    w = World()
    w.join()
    w.wait(3)
    assert w.node().state is NodeState.DEAD, "silent, and its link is not closed yet"
    w.tell(Seen(seen(boot="b0", via="gossip")))
    w.tell(Beat(A, "b1"), Reported(report()))
    assert w.node().state is NodeState.OK


# Where a peer is


def far(id_: NodeId = A, **more: Any) -> PeerSeen:
    return seen(id_, addresses=("10.9.0.2",), far=True, **more)


def test_the_added_side_ranks_last_and_a_far_peer_nobody_added_does_not() -> None:
    w = World()
    assert Known(A, last=True) in w.tell(Added(far(A, via="static", added=True)))
    assert Known(B, last=False) in w.tell(Seen(far(B, via="gossip")))
    assert w.m.ranks_last(A)
    assert w.tell(Seen(far(B, via="gossip", added=True)))[0] == Moved(B, last=True)  # whose `mesh add` we heard of
    assert Moved not in {type(e) for e in w.tell(Seen(far(B, via="gossip")))}


def test_a_far_peer_that_turns_up_on_this_network_is_near_at_once() -> None:
    w = World()
    w.tell(Added(far(via="tailscale", added=True)), LinkUp(hello(), "10.9.0.2", far=True))
    assert w.node().far
    assert Moved(A, last=False) in w.tell(Seen(seen()))
    assert not w.node().far
    assert w.tell(Seen(far(via="gossip", added=True))) == []  # what others say of where it is counts no more


def test_a_near_peer_that_is_reached_over_a_far_address_only_has_moved_away() -> None:
    w = World()
    w.tell(Added(seen(added=True)), LinkUp(hello(), "10.0.0.2"))
    assert not w.node().far
    w.tell(LinkClosed(A, "gone", eof=False))
    assert Moved(A, last=True) in w.tell(LinkUp(hello(), "100.64.0.2", far=True))
    assert w.node().far
    w.tell(LinkClosed(A, "gone", eof=False))
    assert Moved(A, last=False) in w.tell(LinkUp(hello(), "10.0.0.2"))


def test_a_peer_that_mdns_has_seen_is_near_also_beyond_a_router() -> None:
    w = World()
    w.tell(Seen(seen()), LinkUp(hello(), "192.168.7.2", far=True))
    assert not w.node().far


def test_what_gossip_says_of_a_peer_reached_over_the_tunnel_does_not_bring_it_near() -> None:
    w = World()
    w.tell(Added(far(via="static", added=True)), LinkUp(hello(), "100.64.0.2", far=True))
    w.tell(Seen(seen(via="gossip", addresses=("192.168.1.7",))))  # both sites number their networks alike
    assert w.node().far


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
