"""Places in all and for each address: what is counted comes back to nothing, and who holds few finds one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.crowd import Crowd, is_loopback
from node.settings import CrowdSettings

LAN, OTHER = "192.168.1.7", "192.168.1.8"


def filled(crowd: Crowd, address: str, count: int) -> Crowd:
    for _ in range(count):
        crowd.enter(address)
    return crowd


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", ""])
def test_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["192.168.1.7", "::ffff:10.0.0.1", "fe80::1%en0", "fd7a::1", "no address"])
def test_other_machines(address: str) -> None:
    assert not is_loopback(address)


def test_one_address_has_a_bound_of_its_own_and_this_machine_a_larger_one() -> None:
    crowd = Crowd(CrowdSettings(all_max=100, address_max=3, loopback_max=5))
    assert filled(crowd, LAN, 2).full(LAN) is None
    assert filled(crowd, LAN, 1).full(LAN) == "address"
    assert crowd.full(OTHER) is None
    assert filled(crowd, "127.0.0.1", 4).full("127.0.0.1") is None
    assert filled(crowd, "127.0.0.1", 1).full("127.0.0.1") == "address"
    crowd.leave(LAN)
    assert crowd.full(LAN) is None


def test_the_last_places_are_for_those_who_hold_few() -> None:
    crowd = Crowd(CrowdSettings(all_max=100, address_max=1000, few=2, few_part=0.25))
    assert filled(crowd, LAN, 74).full(LAN) is None
    assert filled(crowd, LAN, 1).full(LAN) == "all"
    assert crowd.full(OTHER) is None
    assert filled(crowd, OTHER, 2).full(OTHER) == "all"
    for n in range(23):
        assert crowd.full(f"10.0.0.{n}") is None
        crowd.enter(f"10.0.0.{n}")
    assert crowd.full("10.0.1.1") == "all"


@given(st.lists(st.tuples(st.sampled_from([LAN, OTHER, "::1", ""]), st.booleans()), max_size=200))
def test_what_entered_and_left_is_counted(steps: list[tuple[str, bool]]) -> None:
    crowd, inside = Crowd(CrowdSettings(all_max=20, address_max=5, loopback_max=8)), list[str]()
    for address, comes in steps:
        if comes and crowd.full(address) is None:
            crowd.enter(address)
            inside.append(address)
        elif not comes and address in inside:
            crowd.leave(address)
            inside.remove(address)
        assert crowd.count == len(inside) <= 20
        assert crowd.of(address) == inside.count(address) <= crowd.most(address)
    for address in inside:
        crowd.leave(address)
    assert crowd.count == 0
    assert not crowd._held, "an address that has left is forgotten"
