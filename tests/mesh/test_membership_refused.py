"""mesh/membership.py: of which process a refused dial says that it is gone."""

from __future__ import annotations

from mesh.events import Beat, Effect, Gone, LinkClosed, LinkUp, Reported, Seen, Tick, Tried
from mesh.membership import Membership
from router.view import NodeState
from tests.mesh.members import ME, A, hello, report, seen

HOME, ELSEWHERE = "10.0.0.2", "10.0.0.9"
REFUSED = Tried(A, HOME, "refused", "refused", last_good=True)


def linked_to(boot: str) -> Membership:
    """A node that has a link with process `boot` of A, at HOME."""
    m = Membership(report(ME, "b0"), enabled=True)
    for event in (Seen(seen(addresses=(HOME,))), LinkUp(hello(boot=boot), HOME)):
        m.step(event, 0.0)
    m.step(Reported(report(A, boot)), 0.0)
    m.step(Beat(A, boot), 0.0)
    return m


def gone(effects: list[Effect]) -> bool:
    return any(isinstance(e, Gone) for e in effects)


def test_the_process_of_the_last_link_is_gone_when_its_address_refuses() -> None:
    m = linked_to("b1")
    m.step(LinkClosed(A, "end of stream", eof=True), 0.1)
    assert gone(m.step(REFUSED, 0.11))


def test_a_refused_dial_says_nothing_of_a_process_that_was_heard_since() -> None:
    """Of two with one id (a copied disk) the linked one is killed, and the other speaks before the dial is refused."""
    m = linked_to("b1")
    m.step(LinkClosed(A, "end of stream", eof=True), 0.1)
    m.step(Beat(A, "b2"), 0.2)
    assert not gone(m.step(REFUSED, 0.21))
    node = m.view().node(A)
    assert node is not None
    assert node.state is not NodeState.DEAD


def test_nor_of_one_that_mdns_has_found_since() -> None:
    m = linked_to("b1")
    m.step(LinkClosed(A, "end of stream", eof=True), 0.1)
    assert gone(m.step(REFUSED, 0.11))
    m.step(Seen(seen(addresses=(ELSEWHERE,), boot="b2")), 0.2)
    assert not gone(m.step(REFUSED, 0.21))


def test_once_linked_it_is_that_process_which_is_gone() -> None:
    m = linked_to("b1")
    m.step(LinkClosed(A, "end of stream", eof=True), 0.1)
    m.step(Beat(A, "b2"), 0.2)
    m.step(LinkUp(hello(boot="b2"), HOME), 0.3)
    m.step(LinkClosed(A, "end of stream", eof=True), 0.4)
    assert gone(m.step(REFUSED, 0.41))


def test_a_process_that_is_heard_only_dies_of_silence() -> None:
    m = linked_to("b1")
    m.step(LinkClosed(A, "end of stream", eof=True), 0.1)
    m.step(Beat(A, "b2"), 0.2)
    m.step(REFUSED, 0.21)
    while (due := m.deadline) is not None and due < 5.0:
        m.step(Tick(), due)
    node = m.view().node(A)
    assert node is not None
    assert node.state is NodeState.DEAD
    assert node.reason.startswith("silent")
