"""mesh/reception.py: who asks to be let in cannot have as many check numbers made as it likes."""

from __future__ import annotations

from mesh import checks
from mesh.join_call import Begin, Offer, Result, Reveal
from mesh.join_settings import JoinSettings
from mesh.reception import Reception
from node.types import NodeId
from tests.keys import identity_of

ME, OTHER = NodeId("a" * 16), NodeId("b" * 16)
SETTINGS = JoinSettings(numbers_max=3, number_every_s=60.0, calls_max=100, calls_per_address=100)


def reception(shown: str = "") -> Reception:
    return Reception(lambda: identity_of(ME).cert, lambda _node, _cert: shown, SETTINGS)


def begin(*, check: str = "", invited: bool = False) -> Begin:
    cert = identity_of(OTHER).cert
    commit = checks.commitment(bytes(32), cert)
    return Begin(id=OTHER, name="other", mesh="default", cert=cert, commit=commit, check=check, invited=invited)


def taken(r: Reception, now: float, count: int = 10, **more: bool) -> int:
    return sum(isinstance(r.begin(begin(**more), "10.0.0.9", now), Offer) for _ in range(count))


def test_each_offer_of_a_new_number_is_a_try_and_tries_come_back_slowly() -> None:
    r = reception()
    assert taken(r, 100.0) == 3
    assert taken(r, 159.0) == 0
    assert taken(r, 161.0) == 1
    assert taken(r, 10_000.0) == 3
    refused = r.begin(begin(), "10.0.0.9", 10_000.0)
    assert isinstance(refused, Result)
    assert (refused.outcome, refused.code) == ("refused", "numbers")


def test_a_number_that_is_shown_already_may_be_asked_for_again() -> None:
    r = reception("123456")
    assert all(isinstance(r.begin(begin(check="123456"), "10.0.0.9", 100.0), Offer) for _ in range(10))


def test_an_invite_needs_no_number_and_who_speaks_of_one_must_show_it() -> None:
    r = reception()
    assert taken(r, 100.0, invited=True) == 10
    offer = r.begin(begin(invited=True), "10.0.0.9", 100.0)
    assert isinstance(offer, Offer)
    answer = r.reveal(Reveal(session=offer.session, nonce=bytes(32), signature=b""), "10.0.0.9", 100.0)
    assert isinstance(answer, Result)
    assert (answer.outcome, answer.code) == ("refused", "bad_invite")
