"""mesh/title.py: whole nodes' name keepers on real zeroconf over loopback."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from election.messages import Role
from mesh import gateway
from mesh.addresses import Address, Addresses
from mesh.mdns import Mdns, Service
from mesh.name_owner import NameOwner, hosts_of
from mesh.name_rules import NameRules
from mesh.settings import NameSettings
from mesh.title import Title
from node.types import NodeId, NodeReport
from router.view import NodeView, View
from tests.mesh.listener import resolved
from tests.mesh.waiting import until

L, F, ALONE = Role.COORDINATOR, Role.FOLLOWER, Role.ALONE
QUICK = NameSettings(again_s=0.5, again_soon_s=0.2, question_s=0.2, gateway_every_s=0.2, gateway_again_s=0.2)


@pytest.fixture
def mesh() -> str:
    """A name that no other run has."""
    return f"title-{secrets.token_hex(4)}"


class Node:
    """A node at 10.0.0.`number`. `peers` are those its view knows."""

    def __init__(self, mesh: str, number: int, settings: NameSettings = QUICK) -> None:
        self.id = NodeId(f"{number:016x}")
        self.address = f"10.0.0.{number}"
        self.peers: list[Node] = []
        self.mdns = Mdns(self.id)
        self.owner = NameOwner(self.mdns, settings.ttl_s)
        self.mesh, self.changes = mesh, 0
        self.faults: list[Exception] = []
        self.interfaces = [Address("eth0", 2, self.address, 24)]
        self.addresses = Addresses(read=lambda: tuple(self.interfaces))
        self.title = Title(
            self.owner, self.addresses, self.view, changed=self.changed, failed=self.faults.append, settings=settings
        )

    def view(self) -> View:
        nodes = (self, *self.peers)
        return View(self_id=self.id, mesh_name=self.mesh, mesh_id=self.id4,
                    nodes=tuple(NodeView(report=report(n), addresses=(n.address,)) for n in nodes))  # fmt: skip

    @property
    def id4(self) -> str:
        """Of its mesh."""
        return hashlib.blake2b(self.mesh.encode(), digest_size=2).hexdigest()

    @property
    def rules(self) -> NameRules:
        return self.title._rules

    def changed(self) -> None:
        self.changes += 1

    async def reopen(self) -> None:
        await self.mdns.open(["127.0.0.1"], Service(name=self.id, port=1, txt={}, addresses=(self.address,)))
        self.owner.opened()


def report(node: Node) -> NodeReport:
    return NodeReport(id=node.id, boot="b", name="mini", version="0", protocol=1, priority=100, uptime_s=1.0,
                      addresses=(node.address,))  # fmt: skip


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = []
        try:
            for node in nodes:
                node.peers = [n for n in nodes if n is not node and n.mesh == node.mesh]
                await node.reopen()
                tasks.append(group.create_task(node.title.run()))
            yield
        finally:
            for task in tasks:
                task.cancel()
            for node in nodes:
                node.title.close()
                await node.mdns.close()
    assert [node.faults for node in nodes if node.faults] == []


def rule(coordinator: Node, *nodes: Node) -> None:
    for node in nodes:
        node.title.rule(L if node is coordinator else F, coordinator.id)


async def nameless(node: Node) -> None:
    await until(lambda: node.title.name == "")


async def test_the_name_follows_the_coordinator_and_its_loser_stays_silent(
    mesh: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mesh.name")
    a, b = Node(mesh, 1), Node(mesh, 2)
    (name,) = hosts_of(mesh)
    async with running(a, b):
        rule(a, a, b)
        await until(lambda: a.title.name == name)
        assert await resolved(name) == {"10.0.0.1"}
        for holder, loser in ((b, a), (a, b)) * 3:
            rule(holder, a, b)
            assert holder.title.name == name, "a takeover waits for nobody"
            await nameless(loser)
            await loser.reopen()  # a cable that was out for a moment
        assert await resolved(name) == {"10.0.0.1"}
        assert (a.title.notes(name.rstrip(".")), b.title.notes(name.rstrip("."))) == ([], [])
    said = [record.getMessage() for record in caplog.records]
    assert f"answers for {name.rstrip('.')} with 10.0.0.1" in said
    assert f"answers for {name.rstrip('.')} no more: its successor has it" in said
    assert min(a.changes, b.changes) > 3


async def test_another_address_of_the_coordinator_takes_the_place_of_the_old_one(mesh: str) -> None:
    a = Node(mesh, 1)
    (name,) = hosts_of(mesh)
    async with running(a):
        rule(a, a)
        await until(lambda: a.title.name == name)
        assert await resolved(name) == {"10.0.0.1"}
        a.interfaces[:] = [Address("eth0", 2, "10.0.0.77", 24)]
        a.addresses.refresh()
        await a.reopen()
        assert await resolved(name) == {"10.0.0.77"}


async def test_a_second_mesh_with_this_name_stands_aside_until_the_first_is_gone(mesh: str) -> None:
    first, second = Node(mesh, 1), Node(mesh.upper(), 2)
    (name,) = hosts_of(mesh)
    assert hosts_of(mesh.upper()) == (name,)
    async with running(first, second):
        rule(first, first)
        await until(lambda: first.title.name == name)
        rule(second, second)
        await until(lambda: second.title.name)
        other = f"mlx-mesh-{second.id4}.local."
        assert second.title.name == other
        assert await resolved(name) == {"10.0.0.1"}
        assert await resolved(other) == {"10.0.0.2"}
        (note,) = second.title.notes(other.rstrip("."))
        has, at = name.rstrip("."), other.rstrip(".")
        assert note == f"another mesh here has {has}: this one is at {at}, or give it another `mesh-name`"
        assert first.title.notes(name.rstrip(".")) == []
        first.title.close()
        await first.mdns.close()  # as a Mac that is switched off
        await until(lambda: second.title.name == name)
        assert await resolved(name) == {"10.0.0.2"}
        assert await resolved(other) == {"10.0.0.2"}, "who knows it only by that name goes on"
        assert second.title.notes(name.rstrip(".")) == []


async def test_two_meshes_that_meet_with_one_name_leave_it_to_one(mesh: str) -> None:
    low, high = Node(mesh, 1), Node(mesh.upper(), 2)
    (name,) = hosts_of(mesh)
    async with running(low, high):
        for node in (low, high):
            node.rules._before = "somebody"  # so that neither asks
            rule(node, node)
        assert (low.title.name, high.title.name) == (name, name)
        await until(lambda: high.title.name == f"mlx-mesh-{high.id4}.local.")
        assert low.title.name == name
        assert await resolved(name) == {"10.0.0.1"}


async def test_alone_it_takes_the_name_only_when_something_shows_that_it_hears(
    mesh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears, asked = False, 0

    async def answers(timeout_s: float) -> bool:
        nonlocal asked
        assert timeout_s == QUICK.gateway_s
        asked += 1
        return hears

    monkeypatch.setattr(gateway, "answers", answers)
    a = Node(mesh, 1)
    (name,) = hosts_of(mesh)
    async with running(a):
        a.title.heard("10.0.0.1")
        a.title.rule(ALONE, a.id)
        await until(lambda: asked > 3)
        assert a.title.name == ""
        (note,) = a.title.notes(name.rstrip("."))
        assert note.startswith("nothing is heard from this network")
        hears = True
        await until(lambda: a.title.name == name)
        assert a.title.notes(name.rstrip(".")) == []
    b = Node(mesh.upper() + "b", 2)
    hears = False
    async with running(b):
        b.title.rule(ALONE, b.id)
        b.title.heard("10.0.0.2")  # its own
        assert b.title.name == ""
        b.title.heard("fe80::7%eth0")
        await until(lambda: b.title.name)


async def test_a_node_that_only_has_loopback_needs_to_hear_nobody(mesh: str) -> None:
    a = Node(mesh, 1)
    a.interfaces[:] = [Address("lo", 1, "127.0.0.1", 8)]
    a.addresses.refresh()
    async with running(a):
        a.title.rule(ALONE, a.id)
        await until(lambda: a.title.name)
