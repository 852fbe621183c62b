"""mesh/name_rules.py: what it does about another mesh of the same name, event by event on a made-up clock."""

from __future__ import annotations

from mesh.name_events import (
    Ask,
    Claim,
    Foreign,
    Known,
    Rival,
    Ruled,
    Swap,
    Tick,
)
from tests.mesh.naming import ALONE, FALLBACK, HOSTS, NAME, NODES, OTHER, STRANGER, F, L, One, S, swaps


def test_a_name_of_another_mesh_is_left_to_it_and_the_fallback_taken() -> None:
    one = One()
    one.do(Ruled(L, "a"))
    one.said(NAME, STRANGER)
    assert one.let(0.3) == [Claim((FALLBACK, OTHER)), Swap((FALLBACK, OTHER), ())]
    assert one.rules.ceded
    asked = 0
    for _ in range(3000):  # five minutes
        if any(isinstance(e, Ask) for e in one.let(0.1)):
            asked += 1
            one.said(NAME, STRANGER)
    assert 9 <= asked <= 13
    assert one.rules.held == (FALLBACK, OTHER)


def test_the_plain_name_is_taken_when_the_other_mesh_is_gone_and_the_fallback_kept() -> None:
    one = One()
    one.do(Ruled(L, "a"))
    one.said(NAME, STRANGER)
    one.let(S.again_s + 3 * S.again_soon_s)
    assert one.rules.held == (*HOSTS, FALLBACK)
    assert not one.rules.ceded
    assert swaps([e for _, e in one.all])[-1] == Swap((*HOSTS, FALLBACK), ())


def test_one_unanswered_question_is_not_the_end_of_the_other_mesh() -> None:
    one = One()
    one.do(Ruled(L, "a"))
    one.said(NAME, STRANGER)
    answers = iter([False, True] * 50)
    for _ in range(3000):
        if any(isinstance(e, Ask) for e in one.let(0.1)) and next(answers):
            one.said(NAME, STRANGER)
    assert one.rules.ceded


def test_an_address_that_turns_out_to_be_ours_gives_the_name_back() -> None:
    one = One()
    one.do(Ruled(L, "a"))
    one.said(NAME, STRANGER)
    one.let(0.3)
    effects = one.do(Known(("10.0.0.1",), {**NODES, "d": (STRANGER,)}))
    assert effects[0] == Claim((*HOSTS, FALLBACK))


def test_the_successor_of_a_mesh_without_its_plain_name_goes_on_with_the_fallback() -> None:
    one = One()
    one.do(Ruled(F, "b"))
    one.said(NAME, STRANGER)
    one.said(FALLBACK, "10.0.0.2")
    assert one.do(Ruled(L, "a"))[0] == Claim((FALLBACK, OTHER))


def test_of_two_meshes_with_one_name_the_lower_address_keeps_it() -> None:
    low, high = One("10.0.0.1").coordinator(), One("10.0.0.95").coordinator()
    for one, other in ((low, "10.0.0.95"), (high, "10.0.0.1")):
        one.do(Known(one.rules._mine, {}))
        one.let(10)
        one.said(NAME, other)
        one.let(0.9)
    said = [low.let(0.2), high.let(0.2)]
    assert [len(swaps(effects)) for effects in said] == [1, 1]
    assert (low.rules.held, high.rules.held) == (HOSTS, (FALLBACK, OTHER))
    low.said(NAME, "10.0.0.95")  # it does not listen: no quarrel for ever
    low.let(1.1)
    assert low.rules.held == (FALLBACK, OTHER)


def test_what_is_due_after_the_answers_is_done_with_them() -> None:
    one = One()
    one.said(NAME, STRANGER)
    one.coordinator(after=None)
    one.let(S.question_s)
    assert one.rules.held == (FALLBACK, OTHER)
    while one.rules._ceded[NAME] < S.questions - 1 or one.rules._asked_at is None:
        one.let(0.1)
    one.do(Ruled(ALONE, "a"))  # a new question is due while the last of the old ones is open
    one.do(Foreign(one.now))
    one.now += S.question_s
    one.do(Tick())
    assert NAME in one.rules.held
    assert one.rules.deadline > one.now, "else it would be woken again at once"


def test_spoofed_owners_are_not_collected() -> None:
    one = One().coordinator()
    for i in range(10_000):
        one.said(NAME, f"10.1.{i // 250}.{i % 250}")
        one.do(Rival(f"x{i}"))
    assert len(one.rules._heard[NAME]) <= S.owners_max
    assert len(one.rules._rivals) <= S.owners_max + 1
