"""Copied disks: two Macs with one node id. The younger takes a new one by itself; nobody is disturbed, all are told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.client import MeshClientError
from tests.lab.conftest import Place
from tests.lab.macs import Asker, Mac, agreed, wait_until
from tests.lab.network_trials import no_mdns_on_the_lan

Figure = Callable[[str, float], None]
SAME = "5" * 16


def noted(mac: Mac, *texts: str) -> bool:
    """Its notes have each of these."""
    status = mac.status()
    return status is not None and all(text in "\n".join(status.notes) for text in texts)


def one_mesh(macs: list[Mac]) -> bool:
    """All see all, under ids of their own."""
    seen = [{n.id for n in status.nodes if n.state == "ok"} if (status := mac.status()) else set() for mac in macs]
    return all(ids == {mac.id for mac in macs} and len(ids) == len(macs) for ids in seen)


def test_the_disk_of_a_serving_mac_is_copied_and_the_copy_takes_a_new_id(
    place: Callable[[int], Place], model: Path, figure: Figure
) -> None:
    lab = place(3)
    entry = lab.mac(1, mesh_priority=200).start()
    old = lab.mac(2, model=model, id_=SAME).start()
    wait_until(lambda: agreed([entry, old]), "two agree")
    copy = lab.mac(3, model=model, id_=old.id)
    shutil.copytree(old.home / "mesh", copy.home / "mesh")  # not the list of workers: all Macs here share their pids
    with (
        Asker(lab.lab, "mac1", "http://localhost:4000/v1", model.name, workers=2) as plain,
        Asker(lab.lab, "mac1", "http://localhost:4000/v1", model.name, stream=True, max_tokens=200) as stream,
    ):
        clients = (plain, stream)
        for client in clients:
            client.go()
        wait_until(lambda: all(len(c.answered()) > 1 for c in clients), "all are being answered")
        copy.start()
        took_s = wait_until(lambda: one_mesh([entry, old, copy]), "three nodes of three ids")
        before = [len(c.answered()) for c in clients]
        wait_until(lambda: all(len(c.answered()) > n + 1 for c, n in zip(clients, before, strict=True)), "all go on")
        said = [client.end() for client in clients]
    figure("from the start of a copied disk until it is a node of its own", took_s)
    assert [[s.error for s in of if s.error] for of in said] == [[], []]
    assert old.id == SAME, "who runs longer keeps it"
    wait_until(lambda: noted(copy, SAME, f"new id {copy.id}"), "its notes say so")
    wait_until(lambda: "copied disk" in copy.output, "and its log")
    wait_until(lambda: SAME in old.output, "the other one says it too")
    wait_until(lambda: {n.name for n in entry.said().nodes} == {"mac1", "mac2", "mac3"}, "each has a name of its own")
    kept = copy.id
    copy.stop()
    copy.start()
    wait_until(lambda: one_mesh([entry, old, copy]), "again after its restart")
    assert copy.id == kept


def test_without_multicast_a_third_mac_brings_the_two_together(place: Callable[[int], Place], figure: Figure) -> None:
    lab = place(3)
    third, old, copy = lab.mac(1), lab.mac(2, id_=SAME), lab.mac(3, id_=SAME)
    with no_mdns_on_the_lan(lab.lab):
        third.start()
        old.start()
        wait_until(lambda: third.coordinator and old.coordinator, "they run")
        third.client.add(old.ip)
        wait_until(lambda: agreed([third, old]), "two agree")
        copy.start()
        wait_until(lambda: copy.coordinator == "mac3", "it runs, and knows nobody")
        copy.client.add(third.ip)
        took_s = wait_until(lambda: one_mesh([third, old, copy]), "three nodes of three ids")
    figure("from `mesh add` of a third until a copied disk is a node of its own", took_s)
    assert old.id == SAME
    assert copy.id != SAME
    wait_until(lambda: noted(copy, SAME), "its notes say so")
    wait_until(lambda: agreed([third, old, copy]), "all agree")


def test_of_two_macs_alone_an_attempt_to_add_the_other_tells_them(place: Callable[[int], Place]) -> None:
    lab = place(2)
    old, copy = lab.mac(1, id_=SAME), lab.mac(2, id_=SAME)
    with no_mdns_on_the_lan(lab.lab):
        old.start()
        wait_until(lambda: old.coordinator, "it runs")
        copy.start()
        wait_until(lambda: copy.coordinator, "so does its copy")
        with pytest.raises(MeshClientError, match=r"is this node itself.*copy"):
            old.client.add(copy.ip)
        wait_until(lambda: copy.id != SAME, "the younger takes a new id")
        assert old.id == SAME
        wait_until(lambda: copy.coordinator == "mac2", "it goes on")
        old.client.add(copy.ip)
        wait_until(lambda: one_mesh([old, copy]), "now they can be one mesh")
