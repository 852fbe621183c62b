"""Networks that are not as they should be: without multicast, torn in two, gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.settings import MembershipSettings
from tests.lab import network_trials as trials
from tests.lab.conftest import Place
from tests.lab.macs import Asker, Mac, agreed, coordinator_of, wait_until
from tests.lab.network_trials import no_mdns_on_the_lan
from tests.lab.told import NOBODY

Figure = Callable[[str, float], None]


def known(mac: Mac) -> set[str]:
    return {n.name for n in mac.said().nodes}


def test_without_multicast_on_the_lan_one_mac_is_added_by_hand_and_the_third_follows(
    place: Callable[[int], Place], figure: Figure
) -> None:
    lab = place(3)
    macs = [lab.mac(n) for n in (1, 2, 3)]
    with no_mdns_on_the_lan(lab.lab):
        for mac in macs:
            mac.start()
        wait_until(lambda: all(mac.coordinator == mac.name for mac in macs), "each rules itself")
        assert [known(mac) for mac in macs] == [{"mac1"}, {"mac2"}, {"mac3"}]
        at = time.monotonic()
        added = macs[0].client.add(macs[1].ip)
        assert added["name"] == "mac2"
        wait_until(lambda: agreed(macs[:2]), "two agree")
        figure("from `mesh add` until both agree", time.monotonic() - at)
        wait_until(lambda: macs[0].node("mac2").via == "static", "it says how it knows the second")
        assert not macs[0].node("mac2").far
        at = time.monotonic()
        macs[1].client.add(f"{macs[2].ip}:4000")
        wait_until(lambda: agreed(macs), "the third is known to all, the first by what the second says")
        figure("from the second `mesh add` until all three agree", time.monotonic() - at)
        wait_until(lambda: macs[0].node("mac3").via == "gossip", "it says how it knows the third")
        macs[1].stop()
        macs[1].start()
        again_s = wait_until(lambda: agreed(macs), "a restarted Mac finds its peers again without mDNS")
        figure("from a Mac's restart until all three agree", again_s)


def test_a_mac_that_may_not_send_multicast_works_alone_and_says_why(place: Callable[[int], Place], model: Path) -> None:
    lab = place(2)
    mac, other = lab.mac(1, model=model), lab.mac(2)
    rules = "table ip quiet {\n chain f { type filter hook output priority 0; udp dport 5353 drop; }\n}\n"
    for name in ("mac1", "mac2"):
        lab.lab.run(name, ["nft", "-f", "-"], input=rules, text=True, check=True)
    mac.start()
    other.start()
    wait_until(lambda: agreed([mac]) and mac.said().mesh.alone, "it works")
    wait_until(lambda: any("multicast" in note for note in mac.said().notes), "a note says why it is alone")
    assert (mac.said().mesh.coordinator, known(mac)) == ("mac1", {"mac1"})
    with Asker(lab.lab, "mac1", "http://localhost:4000/v1", model.name, count=2) as client:
        assert [s.error for s in client.go().wait()] == ["", ""]
    for name in ("mac1", "mac2"):
        lab.lab.run(name, ["nft", "delete", "table", "ip", "quiet"], check=True)
    wait_until(lambda: agreed([mac, other]), "they find each other as soon as they may")
    wait_until(lambda: not any("multicast" in note for note in mac.said().notes), "the note is gone")


def test_a_torn_mesh_is_two_and_a_healed_one_has_one_coordinator(
    place: Callable[[int], Place], model: Path, figure: Figure
) -> None:
    lab = place(2)
    macs = [lab.mac(1, model=model), lab.mac(2, model=model)]
    for mac in macs:
        mac.start()
    wait_until(lambda: agreed(macs), "both agree")
    for round_ in ("first", "second"):
        lab.lab.partition(["mac1"], ["mac2"])
        wait_until(lambda: all(mac.coordinator == mac.name for mac in macs), "each rules itself")
        with (
            Asker(lab.lab, "mac1", "http://localhost:4000/v1", model.name, count=2) as one,
            Asker(lab.lab, "mac2", "http://localhost:4000/v1", model.name, count=2) as two,
        ):
            one.go()
            two.go()
            assert [s.error for s in (*one.wait(), *two.wait())] == [""] * 4
        lab.lab.heal()
        healed_s = wait_until(lambda: agreed(macs), "one mesh again")
        figure(f"from the {round_} healing until both agree", healed_s)


@pytest.mark.parametrize("how", ["silent", "carrier"])
def test_a_mac_whose_cable_was_out_is_back_when_it_is_in_again(
    place: Callable[[int], Place], figure: Figure, how: str
) -> None:
    lab = place(3)
    macs = [lab.mac(n) for n in (1, 2, 3)]
    for mac in macs:
        mac.start()
    wait_until(lambda: agreed(macs), "all agree")
    lab.lab.cut("mac3", how)
    wait_until(lambda: agreed(macs[:2]) and macs[2].coordinator == "mac3", "two go on, one rules itself")
    lab.lab.restore("mac3")
    figure(f"from the cable ({how}) in again until all agree", wait_until(lambda: agreed(macs), "all agree again"))


def test_a_cable_an_address_an_interface_changes_and_the_mesh_heals_without_a_restart(figure: Figure) -> None:
    with trials.macs_of(3) as macs:
        started = [mac.started_at for mac in macs]
        figure("link out and in again (its system sees it) until all agree", trials.link_flaps(macs))
        figure("interface off and on until all agree", trials.interface_flaps(macs))
        coordinator = coordinator_of(macs)
        for number, mac in enumerate((coordinator, *(m for m in macs if m is not coordinator)), 100):
            order = [*(m for m in macs if m is not mac), mac]
            address = f"{mac.lab.subnet}.0.{number}"
            what = "the coordinator's" if mac is coordinator else "a node's"
            figure(f"{what} new address until the others use it", trials.address_changes(order, address))
        assert [mac.started_at for mac in macs] == started


def test_a_node_that_starts_without_a_network_joins_when_it_gets_one(figure: Figure) -> None:
    with trials.macs_of(3, started=False) as macs:
        figure("from a new interface until all agree", trials.interface_added(macs))


def test_where_multicast_is_blocked_one_mesh_add_joins_all_five(figure: Figure) -> None:
    with trials.macs_of(5, started=False) as macs:
        joined = trials.joined_by_hand(macs)
        figure("from the one `mesh add` until all five agree", joined.seconds)
        (note,) = [note for note in joined.notes if "never by mDNS" in note]
        assert "mesh add HOST" in note


def test_a_coordinator_that_slept_for_an_hour_steps_back_before_it_speaks(figure: Figure) -> None:
    with trials.sleepers_of(3) as macs:
        night = trials.coordinator_sleeps(macs)
        figure("from waking until all agree", night.seconds)
        assert night.said[0].coordinator == NOBODY, "it knows that it may have been succeeded"
        assert all(len(who) == 1 for who in night.terms.values()), night.terms
        [sleeper] = [mac for mac in macs if "announces itself anew" in mac.output]
        assert coordinator_of(macs) is not sleeper


def test_what_this_machine_itself_forbids_is_said_with_what_to_do(place: Callable[[int], Place]) -> None:
    lab = place(2)
    macs = [lab.mac(1), lab.mac(2)]
    for mac, other in (macs, macs[::-1]):
        lab.lab.run(mac.name, ["ip", "-6", "addr", "flush", "dev", "eth0"], check=True)  # or that way would be taken
        lab.lab.run(mac.name, ["ip", "route", "add", "prohibit", f"{other.ip}/32"], check=True)
    for mac in macs:
        mac.start()

    def told() -> bool:
        """By who asks the other one to let it in: only one of two does."""
        why = "a firewall or a route of this machine forbids it"
        return any(
            any(why in node.reason for node in status.nodes) and any(why in note for note in status.notes)
            for status in (mac.said() for mac in macs)
        )

    wait_until(told, "the reason and a note say that it is forbidden here")
    for mac, other in (macs, macs[::-1]):
        lab.lab.run(mac.name, ["ip", "route", "del", "prohibit", f"{other.ip}/32"], check=True)
    wait_until(lambda: agreed(macs), "allowed again, they agree")
    wait_until(lambda: not any("forbids" in note for mac in macs for note in mac.said().notes), "the note is gone")


def test_ten_thousand_spoofed_records_cost_little_and_are_told(figure: Figure) -> None:
    with trials.macs_of(5, started=False) as macs:
        flood = trials.flooded(macs, 10_000, 2000)
        figure(f"{flood.records} records in", flood.seconds)
        figure("processor time of a daemon meanwhile", flood.cpu_s)
        print(f"    memory it grew: {flood.grown_bytes / 1e6:.1f} MB")
        figure("from the start of a node in the middle of it until all agree", flood.newcomer_s)
        assert any("mDNS is flooded" in note and macs[-1].ip in note for note in flood.notes), flood.notes
        assert flood.grown_bytes < 64 << 20
        ghosts = [node for node in macs[0].said().nodes if node.name.startswith("ghost")]
        assert len(ghosts) <= MembershipSettings().strangers_max
        assert not any(node.state == "ok" for node in ghosts)


def test_a_network_of_ipv6_link_local_addresses_only_is_a_mesh(place: Callable[[int], Place], figure: Figure) -> None:
    """Macs and cables between them, and later a router that gives them IPv4 addresses."""
    lab = place(4)
    macs, last = [lab.mac(n) for n in (1, 2, 3)], lab.mac(4)
    for mac in macs:
        lab.lab.run(mac.name, ["ip", "-4", "addr", "flush", "dev", "eth0"], check=True)
        mac.start()
    figure("from the start until all agree, IPv6 link-local only", wait_until(lambda: agreed(macs), "all agree"))
    for mac in macs:
        others = [node for node in mac.said().nodes if node.name != mac.name]
        assert {node.via for node in others} <= {"mdns", "gossip"}
        assert "mdns" in {node.via for node in others}
        assert all(node.addresses[0].startswith("fe80:") and "%eth0" in node.addresses[0] for node in others)
    for mac in macs:
        lab.lab.readdr(mac.name, mac.ip)
    lab.lab.run("mac4", ["ip", "-6", "addr", "flush", "dev", "eth0"], check=True)
    last.start()
    wait_until(lambda: agreed([*macs, last]), "one with IPv4 only is found by those that began without")
