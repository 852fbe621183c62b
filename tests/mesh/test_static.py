"""mesh/static.py: addresses by hand are looked up for as long as their nodes are not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.errors import MeshError
from mesh.settings import PeersSettings
from mesh.static import StaticPeers
from mesh.wire import PROTOCOL, PeerSeen
from node.types import NodeId
from tests.mesh.waiting import until

A, B = NodeId("aa" * 8), NodeId("bb" * 8)
QUICK = PeersSettings(retry_first_s=0.01, retry_max_s=0.02, look_s=0.01)
MINI = PeerSeen(id=A, name="mini", addresses=("100.64.0.2",), via="tailscale", far=True, added=True)


class World:
    """What the addresses lead to, who lives, and what was told."""

    def __init__(self, *addresses: str) -> None:
        self.answers: dict[str, PeerSeen | MeshError] = {}
        self.alive: set[NodeId] = set()
        self.removed: set[NodeId] = set()
        self.found: list[tuple[NodeId, bool]] = []
        self.log: list[str] = []
        self.looked: dict[str, int] = {}
        self.static = StaticPeers(
            self,
            on_found=lambda peer, by_hand: self.found.append((peer.id, by_hand)),
            missing=lambda node: node not in self.alive,
            removed=lambda node: node in self.removed,
            tell=self.log.append,
            settings=QUICK,
        )
        self.static.set(addresses)

    async def node(self, text: str) -> PeerSeen:
        self.looked[text] = self.looked.get(text, 0) + 1
        answer = self.answers.get(text, MeshError("refused", f"nothing listens at {text}"))
        if isinstance(answer, MeshError):
            raise answer
        return answer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.static.run())
        yield
        assert not task.done()
        task.cancel()


async def test_it_is_asked_until_a_node_answers_and_each_problem_is_told_once() -> None:
    w = World("mini")
    async with w.running():
        await until(lambda: w.looked.get("mini", 0) > 3)
        assert w.static.problems == {"mini": "nothing listens at mini"}
        w.answers["mini"] = MeshError("unreachable", "no answer", hint="is it awake?")
        await until(lambda: len(w.log) == 2)
        w.answers["mini"] = MINI
        await until(lambda: w.found)
    assert w.found[0] == (A, False)
    assert w.static.problems == {}
    assert w.log == ["mesh-peers mini: nothing listens at mini", "mesh-peers mini: no answer (is it awake?)"]


async def test_while_its_node_lives_nothing_is_looked_up_and_afterwards_it_is_again() -> None:
    w = World("mini", "nobody")
    w.answers["mini"], w.alive = MINI, {A}
    async with w.running():
        await until(lambda: w.found and w.looked.get("nobody", 0) > 8)
        assert w.looked["mini"] == 1
        w.alive.clear()
        w.answers["mini"] = PeerSeen(id=B, name="mini")  # DNS leads to another machine now
        await until(lambda: (B, False) in w.found)
        assert w.static.found["mini"] == B


async def test_an_address_written_into_the_file_takes_a_removal_back_one_read_at_the_start_does_not() -> None:
    w = World("mini")
    w.answers = {"mini": MINI, "other": PeerSeen(id=B, name="other")}
    w.alive = {A, B}
    async with w.running():
        await until(lambda: w.found)
        w.static.set(["mini", "other"])
        await until(lambda: (B, True) in w.found)
    assert w.found == [(A, False), (B, True)]


async def test_what_is_no_longer_in_the_file_is_not_looked_up() -> None:
    w = World("mini", "gone")
    async with w.running():
        await until(lambda: len(w.static.problems) == 2)
        w.static.set(["mini"])
        await until(lambda: set(w.static.problems) == {"mini"})
        looked = w.looked["gone"]
        await until(lambda: w.looked["mini"] > 8)
        assert w.looked["gone"] == looked


async def test_add_looks_once_and_refuses_another_protocol() -> None:
    w = World()
    with pytest.raises(MeshError, match="nothing listens"):
        await w.static.add("mini")
    w.answers["mini"] = PeerSeen(id=A, name="mini", protocol=PROTOCOL + 1, version="9.0")
    with pytest.raises(
        MeshError, match=r"mini at mini speaks protocol .* \(version 9.0\).*: update this node"
    ) as caught:
        await w.static.add("mini")
    assert caught.value.code == "other_version"
    assert w.found == []
    w.answers["mini"] = MINI
    assert await w.static.add("mini") == MINI
    assert w.found == [(A, True)]


async def test_an_address_of_a_removed_node_is_named_until_it_is_added_again() -> None:
    w = World("mini")
    w.answers["mini"], w.removed = MINI, {A}
    async with w.running():
        await until(lambda: "was removed" in w.static.problems.get("mini", ""))
        assert w.log == [f"mesh-peers mini: {w.static.problems['mini']}"]
        w.removed, w.alive = set(), {A}
        await until(lambda: not w.static.problems)


def test_a_removed_nodes_addresses_are_known_also_before_they_were_looked_up() -> None:
    w = World("mini:4000", "mini.tailnet", "100.64.0.2", "100.64.0.2:4100", "studio")
    w.static.found["studio"] = B
    places = {("mini", 4000), ("100.64.0.2", 4000)}
    assert w.static.others(A, places) == ["100.64.0.2:4100", "studio"]
    assert w.static.others(B, places | {("studio", 4000)}) == ["100.64.0.2:4100"]
    w.static.found["mini:4000"] = B  # as last seen, that address is another node's
    assert w.static.others(A, places) == ["mini:4000", "100.64.0.2:4100", "studio"]
