"""mesh/membership.py: who is alive is right soon, and says why."""

from __future__ import annotations

import msgspec
import pytest

from mesh.events import (
    Beat,
    Changed,
    Dial,
    Down,
    Framed,
    Gone,
    Known,
    LinkClosed,
    LinkUp,
    Reported,
    Rtt,
    SaidBye,
    Seen,
    SelfChanged,
    Tick,
    Tried,
    Up,
)
from mesh.wire import PROTOCOL
from router.view import NodeState, View
from tests.mesh.members import ME, A, World, hello, report, seen


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


def test_rtt_and_the_view_is_the_same_object_until_something_changes() -> None:
    w = World()
    w.join()
    before = w.m.view()
    assert w.m.view() is before
    w.tell(Beat(A, "b1"))
    assert w.m.view() is before
    w.tell(Rtt(A, 0.002))
    assert w.node().rtt_s == 0.002


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
