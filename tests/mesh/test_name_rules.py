"""mesh/name_rules.py: who holds the names, event by event on a made-up clock."""

from __future__ import annotations

from mesh.name_events import (
    Ask,
    AskGateway,
    Claim,
    Effect,
    Foreign,
    GatewayAnswered,
    Known,
    Opened,
    Release,
    Rival,
    Ruled,
    Said,
    Swap,
    Tick,
)
from mesh.name_rules import NameRules
from tests.mesh.naming import ALONE, FALLBACK, HOSTS, NAME, NODES, F, L, One, S, swaps

# Taking over


def test_a_takeover_claims_and_swaps_in_the_same_step_and_says_it_five_times() -> None:
    one = One()
    one.do(Ruled(F, "b"))
    effects = one.do(Ruled(L, "a"))
    assert effects == [Claim(HOSTS), Swap(HOSTS, ("10.0.0.2",))]
    begin = one.now
    one.let(10)
    assert [round(at - begin, 3) for at, e in one.all if isinstance(e, Swap)] == [0, 0.225, 0.45, 1, 3]
    assert {e for _, e in one.all if isinstance(e, Swap)} == {Swap(HOSTS, ("10.0.0.2",))}
    assert one.let(10000) == []


def test_the_gateway_is_asked_until_it_answers_and_then_only_alone() -> None:
    one = One()

    def asked(seconds: float) -> int:
        before = len(one.all)
        one.let(seconds)
        return [type(e) for _, e in one.all[before:]].count(AskGateway)

    assert asked(600) == 10
    one.do(GatewayAnswered())
    assert asked(60 + 600) == 1
    one.do(Ruled(ALONE, "a"))
    assert asked(600) == 300


def test_the_addresses_that_were_announced_are_said_goodbye_to_as_well() -> None:
    one = One()
    one.said(NAME, "10.0.0.3")
    assert one.coordinator().all[-1][1] == Swap(HOSTS, ("10.0.0.2", "10.0.0.3"))


def test_who_knows_nothing_of_the_names_asks_first() -> None:
    one = One()
    assert one.do(Ruled(L, "a")) == [Ask(HOSTS)]
    assert one.let(S.question_s - 0.01) == []
    assert one.let(0.02) == [Claim(HOSTS), Swap(HOSTS, ())]


def test_nothing_is_claimed_before_mdns_is_open() -> None:
    rules = NameRules("a", HOSTS, FALLBACK, S, 0.0)
    rules.step(Known(("10.0.0.1",), {}), 0.0)
    assert rules.step(Ruled(L, "a"), 0.0) == []
    assert rules.step(Opened(), 5.0) == [Ask(HOSTS)]


def test_without_an_address_there_is_nothing_to_claim() -> None:
    one = One()
    one.do(Known((), NODES))
    one.coordinator().let(20)
    assert one.rules.held == ()
    one.do(Known(("10.0.0.1",), NODES))
    one.let(5)
    assert one.rules.held == HOSTS
    assert Release("this node has no address") in one.do(Known((), NODES))
    assert one.let(100) == []


# Losing


def test_the_loser_answers_until_it_hears_the_winner_and_never_announces() -> None:
    one = One().coordinator()
    assert one.do(Ruled(F, "b")) == []
    assert one.rules.held == HOSTS
    assert one.let(0.5) == [], "the rest of its own series is not said"
    assert one.do(Said(((NAME, "10.0.0.1", False), (NAME, "10.0.0.2", True)))) == [Release("its successor has it")]
    assert one.let(100) == []


def test_the_loser_that_does_not_hear_the_winner_lets_go_silently_after_a_second() -> None:
    one = One().coordinator()
    one.do(Ruled(F, "b"))
    assert one.let(S.lost_s + 0.01) == [Release("it has a successor")]


def test_who_stepped_down_without_a_successor_goes_on_answering() -> None:
    one = One().coordinator()
    one.let(5)
    one.do(Ruled(F, None))
    assert one.let(3600) == []
    assert one.rules.held == HOSTS
    assert one.do(Ruled(F, "b")) == []
    assert one.let(2) == [Release("it has a successor")]


def test_who_steps_down_and_rules_on_says_it_again() -> None:
    one = One().coordinator()
    one.let(5)
    one.do(Ruled(F, None))
    assert swaps(one.do(Ruled(L, "a")))


def test_sockets_that_open_anew_make_no_loser_announce() -> None:
    one = One().coordinator()
    one.do(Ruled(F, "b"))
    assert one.do(Opened()) == [Release("the network was gone for a while")]
    assert one.let(100) == []


def test_after_sockets_open_anew_a_coordinator_waits_to_hear_whether_it_is_one_still() -> None:
    one = One().coordinator()
    one.let(5)
    assert one.do(Opened()) == [Claim(HOSTS)]
    one.let(S.contest_s / 2)
    one.do(Ruled(F, "b"))
    assert swaps(one.let(10)) == []
    one.do(Ruled(L, "a"))
    one.let(5)
    one.do(Opened())
    assert len(swaps(one.let(10))) == 5


