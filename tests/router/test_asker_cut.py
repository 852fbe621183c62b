"""An edge cut off from a coordinator that lives: nobody will succeed that one, so only the way is waited for."""

from __future__ import annotations

import pytest

from router.asker import Follow, FromDesk, LinkBack, LinkLost, Release
from router.events import Tick
from router.frames import Ask, Queued
from tests.router.test_asker import C1, C2, ME, ONE, Driven, ask, said


def decides_alone_at(driven: Driven, lives: bool, until: float = 5.0) -> list[float]:
    """When this node's own desk is asked. What is tried with the coordinator meanwhile does not go out."""
    at: list[float] = []
    while (due := driven.asker.deadline) is not None and due <= until and not at:
        effects = driven.do(Tick(), at=due)
        while (C1, Ask) in said(effects):
            effects = driven.do(LinkLost(C1, lives))
        at += [due for to, _ in said(effects) if to == ME]
    return at


@pytest.mark.parametrize(("lives", "after_s"), [(True, 0.5), (False, 2.0)])
def test_of_a_coordinator_that_lives_only_the_way_is_waited_for(lives: bool, after_s: float) -> None:
    d = Driven()
    d.do(ask())
    d.do(FromDesk(C1, Queued(ONE, 1, 3, 4.0)))
    d.do(LinkLost(C1, lives))
    assert decides_alone_at(d, lives) == [after_s]


def test_whether_it_lives_may_be_known_later() -> None:
    d = Driven()
    d.do(ask())
    d.do(LinkLost(C1))
    assert d.do(LinkLost(C1, lives=True), at=0.3) == []
    assert decides_alone_at(d, lives=True) == [0.5]
    d = Driven()
    d.do(ask())
    d.do(LinkLost(C1))
    assert said(d.do(LinkLost(C1, lives=True), at=1.0)) == [(ME, Ask)], "it was waited for long enough"
    d = Driven()
    d.do(ask())
    d.do(LinkLost(C1, lives=True))
    d.do(LinkLost(C1), at=0.3)
    assert decides_alone_at(d, lives=False) == [2.0], "it is being given up: there may be a successor"


def test_what_was_decided_alone_stays_so_until_there_is_a_way_again() -> None:
    d = Driven()
    d.do(ask())
    d.do(LinkLost(C1, lives=True))
    assert set(said(d.do(Tick(), at=0.5))) == {(C1, Ask)}, "first it is tried once more"
    assert said(d.do(LinkLost(C1, lives=True))) == [(ME, Ask)]
    assert d.do(LinkLost(C1), at=0.8) == []
    assert said(d.do(ask("2"))) == [(C1, Ask)]
    assert said(d.do(LinkLost(C1))) == [(ME, Ask)], "the next one need not wait again"
    effects = d.do(LinkBack(C1), at=1.5)
    assert Release() in effects
    assert said(effects) == [(C1, Ask), (C1, Ask)]


def test_a_coordinator_that_is_given_up_after_all_is_succeeded_as_ever() -> None:
    d = Driven()
    d.do(ask())
    d.do(LinkLost(C1, lives=True))
    d.do(Follow(None, 1, ruling=False), at=0.1)
    assert decides_alone_at(d, lives=False, until=1.9) == []
    assert said(d.do(Follow(C2, 2, ruling=False))) == [(C2, Ask)]
