"""mesh/addresses.py: on a Mac with Wi-Fi, Ethernet, Thunderbolt, Tailscale and Apple's own radios."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mesh.addresses import Address, Addresses, in_tailnet, is_tunnel, listening, plain, read_interfaces
from mesh.interfaces import Kind, kind_of, kinds, ports_of

MAC = (
    Address("awdl0", 9, "fe80::a", 64),
    Address("bridge0", 7, "169.254.3.5", 16),
    Address("bridge0", 7, "fe80::7", 64),
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
# The form of `networksetup -listallhardwareports`, put together from published outputs of several Macs
PORTS = (Path(__file__).parents[1] / "recorded" / "hardware_ports.txt").read_text()


def addresses(*bind: str, of: tuple[Address, ...] = MAC) -> Addresses:
    ports = ports_of(PORTS)

    def look_up(names: Collection[str]) -> dict[str, Kind]:
        return {name: kind_of(name, ports, "darwin") for name in names}

    found = Addresses(bind, read=lambda: of, kinds=look_up)
    found.learn()
    return found


def test_thunderbolt_then_ethernet_then_wifi_then_tunnels_and_apples_radios_never() -> None:
    assert addresses().advertised() == (
        "169.254.3.5", "fe80::7", "10.0.0.5", "fd00::5", "192.168.1.5", "fe80::5", "100.101.1.2",
    )  # fmt: skip
    assert addresses().multicast() == ("169.254.3.5", "192.168.1.5", "10.0.0.5")
    assert not addresses().loopback_only
    assert addresses().uses(7)
    assert not addresses().uses(9), "a radio of Apple's that comes and goes is no change of ours"


def test_a_machine_without_ipv4_speaks_mdns_over_ipv6() -> None:
    of = (Address("en0", 4, "fe80::5", 64), Address("en0", 4, "fd00::5", 64), Address("en7", 5, "10.0.0.5", 24))
    assert addresses(of=of).multicast() == ("10.0.0.5",)
    assert addresses(of=of[:2]).multicast() == ("fe80::5%en0",)
    assert addresses(of=of[1:2]).multicast() == ()


def test_networks_inside_this_machine_are_none() -> None:
    of = (Address("bridge100", 14, "192.168.64.1", 24), Address("veth1a2", 15, "fe80::1", 64), MAC[4])
    assert addresses(of=of).advertised() == (MAC[4].ip,)


def test_bind_limits_them_by_address_or_interface() -> None:
    assert addresses("127.0.0.1").advertised() == ("127.0.0.1",)
    assert addresses("127.0.0.1").multicast() == ("127.0.0.1",)
    assert addresses("127.0.0.1").loopback_only
    assert addresses("en0").advertised() == ("192.168.1.5", "fe80::5")
    assert addresses("en0", "127.0.0.1").multicast() == ("192.168.1.5",)  # loopback is of no use to others
    assert addresses("0.0.0.0", "::").multicast() == addresses().multicast()


def test_an_interface_in_bind_is_listened_on_at_all_its_addresses() -> None:
    assert listening((), lambda: MAC) == ()
    assert listening(("en0", "127.0.0.1"), lambda: MAC) == ("192.168.1.5", "fe80::5%en0", "127.0.0.1")
    assert listening(("192.168.1.5", "en0"), lambda: MAC) == ("192.168.1.5", "fe80::5%en0")
    assert listening(("en9",), lambda: MAC) == ("en9",)  # the system will say what is wrong with it


def test_a_machine_without_network_still_has_loopback() -> None:
    assert addresses(of=MAC[9:11]).multicast() == ("127.0.0.1",)
    assert addresses(of=()).multicast() == ()


def test_what_another_machine_calls_its_address_and_is_none_is_left_out() -> None:
    told = ["addresses", "", "192.168.1.77", "1.2.3.4.5", "::1", "mini.local", "192.168.1.77"]
    assert addresses().local(told) == ("192.168.1.77", "::1")
    assert len(addresses().local([f"10.0.{n // 256}.{n % 256}" for n in range(1000)])) == 64


def test_what_is_far() -> None:
    here = addresses()
    near = ["192.168.1.77", "10.0.0.1", "fd00::9", "fe80::9%en0", "127.0.0.1", "::1", "no address", "169.254.9.9"]
    assert [a for a in near if here.is_far(a)] == []
    assert all(here.is_far(a) for a in ("192.168.2.1", "100.101.9.9", "8.8.8.8", "fd01::1"))
    assert here.all_far(["8.8.8.8"])
    assert not here.all_far(["8.8.8.8", "10.0.0.1"])
    assert not here.all_far([])
    assert in_tailnet("100.101.9.9")
    assert not in_tailnet("mini")
    assert is_tunnel("utun3")
    assert not is_tunnel("en0")


def test_the_faster_cable_is_dialled_first() -> None:
    here = addresses()
    wifi, ethernet, thunderbolt, vpn = "192.168.1.9", "10.0.0.9", "169.254.3.9", "100.101.9.9"
    assert here.ranked([vpn, wifi, ethernet, thunderbolt]) == (thunderbolt, ethernet, wifi, vpn)
    assert here.ranked(["8.8.8.8", "fd00::9", "10.0.0.9", "8.8.8.8"]) == ("10.0.0.9", "fd00::9", "8.8.8.8")
    assert here.ranked(["10.0.0.9", "10.0.0.8"]) == ("10.0.0.9", "10.0.0.8"), "the peer's own order otherwise"


def test_a_link_local_address_is_dialled_with_the_scope_of_this_machine() -> None:
    here = addresses()
    assert here.ranked(["fe80::9"]) == ("fe80::9%bridge0", "fe80::9%en0"), "without scope it may be on any of them"
    assert here.ranked(["fe80::9%4"]) == ("fe80::9%4",), "heard on an interface: it is there"
    assert here.ranked(["fe80::9", "192.168.1.9"]) == ("fe80::9%bridge0", "192.168.1.9", "fe80::9%en0")
    assert addresses(of=MAC[9:]).ranked(["fe80::9"]) == (), "no interface leads there"


words = st.sampled_from(["10.0.0.9", "fe80::1", "fe80::1%en0", "192.168.1.7", "8.8.8.8", "::1", "", "mini", "fe80::1%"])


@given(st.lists(words | st.ip_addresses().map(str)))
def test_ranking_keeps_every_address_once_and_the_order_given_decides_nothing_but_ties(given: list[str]) -> None:
    here = addresses()
    there = here.ranked(given)
    assert len(set(there)) == len(there)
    assert {a.partition("%")[0] for a in there} == {a.partition("%")[0] for a in given}
    far = [here.is_far(a) for a in there]
    assert far == sorted(far)


def test_a_change_is_noticed() -> None:
    now: list[tuple[Address, ...]] = [MAC]
    here = Addresses(read=lambda: now[0], kinds=lambda names: dict.fromkeys(names, Kind.WIFI))
    assert not here.refresh()
    assert here.strange
    here.learn()
    assert not here.strange
    now[0] = MAC[1:5]
    assert here.refresh()
    assert not here.strange
    assert here.advertised() == ("192.168.1.5", "169.254.3.5", "fe80::7")
    now[0] = (*MAC[1:5], Address("docker1", 13, "172.18.0.1", 16))
    assert not here.refresh(), "a container that starts changes nothing for others"
    now[0] = (*MAC[1:5], Address("en9", 14, "10.1.0.5", 24))
    assert here.refresh()
    assert here.strange
    assert "172.18.0.1" not in here.mine
    assert "10.1.0.5" in here.mine


def test_this_machine_can_be_read() -> None:
    assert "127.0.0.1" in {a.ip for a in read_interfaces()}
    here = Addresses()
    here.learn()
    assert not here.strange
    assert [a for a in here.advertised() if "%" in a or not ip_address(a)] == []


def test_an_ipv4_caller_of_a_socket_for_both_families_is_known_by_its_own_address() -> None:
    """As ::ffff:... it would pass for a node of another site."""
    assert plain("::ffff:192.168.1.5") == "192.168.1.5"
    assert not addresses().is_far(plain("::ffff:192.168.1.7"))
    assert [plain(a) for a in ("192.168.1.5", "fe80::5%en0", "::1", "")] == ["192.168.1.5", "fe80::5%en0", "::1", ""]


# mesh/interfaces.py


def test_hardware_ports_of_a_mac() -> None:
    assert ports_of(PORTS) == {
        "en5": Kind.ETHERNET,  # USB 10/100/1000 LAN
        "en8": Kind.ETHERNET,  # Thunderbolt Ethernet Slot 1: an Ethernet adapter, whatever it hangs on
        "en7": Kind.ETHERNET,
        "en4": Kind.SLOW,
        "en6": Kind.SLOW,
        "bridge0": Kind.THUNDERBOLT,
        "en0": Kind.WIFI,
        "en1": Kind.THUNDERBOLT,
        "en2": Kind.THUNDERBOLT,
        "en3": Kind.THUNDERBOLT,
    }
    assert ports_of("") == {}
    assert ports_of("Hardware Port: Wi-Fi\nDevice:\nDevice: en0\n") == {"en0": Kind.WIFI}
    assert ports_of("networksetup: command not found") == {}


@given(st.text())
def test_whatever_networksetup_says_is_read(text: str) -> None:
    ports_of(text)


def test_interfaces_of_linux(tmp_path: Path) -> None:
    for name, facts in {
        "eth0": ("1", ()), "wlan0": ("1", ("wireless",)), "wlp2s0": ("1", ("phy80211",)), "tun9": ("65534", ()),
        "tailscale0": ("65534", ()), "gre1": ("778", ()), "thunderbolt0": ("1", ()), "odd0": ("x", ()),
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(facts[0] + "\n")
        for folder in facts[1]:
            (tmp_path / name / folder).mkdir()

    def kind(name: str) -> Kind:
        return kind_of(name, {}, "linux", tmp_path)

    assert (kind("eth0"), kind("thunderbolt0")) == (Kind.ETHERNET, Kind.THUNDERBOLT)
    assert {kind(name) for name in ("wlan0", "wlp2s0")} == {Kind.WIFI}
    assert {kind(name) for name in ("tun9", "tailscale0", "gre1")} == {Kind.VPN}
    assert {kind(name) for name in ("odd0", "gone0")} == {Kind.ETHERNET}
    assert kinds(["lo", "nothing"], "linux")["nothing"] is Kind.ETHERNET
    assert kind_of("bridge0", {}, "darwin") is Kind.THUNDERBOLT, "networksetup could not be asked"