def test_a_stalled_coordinator_does_not_say_what_it_had_planned() -> None:
    one = One().coordinator()
    one.let(0.5)
    one.now += 20  # the process stood still, +1 s and +3 s passed
    assert swaps(one.do(Tick())) == []
    one.do(Ruled(F, "b"))
    assert swaps(one.let(10)) == []


def test_a_node_of_this_mesh_that_announces_a_held_name_is_contradicted_a_moment_later() -> None:
    one = One().coordinator()
    one.let(5)
    assert one.said(NAME, "10.0.0.3") == []
    assert swaps(one.let(S.contest_s + 0.01)) == [Swap(HOSTS, ("10.0.0.2", "10.0.0.3"))]
    for _ in range(50):  # however often it is said
        one.said(NAME, "10.0.0.3")
        one.let(0.02)
    assert len(swaps([e for at, e in one.all if at > one.now - 1.0])) < 12


def test_a_rival_makes_the_coordinator_say_it_again_once() -> None:
    one = One().coordinator()
    one.let(10)
    for _ in range(30):
        one.do(Rival("c"))
        one.let(0.1)
    one.let(5)
    mine = [(at, e) for at, e in one.all if isinstance(e, Swap) and at > 105]
    assert len(mine) == 5
    assert mine[0][1] == Swap(HOSTS, ("10.0.0.2", "10.0.0.3"))


# Alone


def alone(one: One) -> list[Effect]:
    effects = one.do(Ruled(ALONE, "a"))
    return [*effects, *one.let(S.heard_s - 0.1)]


def test_alone_and_deaf_it_takes_nothing() -> None:
    one = One()
    one.do(GatewayAnswered())  # before, when all was well
    one.do(Ruled(F, "b"))
    one.let(60)
    one.do(Foreign(one.now - 0.6))  # the last word of the coordinator
    assert alone(one) == [AskGateway()]
    assert one.rules.deaf(one.now)
    one.let(3600)
    assert one.rules.held == ()


def test_alone_it_takes_the_names_when_the_gateway_answers() -> None:
    one = One()
    one.do(GatewayAnswered())
    one.do(Ruled(F, "b"))
    one.let(60)
    assert one.do(Ruled(ALONE, "a")) == [AskGateway()]
    one.let(0.01)
    assert one.do(GatewayAnswered()) == [Ask(HOSTS)]
    assert one.let(0.3) == [
        Claim(HOSTS),
        Swap(HOSTS, ("10.0.0.2",)),
    ]


def test_alone_it_takes_the_names_when_anything_foreign_is_heard() -> None:
    one = One()
    one.do(GatewayAnswered())
    one.do(Ruled(ALONE, "a"))
    one.let(60)
    assert one.do(Foreign(one.now)) == [Ask(HOSTS)]
    assert Claim(HOSTS) in one.let(0.3)


def test_where_no_gateway_ever_answered_the_last_five_seconds_count() -> None:
    one = One()
    one.do(Ruled(F, "b"))
    one.let(60)
    one.do(Foreign(one.now - 0.6))
    assert Ask(HOSTS) in one.do(Ruled(ALONE, "a"))
    assert Claim(HOSTS) in one.let(0.3)
    one.let(3600)
    assert one.rules.held == HOSTS, "and what it has it keeps"
    assert AskGateway() in one.do(Opened())
    assert one.rules.held == (), "until its network was gone: then it may have been the deaf one"


def test_a_coordinator_that_is_left_alone_keeps_the_names_while_it_hears_something() -> None:
    one = One().coordinator()
    one.let(10)
    assert one.do(Ruled(ALONE, "a")) == [AskGateway()]
    for _ in range(100):
        one.do(GatewayAnswered())
        assert swaps(one.let(2.0)) == []
    assert one.rules.held == HOSTS
    one.let(S.heard_s + 0.1)
    assert one.rules.held == ()
    assert one.rules.deaf(one.now)


def test_who_never_coordinates_holds_nothing_alone() -> None:
    one = One()
    one.do(Ruled(ALONE, None))
    one.do(Foreign(one.now))
    one.let(30)
    assert one.rules.held == ()


def test_alone_it_leaves_the_names_to_a_node_of_this_mesh_that_answers() -> None:
    one = One()
    one.do(Foreign(one.now))
    one.do(Ruled(ALONE, "a"))
    one.said(NAME, "10.0.0.2")
    for _ in range(200):
        one.do(Foreign(one.now))
        if Ask(HOSTS) in one.let(0.1):
            one.said(NAME, "10.0.0.2")
    assert one.rules.held == ()
    one.do(Foreign(one.now))
    one.let(S.again_soon_s + S.question_s)
    assert one.rules.held == HOSTS
