"""Client keys, decided: whose they are, how sets of them become one, and what revoking and `off` mean."""

from __future__ import annotations

import hashlib
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mesh.errors import MeshError
from mesh.keys import KEYS_MAX, PREFIX, RANDOM_BYTES, ClientKey, Keys, well_formed
from router.guard import Guard, Passed

CHANCE = random.Random(7)


def chance() -> bytes:
    return CHANCE.randbytes(RANDOM_BYTES)


def test_no_key_is_needed_until_the_first_one_exists() -> None:
    keys = Keys()
    assert not keys.needed
    text, key = keys.create("laptop", chance(), 100)
    assert keys.needed
    assert keys.name_of(text) == "laptop"
    assert keys.live == (key,)
    assert (keys.counts(key.id), keys.counts("0" * 12)) == (True, False)


def test_a_key_is_long_random_and_not_kept() -> None:
    text, key = Keys().create("laptop", chance(), 100)
    assert re.fullmatch(r"sk-mesh-[0-9a-f]{52}", text)
    assert well_formed(text)
    assert 8 * RANDOM_BYTES - 4 * len(key.id) >= 128, "bits that nobody is told"
    assert text[len(PREFIX) + len(key.id) :] not in repr(key)
    assert key.digest == hashlib.sha256(b"mlx-stack client key\0" + text.encode()).hexdigest()


@pytest.mark.parametrize("wrong", ["", "none", "sk-mesh-", "sk-mesh-" + "0" * 52, "é" * 60, "\ud800", "x" * 10**5])
def test_what_is_no_key_is_nobodys(wrong: str) -> None:
    keys = Keys()
    keys.create("laptop", chance(), 100)
    assert keys.name_of(wrong) is None


def test_a_key_with_one_digit_changed_is_nobodys() -> None:
    keys = Keys()
    text, _ = keys.create("laptop", chance(), 100)
    for place in range(len(text)):
        other = "0" if text[place] != "0" else "1"
        assert keys.name_of(text[:place] + other + text[place + 1 :]) is None


def test_a_revoked_key_is_nobodys_and_the_last_one_revoked_opens_nothing() -> None:
    keys = Keys()
    text, key = keys.create("laptop", chance(), 100)
    assert keys.revoke("laptop", 200).revoked == 200
    assert keys.name_of(text) is None
    assert not keys.counts(key.id)
    assert keys.live == ()
    assert keys.needed, "whoever revokes a stolen key does not mean to let everybody in"
    assert not keys.merge((key,)), "a node that was away brings nothing back"
    assert keys.name_of(text) is None


def test_what_was_asked_with_a_revoked_key_ends_though_another_key_has_its_name() -> None:
    here, away = Keys(), Keys()
    text, _ = here.create("laptop", chance(), 100)
    away.merge(here.all)
    guard = Guard(away)
    asked = guard.judge(
        "POST", "/v1/chat/completions", {"host": "10.0.0.5", "authorization": f"Bearer {text}"}, "10.0.0.9"
    )
    assert isinstance(asked, Passed)
    assert guard.still(asked)
    here.revoke("laptop", 200)
    here.create("laptop", chance(), 300)
    assert away.merge(here.all), "one that was cut off hears of both at once"
    assert not guard.still(asked)


def test_a_name_may_be_used_again_and_a_revoked_key_stays_so() -> None:
    keys = Keys()
    before, _ = keys.create("laptop", chance(), 100)
    keys.revoke("laptop", 150)
    after, _ = keys.create("laptop", chance(), 200)
    assert (keys.name_of(before), keys.name_of(after)) == (None, "laptop")


def test_off_counts_for_nodes_that_were_away_too() -> None:
    here = Keys()
    text, _ = here.create("laptop", chance(), 100)
    away = Keys(here.all)
    here.off(200)
    assert not here.needed
    assert not here.merge(away.all)
    assert away.merge(here.all)
    assert (away.needed, away.name_of(text)) == (False, None)
    again, _ = away.create("laptop", chance(), 300)
    assert here.merge(away.all)
    assert (here.needed, here.name_of(again), here.name_of(text)) == (True, "laptop", None)


