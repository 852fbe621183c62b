"""A healthy mesh of three Macs that were told only `mesh-enabled`, and a fourth machine that is only a client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.model import build_tiny, default_cache
from tests.lab.conftest import Place
from tests.lab.macs import Asker, Mac, agreed, coordinator_of, cut_short, leads_to, wait_until
from tests.lab.netlab import Lab


@dataclass
class Trio:
    """mac1 came first, so it coordinates; it holds a model of its own. mac2 and mac3 hold the one that is asked for.
    mac4 is no node: it has avahi and nss-mdns."""

    lab: Lab
    macs: list[Mac]
    model: str
    found_s: float  # from the start of the last daemon until all see all

    def asker(self, mac: str, **of: Any) -> Asker:
        """The client on a Mac, asking that Mac."""
        return Asker(self.lab, mac, "http://localhost:4000/v1", self.model, **of)


@pytest.fixture(scope="module")
def trio(shared_place: Callable[[int], Place], model: Path) -> Trio:
    place = shared_place(4)
    other = build_tiny(default_cache() / "tiny-other", seed=6)
    macs = [place.mac(1, model=other), place.mac(2, model=model), place.mac(3, model=model)]
    macs[0].start()
    # Of two that still look around, either may join the other; who has founded is joined.
    door = macs[0].home / "mesh" / "door.json"
    wait_until(lambda: door.exists() and json.loads(door.read_text())["settled"], "the first Mac has founded a mesh")
    for mac in macs[1:]:
        mac.start()
    wait_until(lambda: all(_all_seen(mac, macs) for mac in macs), "every Mac sees all three")
    found_s = time.monotonic() - macs[-1].started_at
    wait_until(lambda: agreed(macs), "all agree and every model is ready")
    place.lab.avahi("mac4")
    return Trio(place.lab, macs, model.name, found_s)


def _all_seen(mac: Mac, macs: list[Mac]) -> bool:
    status = mac.status()
    return status is not None and {n.name for n in status.nodes if n.state == "ok"} == {m.name for m in macs}


def test_three_macs_find_each_other_without_configuration(trio: Trio, figure: Callable[[str, float], None]) -> None:
    figure("from the start of the third daemon until all three see all three (goal 5)", trio.found_s)
    assert trio.found_s < 15
    ips = [mac.ip for mac in trio.macs]
    wait_until(lambda: all([n.addresses[0] for n in m.said().nodes] == ips for m in trio.macs), "by their addresses")
    for mac in trio.macs:
        status = mac.said()
        assert (status.mesh.coordinator, status.mesh.alone) == ("mac1", False)
        assert {n.via for n in status.nodes if n.name != mac.name} <= {"mdns", "gossip"}


def test_a_bonjour_browser_shows_each_macs_models_headroom_and_queue(trio: Trio) -> None:
    models = {"mac1": "tiny-other", "mac2": trio.model, "mac3": trio.model}
    seen: dict[str, dict[str, str]] = {}

    def all_advertised() -> bool:
        seen.clear()
        done = trio.lab.run("mac4", ["avahi-browse", "-rtp", "_mlx-stack._tcp"], capture_output=True, text=True)
        for line in done.stdout.splitlines():
            fields = line.split(";", 9)
            if fields[0] == "=" and fields[2] == "IPv4":
                txt = dict(item.split("=", 1) for item in fields[9].strip('"').split('" "'))
                seen[txt["name"]] = {**txt, "address": fields[7], "port": fields[8]}
        return {name: txt["m"] for name, txt in seen.items()} == models and all(idle(mac) for mac in trio.macs)

    def idle(mac: Mac) -> bool:
        txt, node = seen[mac.name], mac.node(mac.name)
        near = abs(int(txt["mem"]) - node.memory.headroom_bytes / 2**30) < 2
        return near and (txt["q"], txt["st"]) == ("0", "L" if mac.name == "mac1" else "F")

    # Coarse facts are said every ten seconds at most.
    wait_until(all_advertised, f"avahi-browse shows {models}, the headroom, empty queues and who coordinates")
    for mac in trio.macs:
        txt, node = seen[mac.name], mac.node(mac.name)
        assert txt["address"] in [address.partition("%")[0] for address in node.addresses]
        assert (txt["port"], txt["api"]) == ("4000", "4000")


def test_the_name_leads_to_the_coordinator_and_answers(trio: Trio) -> None:
    wait_until(lambda: leads_to(trio.lab, "mac4") == trio.macs[0].ip, "the name leads to the coordinator")
    began = time.monotonic()
    for stream in (False, True):
        with Asker(trio.lab, "mac4", "http://mlx-mesh.local:4000/v1", trio.model, count=2, stream=stream) as client:
            said = client.go().wait()
        assert [s.error for s in said] == ["", ""]
        assert all(s.text and (s.chunks > 1) is stream for s in said)
    route = trio.macs[0].routes(4, began)[0]
    assert route.stream
    assert (route.edge, route.coordinator, route.outcome) == ("mac1", "mac1", "ok")
    assert route.node in ("mac2", "mac3")


def test_the_coordinator_places_what_enters_elsewhere_and_carries_none_of_it(trio: Trio) -> None:
    before, began = trio.macs[0].metric("mlx_mesh_bytes_total"), time.monotonic()
    with trio.asker("mac2", workers=6, count=3) as plain, trio.asker("mac3", workers=3, count=3, stream=True) as stream:
        said = [*plain.go().said(), *stream.go().wait(), *plain.wait()]
    assert len(said) == 27
    assert [s.error for s in said if s.error] == []
    routes = trio.macs[1].routes(18, began)
    assert {r.coordinator for r in routes} == {"mac1"}
    assert {r.node for r in routes} == {"mac2", "mac3"}, "six at a time fit on no single Mac: some crossed the network"
    assert all(r.decision is not None and r.decision.candidates for r in routes)
    assert trio.macs[0].metric("mlx_mesh_bytes_total") == before
    assert trio.macs[1].metric("mlx_mesh_bytes_total") > 0


def test_a_drained_mac_finishes_what_it_has_and_gets_nothing_new(trio: Trio) -> None:
    began, finishes = time.monotonic(), list[bool]()

    def known() -> bool:
        node = trio.macs[0].sees("mac3")
        finishes.append(node is not None and node.state == "draining" and node.in_flight > 0)
        return _state(trio.macs[1], "mac3") == "draining"

    with trio.asker("mac2", workers=12, count=1, max_tokens=120) as long:
        long.go()
        wait_until(lambda: _in_flight(trio.macs[0], "mac3") > 0, "mac3 works")
        trio.macs[0].client.drain("mac3")
        try:
            wait_until(known, "mac2 knows of the drain")
            assert any(finishes), "too fast to see: nothing was in flight any more"
            with trio.asker("mac2", workers=2, count=2) as short:
                assert [s.error for s in short.go().wait()] == [""] * 4
            assert [s.error for s in long.wait()] == [""] * 12
            routes = trio.macs[1].routes(16, began)
            assert {r.node for r in routes if r.completion_tokens == 8} == {"mac2"}
            assert {r.node for r in routes if r.completion_tokens == 120} == {"mac2", "mac3"}
            others = [a for r in routes for a in r.attempts if a.outcome != "ok"]
            assert all("draining" in (a.error or "") for a in others), "only who was on the way there was turned away"
        finally:
            trio.macs[0].client.undrain("mac3")
    wait_until(lambda: agreed(trio.macs), "mac3 is back")


def test_a_disabled_mac_drains_says_goodbye_serves_alone_and_comes_back(
    trio: Trio, figure: Callable[[str, float], None]
) -> None:
    mac1, mac2, mac3 = trio.macs
    pid, began = mac3.client.status().pid, time.monotonic()
    with trio.asker("mac2", workers=12, count=1, max_tokens=120) as long:
        long.go()
        wait_until(lambda: _in_flight(mac1, "mac3") > 0, "mac3 works for mac2")
        with _in_background(mac3.client.disable) as left:
            wait_until(lambda: _state(mac1, "mac3") == "draining" or left(), "mac3 drains")
            wait_until(left, "mac3 has left")
        gone_s = wait_until(lambda: _has_left(mac1, "mac3") and _has_left(mac2, "mac3"), "the others know")
        figure("from the end of `mesh disable` until both others show the Mac as dead", gone_s)
        assert [s.error for s in long.wait()] == [""] * 12
    assert cut_short(mac2.routes(12, began)) == [], "it left before its work was done"
    wait_until(lambda: _is_alone(mac3), "it knows itself only")
    assert not mac3.said().mesh.enabled
    with trio.asker("mac3", count=2) as alone:
        assert [s.error for s in alone.go().wait()] == ["", ""]
    at = time.monotonic()
    mac3.client.enable()
    coordinator = coordinator_of(trio.macs)
    figure("from `mesh enable` until all agree again", time.monotonic() - at)
    assert mac3.client.status().pid == pid
    assert coordinator is not mac3, "who comes back takes nothing from who has been there"


def _in_flight(mac: Mac, name: str) -> int:
    node = mac.sees(name)
    return node.in_flight if node else 0


def _state(mac: Mac, name: str) -> str:
    node = mac.sees(name)
    return node.state if node else ""


def _has_left(mac: Mac, name: str) -> bool:
    node = mac.sees(name)
    return node is not None and node.state == "dead" and node.reason.startswith("left")


def _is_alone(mac: Mac) -> bool:
    status = mac.said()
    return status.mesh.alone and [n.name for n in status.nodes] == [mac.name]


@contextmanager
def _in_background(call: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """`call` in a thread; yields a function that is true once it has returned. Its exception is raised at the end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: not thread.is_alive()
    finally:
        thread.join(60)
    if raised:
        raise raised[0]
