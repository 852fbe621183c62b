"""mesh/addresses.py: on a Mac with Wi-Fi, Ethernet, Tailscale and Apple's own radios."""

from __future__ import annotations

from mesh.addresses import Address, Addresses, in_tailnet, listening, plain, read_interfaces

MAC = (
    Address("awdl0", 9, "fe80::a", 64),
    Address("docker0", 12, "172.17.0.1", 16),
    Address("en0", 4, "192.168.1.5", 24),
    Address("en0", 4, "fe80::5", 64),
    Address("en7", 5, "10.0.0.5", 24),
    Address("en7", 5, "fd00::5", 64),
    Address("llw0", 10, "fe80::b", 64),
    Address("lo0", 1, "127.0.0.1", 8),
    Address("lo0", 1, "::1", 128),
    Address("utun3", 20, "100.101.1.2", 10),
)


def addresses(*bind: str, of: tuple[Address, ...] = MAC) -> Addresses:
    return Addresses(bind, read=lambda: of)


def test_the_lan_comes_first_and_apples_radios_never() -> None:
    assert addresses().advertised() == ("192.168.1.5", "10.0.0.5", "fd00::5", "fe80::5%en0", "100.101.1.2")
    assert addresses().multicast() == ("192.168.1.5", "10.0.0.5")
    assert not addresses().loopback_only


def test_bind_limits_them_by_address_or_interface() -> None:
    assert addresses("127.0.0.1").advertised() == ("127.0.0.1",)
    assert addresses("127.0.0.1").multicast() == ("127.0.0.1",)
    assert addresses("127.0.0.1").loopback_only
    assert addresses("en0").advertised() == ("192.168.1.5", "fe80::5%en0")
    assert addresses("en0", "127.0.0.1").multicast() == ("192.168.1.5",)  # loopback is of no use to others
    assert addresses("0.0.0.0", "::").multicast() == addresses().multicast()


def test_an_interface_in_bind_is_listened_on_at_all_its_addresses() -> None:
    assert listening((), lambda: MAC) == ()
    assert listening(("en0", "127.0.0.1"), lambda: MAC) == ("192.168.1.5", "fe80::5%en0", "127.0.0.1")
    assert listening(("192.168.1.5", "en0"), lambda: MAC) == ("192.168.1.5", "fe80::5%en0")
    assert listening(("en9",), lambda: MAC) == ("en9",)  # the system will say what is wrong with it


def test_a_machine_without_network_still_has_loopback() -> None:
    assert addresses(of=MAC[7:9]).multicast() == ("127.0.0.1",)
    assert addresses(of=()).multicast() == ()


def test_what_is_far() -> None:
    here = addresses()
    near = ["192.168.1.77", "10.0.0.1", "fd00::9", "fe80::9%en0", "127.0.0.1", "::1", "no address"]
    assert [a for a in near if here.is_far(a)] == []
    assert all(here.is_far(a) for a in ("192.168.2.1", "100.101.9.9", "8.8.8.8", "fd01::1"))
    assert here.ranked(["8.8.8.8", "fd00::9", "10.0.0.9", "8.8.8.8"]) == ("10.0.0.9", "fd00::9", "8.8.8.8")
    assert here.all_far(["8.8.8.8"])
    assert not here.all_far(["8.8.8.8", "10.0.0.1"])
    assert not here.all_far([])
    assert in_tailnet("100.101.9.9")
    assert not in_tailnet("mini")


def test_a_change_is_noticed() -> None:
    now: list[tuple[Address, ...]] = [MAC]
    here = Addresses(read=lambda: now[0])
    assert not here.refresh()
    now[0] = MAC[:3]
    assert here.refresh()
    assert here.advertised() == ("192.168.1.5",)


def test_this_machine_can_be_read() -> None:
    assert "127.0.0.1" in {a.ip for a in read_interfaces()}


def test_an_ipv4_caller_of_a_socket_for_both_families_is_known_by_its_own_address() -> None:
    """As ::ffff:... it would pass for a node of another site."""
    assert plain("::ffff:192.168.1.5") == "192.168.1.5"
    assert not addresses().is_far(plain("::ffff:192.168.1.7"))
    assert [plain(a) for a in ("192.168.1.5", "fe80::5%en0", "::1", "")] == ["192.168.1.5", "fe80::5%en0", "::1", ""]
