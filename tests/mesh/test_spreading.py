"""Records of who belongs reach everybody by links alone, those that were away too, and then there is silence."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import MeshError
from mesh.records import Record
from mesh.spreading import Spreading
from mesh.trust import Change, Trust
from mesh.wire import Frame, Roster, decode, encode
from node.types import NodeId
from tests.mesh.trusting import admission, founder, identity, join, mesh_of, removal, trust

randoms = st.randoms(use_true_random=False)


class Net:
    """Links between nodes, each with frames under way; a link lives while both sides hold the other for a member."""

    def __init__(self, nodes: list[Trust]) -> None:
        self.nodes = {node.identity.id: node for node in nodes}
        self.links: set[frozenset[NodeId]] = set()
        self.under_way: dict[tuple[NodeId, NodeId], deque[bytes]] = {}
        self.frames = 0
        self.spread = {id_: self._spreading(id_) for id_ in self.nodes}
        for id_ in self.nodes:
            self.nodes[id_].watch(partial(self._changed, id_))

    def _spreading(self, me: NodeId) -> Spreading:
        return Spreading(
            self.nodes[me], send=lambda to, frame: self._send(me, to, frame), linked=lambda: self.linked(me)
        )

    def linked(self, me: NodeId) -> list[NodeId]:
        return sorted(other for link in self.links if me in link for other in link - {me})

    def _send(self, me: NodeId, to: NodeId, frame: Frame) -> bool:
        if frozenset({me, to}) not in self.links:
            return False
        self.frames += 1
        self.under_way.setdefault((me, to), deque()).append(encode(frame))
        return True

    def _changed(self, me: NodeId, change: Change) -> None:
        self.spread[me].changed(change)
        for gone in change.gone:
            self.part(me, gone, flush=True)

    def link(self, one: NodeId, other: NodeId) -> None:
        both = frozenset({one, other})
        if len(both) < 2 or both in self.links:
            return
        if other not in self.nodes[one].members or one not in self.nodes[other].members:
            return  # TLS says no
        self.links.add(both)
        self.spread[one].met(other)
        self.spread[other].met(one)

    def part(self, one: NodeId, other: NodeId, *, flush: bool = False) -> None:
        """Ends the link; with `flush` what was said on it still arrives, as before a bye."""
        if (both := frozenset({one, other})) not in self.links:
            return
        self.links.discard(both)
        if not flush:
            self.under_way.pop((one, other), None)
        self.under_way.pop((other, one), None)
        self.spread[one].lost(other)
        self.spread[other].lost(one)

    def deliver(self, random: Random | None = None) -> bool:
        """One frame. False: nothing is under way."""
        ways = sorted(way for way, frames in self.under_way.items() if frames)
        if not ways:
            return False
        way = random.choice(ways) if random else ways[0]
        frame = decode(self.under_way[way].popleft())
        assert isinstance(frame, Roster)
        self.spread[way[1]].take(way[0], frame.records)
        return True

    def gossip(self) -> None:
        for me, node in self.nodes.items():
            for other in self.linked(me):
                self.spread[other].compare(me, node.digest)

    def settle(self, random: Random | None = None) -> None:
        before = self.frames
        while self.deliver(random):
            assert self.frames - before < 2000, "they never stop talking"

    def link_all(self) -> None:
        for one in self.nodes:
            for other in self.nodes:
                self.link(one, other)


def test_a_removal_reaches_everybody_the_removed_one_too_and_its_links_end() -> None:
    nodes = mesh_of(4)
    net = Net(nodes)
    net.link_all()
    net.settle()
    one, _, _, out = nodes
    one.remove(out.identity.id)
    net.settle()
    assert all(out.identity.id not in node.members for node in nodes)
    assert net.linked(out.identity.id) == []
    assert not out.belongs


def test_a_node_that_was_away_hears_of_a_removal_with_its_first_link() -> None:
    nodes = mesh_of(4)
    one, two, away, out = nodes
    net = Net(nodes)
    net.link(one.identity.id, two.identity.id)
    net.link(one.identity.id, out.identity.id)
    net.settle()
    one.remove(out.identity.id)
    net.settle()
    assert out.identity.id in away.members
    net.link(away.identity.id, two.identity.id)
    net.settle()
    assert out.identity.id in away.removed


def test_when_all_hold_the_same_nothing_is_said() -> None:
    nodes = mesh_of(4)
    net = Net(nodes)
    net.link_all()
    net.settle()
    said = net.frames
    for _ in range(5):
        net.gossip()
        net.settle()
    assert net.frames == said


def test_gossip_mends_what_did_not_arrive_once_for_each_difference() -> None:
    one, two = nodes = mesh_of(2)
    net = Net(nodes)
    net.link_all()
    net.settle()
    one.admit(identity(5).id, "new", identity(5).cert)
    net.under_way.clear()
    net.gossip()
    net.settle()
    assert identity(5).id in two.members


def test_who_holds_what_others_refuse_is_not_told_for_ever() -> None:
    """A removed node's admission, kept by a broken or hostile member: its digest differs for good."""
    one, two = mesh_of(2)
    sent: list[Frame] = []
    spreading = Spreading(one, send=lambda _node, frame: sent.append(frame) or True, linked=list)
    for _ in range(10):
        spreading.compare(two.identity.id, "another digest")
    assert len(sent) == 1
    for _ in range(10):
        spreading.compare(two.identity.id, one.digest)
        spreading.compare(two.identity.id, "")
    assert len(sent) == 1