def test_off_ends_no_key_that_it_did_not_know_of() -> None:
    """A Mac that once switched its own keys off and then joins a mesh must not open that mesh."""
    joins, mesh = Keys(), Keys()
    joins.create("old", chance(), 100)
    joins.off(200)
    text, _ = mesh.create("laptop", chance(), 150)
    assert mesh.merge(joins.all)
    assert (mesh.needed, mesh.name_of(text)) == (True, "laptop")
    joins.merge(mesh.all)
    assert (joins.needed, joins.name_of(text)) == (True, "laptop")


def test_names_and_ids_say_which_and_errors_say_what_to_do() -> None:
    keys = Keys()
    _, key = keys.create("laptop", chance(), 100)
    with pytest.raises(MeshError, match="there is a key 'laptop' already"):
        keys.create("laptop", chance(), 100)
    with pytest.raises(MeshError, match="no key 'phone' counts here; there is: laptop"):
        keys.revoke("phone", 1)
    keys.merge(others_keys("laptop"))  # made on another node at the same time
    with pytest.raises(MeshError, match="'laptop' is more than one key: "):
        keys.revoke("laptop", 1)
    assert keys.revoke(key.id, 1).id == key.id


def others_keys(name: str) -> tuple[ClientKey, ...]:
    other = Keys()
    other.create(name, chance(), 100)
    return other.all


def test_the_bound_is_named() -> None:
    keys = Keys(keys_max=2)
    for name in ("a", "b"):
        keys.create(name, chance(), 1)
    with pytest.raises(MeshError, match="2 keys were made, which is the bound"):
        keys.create("c", chance(), 1)
    assert KEYS_MAX * 200 < 4 << 20, "all of them fit one frame"


IDS = st.sampled_from([f"{n:012x}" for n in range(5)])
KEY = st.builds(
    ClientKey,
    id=IDS,
    name=st.sampled_from("ab"),
    digest=st.sampled_from(["0" * 64, "1" * 64]),
    made=st.integers(0, 2),
    revoked=st.none() | st.integers(0, 3),
)
ENDED = st.builds(lambda key, off: structs.replace(key, off=off and key.revoked is not None), KEY, st.booleans())
TOLD = st.lists(st.lists(ENDED, max_size=4), max_size=6)


@given(told=TOLD, bound=st.integers(1, 5), data=st.data())
def test_order_and_repetition_never_matter(told: list[list[ClientKey]], bound: int, data: st.DataObject) -> None:
    one, other = Keys(keys_max=bound), Keys(keys_max=bound)
    for keys in told:
        one.merge(keys)
    for keys in data.draw(st.permutations(told + told[:2])):
        other.merge(keys)
    assert (one.needed, one.all, one.live) == (other.needed, other.all, other.live)


@given(told=TOLD, bound=st.integers(1, 5), cut=st.integers(0, 6))
def test_two_nodes_that_tell_each_other_all_they_know_agree(told: list[list[ClientKey]], bound: int, cut: int) -> None:
    here, there = Keys(keys_max=bound), Keys(keys_max=bound)
    for node, part in ((here, told[:cut]), (there, told[cut:])):
        for keys in part:
            node.merge(keys)
    here.merge(there.all)
    there.merge(here.all)
    assert (here.needed, here.all) == (there.needed, there.all)
    assert not here.merge(there.all), "and then there is nothing more to tell"


@given(told=TOLD)
def test_a_key_revoked_once_never_counts_again(told: list[list[ClientKey]]) -> None:
    keys, gone = Keys(), set[str]()
    for more in told:
        keys.merge(more)
        gone |= {k.id for k in keys.all if k.revoked is not None}
        assert not gone & {k.id for k in keys.live}
