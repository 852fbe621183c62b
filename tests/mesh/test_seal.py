"""mesh/seal.py: which datagrams are believed, and by which name the others are refused."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest

from mesh.seal import SEAL_BYTES, Opened, Refused, Seals
from mesh.settings import SealSettings
from mesh.wire import DATAGRAM_BYTES_MAX, MESSAGE_BYTES_MAX, PROTOCOL
from node.types import NodeId

A, B, C = NodeId("aa" * 8), NodeId("bb" * 8), NodeId("cc" * 8)
IDS = (A, B, C)


def hint(node: NodeId) -> bytes:
    return blake2b(node.encode(), digest_size=8).digest()


def pair_key(one: NodeId, other: NodeId) -> bytes:
    return blake2b("".join(sorted((one, other))).encode(), digest_size=32).digest()


def process(me: NodeId, rng: random.Random, *others: NodeId, **settings: float) -> Seals:
    """A process of that node, that was started just now."""
    seals = Seals(
        hint(me), key_of=lambda node: pair_key(me, node), nonce=rng.randbytes, settings=SealSettings(**settings)
    )
    seals.admit({node: hint(node) for node in others or IDS})
    return seals


def say(sender: Seals, to: NodeId, payload: bytes = b"hb") -> bytes:
    data = sender.seal(to, payload)
    assert data is not None
    return data


def refused(found: Opened | Refused) -> str:
    assert isinstance(found, Refused), found
    return found.code


class Met:
    """Two processes that know each other, and a clock."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.rng = rng or random.Random(1)
        self.a, self.b = process(A, self.rng), process(B, self.rng)
        self.now = 0.0
        self.meet()

    def meet(self) -> int:
        """Each says something in turn, and all answers are carried; how many rounds until both believe."""
        for rounds in range(1, 9):
            self.now += 0.1
            if self.carried(self.a, B, self.b) and self.carried(self.b, A, self.a):
                return rounds
        raise AssertionError("they never believe each other")

    def carried(self, sender: Seals, to: NodeId, receiver: Seals) -> bool:
        """Whether it is believed. Answers go to and fro until there are none."""
        found = receiver.open(say(sender, to), self.now)
        believed, turn = isinstance(found, Opened), (sender, receiver)
        for _ in range(8):
            if found.answer is None:
                return believed
            found, turn = turn[0].open(found.answer, self.now), (turn[1], turn[0])
        raise AssertionError("they answer each other for ever")


def test_two_that_were_just_started_believe_each_other_from_the_second_word_on() -> None:
    w = Met()
    assert w.b.open(say(w.a, B, b"hello"), 9.0) == Opened(A, b"hello")
    assert w.a.open(say(w.b, A, b""), 9.0) == Opened(B, b"")
    fresh = Met.__new__(Met)
    fresh.rng, fresh.now = random.Random(2), 0.0
    fresh.a, fresh.b = process(A, fresh.rng), process(B, fresh.rng)
    assert fresh.meet() == 2


@pytest.mark.parametrize("restarted", ["a", "b", "ab"])
def test_whoever_is_restarted_is_believed_again_one_heartbeat_later(restarted: str) -> None:
    w = Met()
    if "a" in restarted:
        w.a = process(A, w.rng)
    if "b" in restarted:
        w.b = process(B, w.rng)
    assert w.meet() <= 2


def test_what_was_said_before_a_restart_of_either_is_stale() -> None:
    w = Met()
    held = [say(w.a, B), say(w.b, A)]
    w.a = process(A, w.rng)
    w.meet()
    assert refused(w.b.open(held[0], w.now)) == "stale"  # of the former process
    assert refused(w.a.open(held[1], w.now)) == "stale"  # to the former process


def test_a_repeated_one_and_one_that_was_kept_are_told_apart() -> None:
    w = Met()
    first = say(w.a, B)
    assert w.b.open(first, 0.0) == Opened(A, b"hb")
    assert refused(w.b.open(first, 0.0)) == "repeated"
    early, late = say(w.a, B), say(w.a, B)
    assert w.b.open(late, 0.0) == Opened(A, b"hb")
    assert refused(w.b.open(early, 0.0)) == "repeated"
    for _ in range(SealSettings().window):
        last = say(w.a, B)
    assert w.b.open(last, 0.0) == Opened(A, b"hb")
    assert refused(w.b.open(first, 0.0)) == "replayed"


