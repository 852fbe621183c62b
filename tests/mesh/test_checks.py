"""mesh/checks.py: who is in between is seen, and an invite proves what it should."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import checks
from mesh.checks import Seen, Token
from mesh.errors import MeshError

nonces = st.binary(min_size=checks.NONCE_BYTES, max_size=checks.NONCE_BYTES)


def test_both_sides_of_a_call_show_the_same_six_digits() -> None:
    one, other = Seen(b"N", b"M", b"n" * 32, b"m" * 32), Seen(b"N", b"M", b"n" * 32, b"m" * 32)
    assert one.number() == other.number()
    assert len(one.number()) == 6
    assert one.number().isdecimal()


@given(nonce_n=nonces, nonce_m=nonces, nonce_a=nonces, nonce_b=nonces)
def test_who_is_in_between_has_two_transcripts(nonce_n: bytes, nonce_m: bytes, nonce_a: bytes, nonce_b: bytes) -> None:
    """Whatever nonces it chooses, the certificates differ."""
    to_newcomer, to_member = Seen(b"N", b"A", nonce_n, nonce_a), Seen(b"A", b"M", nonce_b, nonce_m)
    assert to_newcomer.transcript() != to_member.transcript()
    assert to_newcomer.signed() != to_member.signed()


def test_an_attacker_who_is_bound_by_the_commitment_meets_the_number_once_in_a_million() -> None:
    """It knows the number on one side, and must commit before it learns the nonce of the other."""
    rng = random.Random(7)
    wanted = Seen(b"N", b"A", rng.randbytes(32), rng.randbytes(32)).number()
    met = sum(Seen(b"A", b"M", rng.randbytes(32), rng.randbytes(32)).number() == wanted for _ in range(5000))
    assert met <= 1


def test_check_numbers_are_spread_evenly() -> None:
    rng = random.Random(11)
    firsts = [Seen(b"N", b"M", rng.randbytes(32), rng.randbytes(32)).number()[0] for _ in range(4000)]
    assert all(300 < firsts.count(digit) < 500 for digit in "0123456789")


@given(nonce=nonces, other=nonces)
def test_a_commitment_holds_its_sender_to_one_nonce_and_one_key(nonce: bytes, other: bytes) -> None:
    commit = checks.commitment(nonce, b"N")
    assert checks.matches(commit, nonce, b"N")
    assert not checks.matches(commit, nonce, b"A")
    assert checks.matches(commit, other, b"N") is (nonce == other)


@given(hint=st.binary(min_size=8, max_size=8), secret=st.binary(min_size=16, max_size=16))
def test_an_invite_survives_copy_and_paste(hint: bytes, secret: bytes) -> None:
    token = Token(hint, secret)
    assert Token.parse(f"  {token.text()[:20]}\n{token.text()[20:].upper()} ") == token


@pytest.mark.parametrize("text", ["", "hello", "a" * 38, "a" * 40, "!" * 39, "ä" * 39])
def test_what_is_no_invite_is_said_to_be_none(text: str) -> None:
    with pytest.raises(MeshError, match="mlx-stack mesh invite"):
        Token.parse(text)


def test_a_proof_holds_for_one_side_one_call_and_one_pair_of_keys() -> None:
    token, seen = Token(b"h" * 8, b"s" * 16), Seen(b"N", b"M", b"n" * 32, b"m" * 32)
    proof = token.proof("newcomer", seen)
    others = [
        token.proof("member", seen),
        Token(b"h" * 8, b"t" * 16).proof("newcomer", seen),
        token.proof("newcomer", Seen(b"N", b"A", b"n" * 32, b"m" * 32)),
        token.proof("newcomer", Seen(b"N", b"M", b"n" * 32, b"x" * 32)),
    ]
    assert proof not in others
    assert proof == token.proof("newcomer", Seen(b"N", b"M", b"n" * 32, b"m" * 32))
