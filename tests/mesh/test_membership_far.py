"""mesh/membership.py: who is at another site, and ranks last."""

from __future__ import annotations

from typing import Any

from mesh.events import Added, Known, LinkClosed, LinkUp, Moved, Seen
from mesh.wire import PeerSeen
from node.types import NodeId
from tests.mesh.members import A, B, World, hello, seen


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
