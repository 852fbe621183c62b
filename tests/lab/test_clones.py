"""Copied disks: two Macs with one node id. The younger takes a new one by itself; nobody is disturbed, all are told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.client import MeshClientError
from tests.lab.conftest import Place
from tests.lab.macs import Asker, Mac, agreed, wait_until
from tests.lab.test_networks import no_mdns_on_the_lan

Figure = Callable[[str, float], None]
SAME = "5" * 16


def id_of(mac: Mac) -> str:
    return (mac.home / "node" / "id").read_text().strip()


def notes(mac: Mac) -> str:
    status = mac.status()
    return "\n".join(status.notes) if status else ""


def one_mesh(macs: list[Mac]) -> bool:
    """All see all, under ids of their own."""
    seen = [{n.id for n in status.nodes if n.state == "ok"} if (status := mac.status()) else set() for mac in macs]
    return all(ids == {id_of(mac) for mac in macs} and len(ids) == len(macs) for ids in seen)


def test_the_disk_of_a_serving_mac_is_copied_and_the_copy_takes_a_new_id(
    place: Callable[[int], Place], model: Path, figure: Figure
) -> None:
    lab = place(3)
    entry = lab.mac(1, mesh_priority=200).start()
    old = lab.mac(2, model=model, id_=SAME).start()
    wait_until(lambda: agreed([entry, old]), "two agree")
    copy = lab.mac(3, model=model, id_=id_of(old))
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
    assert id_of(old) == SAME, "who runs longer keeps it"
    assert SAME in notes(copy)
    assert f"new id {id_of(copy)}" in notes(copy)
    assert "copied disk" in copy.tail()
    assert SAME in old.tail(), "the other one says it too"
    status = entry.status()
    assert status is not None
    names = {n.name for n in status.nodes}
    assert names == {"mac1", "mac2", "mac3"}
    kept = id_of(copy)
    copy.stop()
    copy.start()
    wait_until(lambda: one_mesh([entry, old, copy]), "again after its restart")
    assert id_of(copy) == kept


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
    assert id_of(old) == SAME
    assert id_of(copy) != SAME
    assert SAME in notes(copy)
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
        wait_until(lambda: id_of(copy) != SAME, "the younger takes a new id")
        assert id_of(old) == SAME
        wait_until(lambda: copy.coordinator == "mac2", "it goes on")
        old.client.add(copy.ip)
        wait_until(lambda: one_mesh([old, copy]), "now they can be one mesh")