def test_one_for_another_member_and_one_that_comes_back_are_not_believed() -> None:
    w = Met()
    c = process(C, w.rng)
    assert refused(c.open(say(w.a, B), 0.0)) == "bad_tag"
    assert refused(w.a.open(say(w.a, B), 0.0)) == "stranger"  # its own


def test_every_bit_is_covered() -> None:
    w = Met()
    data = say(w.a, B, b"payload")
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        code = refused(w.b.open(bytes(damaged), 0.0))
        assert code == (
            "garbled" if bit < 24 else "other_version" if bit < 32 else "stranger" if bit < 96 else "bad_tag"
        )
    assert w.b.open(data, 0.0) == Opened(A, b"payload"), "and none of that did harm"


def test_a_cut_one_is_refused_at_every_length() -> None:
    w = Met()
    data = say(w.a, B, b"payload")
    for length in range(len(data)):
        code = refused(w.b.open(data[:length], 0.0))
        assert code == ("garbled" if length < SEAL_BYTES else "bad_tag")
    assert refused(w.b.open(data + b"\0", 0.0)) == "bad_tag"
    assert refused(w.b.open(data + bytes(DATAGRAM_BYTES_MAX), 0.0)) == "too_large"
    assert len(say(w.a, B, bytes(MESSAGE_BYTES_MAX))) == DATAGRAM_BYTES_MAX


def test_another_protocol_is_named() -> None:
    w = Met()
    assert refused(w.b.open(b"MXM\x01" + bytes(200), 0.0)) == "other_version"
    assert refused(w.b.open(b"MXM" + bytes((PROTOCOL + 1,)), 0.0)) == "other_version"
    assert refused(w.b.open(b"MXM", 0.0)) == refused(w.b.open(b"", 0.0)) == "garbled"


def test_who_was_removed_is_a_stranger_at_once_and_nothing_is_said_to_it() -> None:
    w = Met()
    w.b.admit({C: hint(C)})
    assert refused(w.b.open(say(w.a, B), 0.0)) == "stranger"
    assert w.b.seal(A, b"hb") is None
    held = say(w.a, B)
    w.b.admit({A: hint(A)})
    assert refused(w.b.open(held, 0.0)) == "stale", "taken back, it begins anew"
    w.meet()


def test_a_member_with_a_new_key_begins_anew() -> None:
    w = Met()
    held = say(w.a, B)
    w.b.admit({A: b"new hint"})
    assert refused(w.b.open(held, 0.0)) == "stranger"


def test_who_repeats_old_ones_is_not_answered_each_time_and_keeps_nobody_from_an_answer() -> None:
    w = Met()
    old = [say(w.a, B) for _ in range(50)]
    w.a = process(A, w.rng)
    w.b = process(B, w.rng)
    answers = [w.b.open(data, 0.0).answer for data in old]
    assert sum(answer is not None for answer in answers) == 1
    found = w.b.open(say(w.a, B), 0.0)
    assert refused(found) == "stale"
    assert found.answer is not None
    assert isinstance(w.a.open(found.answer, 0.0), Opened)
    assert w.b.open(old[0], 1.0).answer is not None
    for answer in answers:
        assert answer is None or refused(w.a.open(answer, 0.0)) == "stale", "it tells the living process nothing"


def test_two_living_processes_of_one_id_are_both_believed() -> None:
    """A copied disk: clones.py must hear both. Neither has to be started anew."""
    w = Met()
    first, second = w.a, process(A, w.rng)
    w.a = second
    w.meet()
    w.a = first
    w.meet()
    for _ in range(3):
        for one in (first, second):
            w.a = one
            assert w.carried(w.a, B, w.b) or w.carried(w.a, B, w.b)


def test_any_number_of_restarts_leaves_a_bounded_memory_and_no_old_one_believed() -> None:
    w = Met()
    held = []
    for _ in range(30):
        held.append(say(w.a, B))
        w.a = process(A, w.rng)
        w.meet()
    pair = w.b._pairs[A]
    assert len(pair.boots) <= SealSettings().boots_max
    assert len(pair.answered) <= SealSettings().answered_max
    assert {refused(w.b.open(data, w.now)) for data in held} == {"stale"}