@settings(max_examples=60)
@given(random=randoms, steps=st.integers(0, 30))
def test_whatever_happens_all_that_are_linked_agree_and_fall_silent(random: Random, steps: int) -> None:
    nodes = mesh_of(5)
    new = [trust(n) for n in range(5, 8)]
    net = Net([*nodes, *new])
    ids = list(net.nodes)
    for _ in range(steps):
        one, other = random.choice(ids), random.choice(ids)
        match random.choice(["link", "link", "part", "remove", "join", "deliver", "deliver", "gossip"]):
            case "link":
                net.link(one, other)
            case "part":
                net.part(one, other)
            case "remove":
                with suppress(MeshError):
                    net.nodes[one].remove(other)
            case "join" if not net.nodes[other].belongs:
                with suppress(MeshError):
                    join(net.nodes[other], net.nodes[one], again=True)
            case "gossip":
                net.gossip()
            case _:
                net.deliver(random)
    net.link_all()
    net.settle(random)
    for _ in range(len(ids)):  # a removal may end links over which others would have heard
        net.link_all()
        net.gossip()
        net.settle(random)
    for link in net.links:
        one, other = sorted(link)
        assert net.nodes[one].digest == net.nodes[other].digest
    said = net.frames
    net.gossip()
    net.settle(random)
    assert net.frames == said


def test_people_read_who_came_and_who_went_and_by_whom(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mesh.members")
    one, two = nodes = mesh_of(2)
    net = Net(nodes)
    net.link_all()
    net.settle()
    caplog.clear()
    one.admit(identity(5).id, "mini-3", identity(5).cert)
    net.settle()
    one.remove(identity(5).id)
    net.settle()
    texts = [record.getMessage() for record in caplog.records]
    assert any("mini-3" in t and "is a member now: this node has let it in" in t for t in texts)
    assert any("mini-3" in t and "is a member now: n0 has let it in" in t for t in texts)
    assert any("mini-3" in t and "was removed from the mesh by this node" in t for t in texts)
    caplog.clear()
    one.remove(two.identity.id)
    net.settle()
    assert any(r.getMessage() == "this node was removed from the mesh by n0" for r in caplog.records)


def test_a_roster_fits_a_frame_at_every_bound() -> None:
    record = Record(bytes(40 << 10), bytes(128))
    assert len(encode(Roster((record,) * 51))) < 4 << 20
    one = founder()
    held = [*one.records(), admission(one, identity(1)), removal(one, identity(1))]
    assert decode(encode(Roster(tuple(held)))) == Roster(tuple(held))
