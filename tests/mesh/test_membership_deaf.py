"""A way that carries in one direction only: both ends know it soon, and are well again as soon as it is over."""

from __future__ import annotations

import pytest

from mesh.events import (
    Beat,
    Dial,
    Down,
    Framed,
    GaveUp,
    LinkClosed,
    LinkUp,
    Reported,
    SaidBye,
    Seen,
    Tick,
    Up,
    Withdrew,
)
from router.view import NodeState
from tests.mesh.members import ME, A, B, World, hello, report, seen

DEAF = Beat(A, "b1", deaf=True)


def deaf_for(w: World, seconds: float, *, framed: bool = False) -> None:
    """It is heard each 100 ms, and each time says that it does not hear us; `framed`: its link still brings frames."""
    for _ in range(round(seconds / 0.1)):
        w.wait(0.1)
        w.tell(DEAF, *([Framed(A)] if framed else []))


@pytest.mark.parametrize("framed", [False, True])
def test_who_does_not_hear_us_is_given_up_after_its_patience(framed: bool) -> None:
    w = World()
    w.join()
    w.wait(2, beats=(A,))
    w.tell(DEAF)
    since = w.now
    deaf_for(w, 0.3, framed=framed)
    assert w.node().state is NodeState.OK
    deaf_for(w, 3.0, framed=framed)
    assert (w.node().state, w.node().reason) == (NodeState.DEAD, "it is heard, but does not hear this node")
    [(at, _)] = w.times(Down)
    assert at - since == pytest.approx(0.35, abs=0.001)
    assert w.times(GaveUp) == [(since, GaveUp(A))], "what runs here for it is ended at once, and once"
    assert w.m.lost(A)
    assert not w.m.unheard, "it is heard: told otherwise it would give us up for ever"


def test_a_word_of_being_deaf_that_is_taken_back_means_nothing() -> None:
    w = World()
    w.join()
    w.wait(1, beats=(A,))
    for _ in range(10):
        deaf_for(w, 0.3)
        w.tell(Beat(A, "b1"))
    assert w.times(Down) == []


def test_a_stall_of_ours_is_no_deafness_of_its() -> None:
    w = World()
    w.join()
    w.wait(1, beats=(A,))
    w.tell(DEAF)
    w.now += 2.0  # it was right: nothing came from us
    w.tell(DEAF, Tick())
    deaf_for(w, 0.2)
    w.tell(Beat(A, "b1"))
    assert w.times(Down) == []


def test_it_is_well_again_with_the_first_beat_that_is_not_deaf() -> None:
    w = World()
    w.join()
    deaf_for(w, 1.0)
    assert w.node().state is NodeState.DEAD
    assert Up(A) in w.tell(Beat(A, "b1"))
    assert w.node().state is NodeState.OK
    assert not w.m.lost(A)


def test_a_new_link_shows_that_it_hears() -> None:
    w = World()
    w.join()
    deaf_for(w, 1.0)
    w.tell(LinkClosed(A, "nothing came for 5 s", eof=False))
    w.tell(LinkUp(hello(), "10.0.0.2"), Reported(report()))
    assert w.node().state is NodeState.OK


def test_who_was_deaf_and_falls_silent_is_unheard() -> None:
    w = World()
    w.join()
    deaf_for(w, 1.0)
    w.wait(0.6)
    assert "silent" in w.node().reason
    assert w.m.unheard == {A}
    assert len(w.times(Down)) == 1
    w.tell(DEAF)  # the network is back; what it says is of a moment ago
    assert w.node().state is NodeState.OK
    assert not w.m.unheard


def test_who_has_left_is_not_told_that_it_is_unheard() -> None:
    """It finishes what it carries, from us too; it must not give us up for having heard its goodbye."""
    w = World()
    w.join()
    w.tell(SaidBye(A, "stopping"))
    assert w.m.lost(A)
    assert not w.m.unheard


@pytest.mark.parametrize("ways", [{(ME, A)}, {(A, ME)}, {(ME, A), (A, ME)}])
def test_both_ends_of_a_blocked_way_know_it_and_neither_holds_it_against_the_other(ways: set[tuple[str, str]]) -> None:
    """Two memberships that hear each other's heartbeats, as far as `ways` are not blocked."""
    here, there = World(), World()  # here: ME, with A as its peer; there: the other way round, under the same two names
    for w in (here, there):
        w.join()

    def beats(seconds: float, blocked: set[tuple[str, str]]) -> None:
        for _ in range(round(seconds / 0.1)):
            for w in (here, there):
                w.wait(0.1)
            for hears, speaks, way in ((here, there, (A, ME)), (there, here, (ME, A))):
                if way not in blocked:
                    hears.tell(Beat(A, "b1", deaf=A in speaks.m.unheard))

    beats(2.0, set())
    beats(1.2, ways)
    assert here.node().state is there.node().state is NodeState.DEAD
    beats(0.3, set())
    assert here.node().state is there.node().state is NodeState.OK
    beats(3.0, set())
    assert len(here.times(Down)) == len(there.times(Down)) == 1


def test_an_address_that_is_advertised_no_more_is_withdrawn() -> None:
    w = World()
    w.join()
    w.tell(Reported(report(addresses=("10.0.0.2", "10.1.0.2", "127.0.0.1"))))
    assert w.times(Withdrew) == []
    w.tell(LinkClosed(A, "replaced by a newer link", eof=False), LinkUp(hello(), "10.0.0.7"))
    effects = w.tell(Reported(report(addresses=("10.0.0.7", "10.1.0.2"))))
    assert Withdrew(A, ("10.0.0.2",)) in effects
    assert w.node().addresses == ("10.0.0.7", "10.1.0.2", "127.0.0.1")
    [dial] = [e for e in effects if isinstance(e, Dial)]
    assert (dial.peer.addresses, dial.at_once) == (w.node().addresses, False)


def test_an_address_that_another_node_has_is_not_withdrawn() -> None:
    """Two sites may number their networks alike, and a router may give an address to the next at once."""
    w = World()
    w.join()
    w.join(B)
    for node in (A, B):
        w.tell(Reported(report(node, addresses=("10.0.0.2", "10.1.0.2"))))
    effects = w.tell(Reported(report(addresses=("10.1.0.2",))))
    assert Withdrew(A, ()) in effects
    assert w.node().addresses == ("10.1.0.2",)


def test_a_report_without_addresses_withdraws_none() -> None:
    """A machine that has lost its network for a moment gets the same address again, as a rule."""
    w = World()
    w.join()
    w.tell(Reported(report(addresses=("10.0.0.2",))), Reported(report(addresses=())))
    w.tell(Reported(report(addresses=("10.0.0.2",))))
    assert w.times(Withdrew) == []
    assert w.node().addresses == ("10.0.0.2",)
    effects = w.tell(Reported(report(addresses=())), Reported(report(addresses=("10.0.0.3",))))
    assert Withdrew(A, ("10.0.0.2",)) in effects


def test_a_new_process_of_who_was_deaf_has_said_nothing_yet() -> None:
    """mDNS tells of it before it is reached: it is waited for like any other, and no timer stays due for ever."""
    w = World()
    w.join()
    w.wait(1, beats=(A,))
    deaf_for(w, 1.0)
    assert w.node().state is NodeState.DEAD
    w.tell(Seen(seen(boot="b2")))
    assert w.node().state is NodeState.WAITING
    for _ in range(20):
        if (due := w.m.deadline) is not None and due < w.now + 60.0:
            assert due > w.now
            w.now = due
            w.tell(Tick())
    assert w.m.deadline is not None
    assert w.m.deadline > w.now
    assert w.node().reason.startswith("never reached")
