"""mesh/door.py: who is let in, and what members tell each other of it."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.checks import Seen
from mesh.door import Caller, Door, Let, Members, Refuse, Wait, tag
from mesh.errors import MeshError
from mesh.join_settings import JoinSettings
from node.types import NodeId

ME, THEM = NodeId("a" * 16), NodeId("b" * 16)
ALONE = Members({ME: b"me"}, lambda _node, _cert: False)
WINDOW_S = JoinSettings().window_s


def caller(node: NodeId = THEM, cert: bytes = b"them", **more: Any) -> Caller:
    seen = Seen(cert, b"me", b"n" * 32, b"m" * 32)
    kept: dict[str, Any] = {"node": node, "name": "mac2", "cert": cert, "seen": seen, "check": seen.number()}
    return Caller(**{**kept, "near": True, "address": "10.0.0.2", **more})


def founded(now: float = 0.0) -> Door:
    door = Door("mesh")
    door.found(now)
    return door


def test_the_window_is_open_for_half_an_hour_after_the_founding_and_after_each_join_through_it() -> None:
    door = founded()
    assert door.judge(caller(), ALONE, 1799.0) == Let("window")
    door.admitted(caller(), "window", "mac1", at=1.0, now=1799.0)
    assert door.judge(caller(NodeId("c" * 16), b"third"), ALONE, 1799.0 + WINDOW_S - 1) == Let("window")
    assert isinstance(door.judge(caller(NodeId("c" * 16), b"third"), ALONE, 1799.0 + WINDOW_S), Wait)


def test_a_window_that_was_opened_for_ten_minutes_is_not_lengthened_by_who_comes() -> None:
    door = founded()
    door.open(600.0, 10.0)
    door.admitted(caller(), "window", "mac1", at=1.0, now=100.0)
    assert door.left_s(100.0) == 510.0
    door.close()
    assert door.left_s(100.0) == 0.0


@pytest.mark.parametrize("for_s", [0.0, -1.0, 86401.0, float("nan")])
def test_a_window_is_open_for_a_day_at_most(for_s: float) -> None:
    with pytest.raises(MeshError, match="at most 24 hours"):
        founded().open(for_s, 0.0)


def test_who_is_let_in_by_a_person_opens_no_window() -> None:
    door = founded()
    door.close()
    door.admitted(caller(), "accepted", "mac1", at=1.0, now=5.0)
    assert door.left_s(5.0) == 0.0


def test_only_the_near_come_through_the_window_and_the_own_of_a_tailnet_through_the_wall() -> None:
    door = founded()
    assert isinstance(door.judge(caller(near=False), ALONE, 1.0), Wait)
    door.close()
    assert door.judge(caller(near=False, own=True), ALONE, 1.0) == Let("tailnet")


def test_a_member_comes_back_by_its_key_whatever_the_window_says() -> None:
    door, members = founded(), Members({ME: b"me", THEM: b"them"}, lambda _node, _cert: False)
    door.close()
    assert door.judge(caller(), members, 1.0) == Let("member")


def test_another_key_with_a_members_id_is_refused_and_told_what_to_do() -> None:
    members = Members({ME: b"me", THEM: b"them"}, lambda _node, _cert: False)
    verdict = founded().judge(caller(cert=b"thief"), members, 1.0)
    assert isinstance(verdict, Refuse)
    assert verdict.code == "id_taken"
    assert f"mlx-stack mesh remove {THEM}" in verdict.why


@pytest.mark.parametrize("back", [{}, {"node": NodeId("c" * 16)}, {"cert": b"new key"}, {"own": True}])
def test_who_was_removed_waits_whatever_it_brings(back: dict[str, Any]) -> None:
    door, members = founded(), Members({ME: b"me"}, lambda node, cert: node == THEM or cert == b"them")
    token = door.invite(b"me", Random(1).randbytes, 0.0)
    asks = caller(**back)
    assert isinstance(door.judge(asks, members, 1.0), Wait)
    invited = caller(**back, proof=token.proof("newcomer", asks.seen))
    assert isinstance(door.judge(invited, members, 1.0), Wait)


def test_an_invite_works_once_and_proves_itself_both_ways() -> None:
    door, asks = founded(), caller(near=False)
    token = door.invite(b"me", Random(1).randbytes, 0.0)
    assert token.made_by(b"me")
    invited = caller(near=False, proof=token.proof("newcomer", asks.seen))
    assert door.judge(invited, ALONE, 1.0) == Let("invite", token.proof("member", asks.seen))
    again = door.judge(invited, ALONE, 1.0)
    assert isinstance(again, Refuse)
    assert again.code == "bad_invite"


def test_an_invite_is_too_old_after_ten_minutes() -> None:
    door, asks = founded(), caller()
    token = door.invite(b"me", Random(1).randbytes, 0.0)
    assert isinstance(door.judge(caller(proof=token.proof("newcomer", asks.seen)), ALONE, 600.0), Refuse)


def test_five_wrong_tries_end_every_invite_and_people_hear_of_it() -> None:
    door, asks = founded(), caller()
    token = door.invite(b"me", Random(1).randbytes, 0.0)
    verdicts = [door.judge(caller(proof=bytes(32)), ALONE, 1.0) for _ in range(5)]
    assert all(isinstance(v, Refuse) for v in verdicts)
    assert door.ended_invites == "5 wrong tries, the last from 10.0.0.2"
    assert isinstance(door.judge(caller(proof=token.proof("newcomer", asks.seen)), ALONE, 1.0), Refuse)


def test_at_most_eight_invites_are_open() -> None:
    door, asks = founded(), caller()
    tokens = [door.invite(b"me", Random(i).randbytes, 0.0) for i in range(9)]
    proofs = [caller(proof=t.proof("newcomer", asks.seen)) for t in tokens]
    assert isinstance(door.judge(proofs[0], ALONE, 1.0), Refuse)
    assert isinstance(door.judge(proofs[1], ALONE, 1.0), Let)


def test_a_newcomer_is_shown_with_its_number_until_somebody_accepts_it() -> None:
    door = founded()
    door.admitted(caller(), "window", "mac1", at=1.0, now=1.0)
    assert [(x.name, x.check, x.by) for x in door.newcomers()] == [("mac2", caller().check, "mac1")]
    assert not door.kept
    assert door.acknowledge(THEM) is not None
    assert door.newcomers() == []
    assert door.kept
    door.admitted(caller(), "window", "mac1", at=1.0, now=1.0)
    assert door.newcomers() == [], "the same key needs no second look"


def test_sixteen_may_wait_and_who_waits_with_anothers_id_is_told_so() -> None:
    door = founded()
    for i in range(16):
        assert door.waits(caller(NodeId(f"{i:016x}"), b"%d" % i, address=f"10.0.1.{i // 4}"), "closed", ME, 0.0) is None
    full = door.waits(caller(NodeId("f" * 16), b"f", address="10.0.1.9"), "closed", ME, 0.0)
    taken = door.waits(caller(NodeId(f"{3:016x}"), b"thief"), "closed", ME, 0.0)
    assert full is not None
    assert full.code == "full"
    assert taken is not None
    assert taken.code == "id_taken"
    assert len(door.waiting(0.0)) == 16
    assert door.waiting(901.0) == [], "who does not ask any more is forgotten"


def test_four_may_wait_at_one_address() -> None:
    door = founded()
    said = [door.waits(caller(NodeId(f"{i:016x}"), b"%d" % i), "closed", ME, 0.0) for i in range(5)]
    assert said[:4] == [None] * 4
    assert said[4] is not None
    assert said[4].code == "full"
    assert door.waits(caller(NodeId("f" * 16), b"f", address="10.0.1.9"), "closed", ME, 0.0) is None


def test_who_was_sent_away_does_not_come_back_on_the_list_for_an_hour() -> None:
    door = founded()
    door.waits(caller(), "closed", ME, 0.0)
    assert door.forget(THEM, 1.0)
    refused = door.waits(caller(), "closed", ME, 3600.0)
    assert refused is not None
    assert refused.code == "sent_away"
    assert door.waits(caller(), "closed", ME, 3601.0) is None
    assert not door.forget(NodeId("c" * 16), 3601.0)


def test_what_is_kept_on_disk_is_the_same_door_after_a_restart() -> None:
    door = founded()
    door.open(600.0, 10.0)
    door.admitted(caller(), "window", "mac1", at=1.0, now=10.0)
    token = door.invite(b"me", Random(1).randbytes, 10.0)
    back = Door.of_file(door.file(100.0, 5000.0), now=7.0, unix=5100.0)
    assert back.left_s(7.0) == pytest.approx(410.0)
    assert back.newcomers() == door.newcomers()
    assert isinstance(back.judge(caller(proof=token.proof("newcomer", caller().seen)), ALONE, 7.0), Let)
    late = Door.of_file(door.file(100.0, 5000.0), now=7.0, unix=9000.0)
    assert late.left_s(7.0) == 0.0
    assert isinstance(late.judge(caller(proof=token.proof("newcomer", caller().seen)), ALONE, 7.0), Refuse)


def test_a_clock_that_was_set_back_keeps_no_window_open_for_longer_than_it_was() -> None:
    back = Door.of_file(founded().file(0.0, 5000.0), now=0.0, unix=100.0)
    assert back.left_s(0.0) == WINDOW_S


@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
def test_members_that_hear_the_same_in_any_order_have_the_same_door(order: list[int], seed: int) -> None:
    doors = [founded() for _ in range(6)]
    members = [NodeId(f"{i:016x}") for i in range(6)]
    rng = Random(seed)
    for i, door in enumerate(doors):
        for _ in range(rng.randrange(4)):
            node = rng.choice(members)
            who = caller(node, node.encode())
            what = rng.choice(["open", "close", "admitted", "acknowledge"])
            if what == "open":
                door.open(600.0, 0.0)
            elif what == "close":
                door.close()
            elif what == "admitted":
                door.admitted(who, "window", f"mac{i}", at=float(rng.randrange(3)), now=0.0)
            else:
                door.acknowledge(node)
    frames = [door.frame(0.0) for door in doors]
    ends = []
    for sequence in (range(6), order):
        merged = founded()
        for i in itertools.chain(sequence, sequence):
            merged.merge(frames[i], members[i], members, 0.0)
        found = merged.frame(0.0)
        ends.append((found.n, found.left_s, found.kept, set(found.acknowledged), {x.tag for x in found.newcomers}))
    assert ends[0] == ends[1]


def test_a_window_that_one_closes_while_another_opens_it_is_closed() -> None:
    one, other = founded(), founded()
    one.close()
    other.open(None, 0.0)
    told = one.frame(0.0), other.frame(0.0)
    one.merge(told[1], THEM, [ME, THEM], 0.0)
    other.merge(told[0], ME, [ME, THEM], 0.0)
    assert (one.left_s(0.0), other.left_s(0.0)) == (0.0, 0.0)


def test_who_waits_is_shown_by_every_member_until_the_one_that_heard_it_says_otherwise() -> None:
    one, other = founded(), founded()
    one.waits(caller(), "closed", ME, 0.0)
    assert other.merge(one.frame(0.0), ME, [ME], 0.0)
    assert [w.cert for w in other.waiting(0.0)] == [b"them"]
    one.admitted(caller(), "accepted", "mac1", at=1.0, now=1.0)
    other.merge(one.frame(1.0), ME, [ME, THEM], 1.0)
    assert other.waiting(1.0) == []


def test_what_is_said_of_another_mesh_or_of_who_is_no_member_counts_nothing() -> None:
    door, stranger = founded(), Door("another")
    stranger.open(600.0, 0.0)
    assert not door.merge(stranger.frame(0.0), THEM, [ME, THEM], 0.0)
    liar = founded()
    liar.admitted(caller(NodeId("d" * 16), b"ghost"), "window", "x", at=1.0, now=0.0)
    door.merge(liar.frame(0.0), THEM, [ME, THEM], 0.0)
    assert door.newcomers() == []


def test_certificates_are_told_apart_by_their_tags() -> None:
    assert tag(b"one") != tag(b"other")
    assert len(tag(b"one")) == 16
