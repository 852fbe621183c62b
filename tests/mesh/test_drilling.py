"""Two real daemons: one asks the other to stop something, and sees what becomes of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh import switch
from mesh.daemon import Daemon
from mesh.errors import MeshError
from mesh.wire import Drill, Drilled
from node.errors import NodeError, NodeErrorCode
from node.types import NodeId
from router.view import NodeState
from tests.mesh.daemons import home_of, mesh_name, running
from tests.mesh.listener import listener
from tests.mesh.waiting import until

AWAY_S = 1.5


@asynccontextmanager
async def pair(folder: Path, **two: Any) -> AsyncIterator[tuple[Daemon, Daemon]]:
    """`one` coordinates; each is alive for the other."""
    mesh = {"mesh_enabled": True, "mesh_name": mesh_name()}
    async with running(home_of(folder, "one", **{"mesh_priority": 200, **mesh})) as one:
        await until(lambda: one.membership.view().coordinator == one.id)
        async with running(home_of(folder, "two", **{**mesh, **two})) as other:
            await until(lambda: met(one, other) and met(other, one))
            yield one, other


def met(one: Daemon, two: Daemon) -> bool:
    """They are linked and agree; also when one of them has just begun a new stay in the mesh."""
    coordinators = {d.membership.view().coordinator for d in (one, two)}
    return (
        two.id in one.membership.alive()
        and len(coordinators) == 1
        and coordinators <= {one.id, two.id}
        and one.overlay is not None
        and two.id in one.overlay._links.linked()
    )


def said(found: dict[str, Any]) -> dict[str, str]:
    return {answer["node"]: answer["why"] for answer in found["answers"]}


def kinds(daemon: Daemon, about: str) -> list[str]:
    return [note.kind for note in daemon.drilling.notes if note.node == about]


async def test_no_drill_while_the_mesh_is_off(daemon: Daemon) -> None:
    with pytest.raises(MeshError, match="mesh enable"):
        await daemon.control.drill("hold", "d", "", "", 1.0)


async def test_a_node_falls_as_if_it_had_crashed_and_comes_back_by_itself(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        boot, port = two.boot, two.config.port
        assert said(await one.control.drill("hold", "d", "", "", 1.0)) == {"one": "", "two": ""}
        with pytest.raises(MeshError, match="names the node"):
            await one.control.drill("node", "d", "", "", AWAY_S)
        found = await one.control.drill("node", "d", "two", "", AWAY_S)
        assert said(found) == {"two": ""}
        async with listener() as (_, wire):
            await until(lambda: two.overlay is None)
            assert "drill that one runs" in (await two.control.mesh_status())["notes"][0]
            assert two.membership.view().coordinator in (None, two.id), "alone it decides itself"
            await until(lambda: two.id not in one.membership.alive())
            gone = one.membership.view().node(two.id)
            assert gone is not None
            assert gone.state is NodeState.DEAD
            assert "its process is gone" in gone.reason, "no bye was said: the port refuses"
            goodbyes = [record for _, record in wire.heard if two.id in record.name and record.ttl <= 1]
        await until(lambda: met(one, two) and met(two, one))
        assert goodbyes == [], "multicast says none either"
        assert two.boot != boot, "as a restarted process"
        assert two.config.port == port
        assert two.mesh.fallen == ""
        assert kinds(one, "two")[-2:] == ["gone", "back"]
        events = [(event["kind"], event["text"]) for event in (await two.control.events(9, ""))["events"]]
        assert any(kind == "drill" and "out of the mesh for" in text for kind, text in events)


async def test_who_asked_need_not_live_for_the_node_to_come_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        await one.control.drill("hold", "d", "two", "", 1.0)
        await one.control.drill("node", "d", "two", "", AWAY_S)
        await until(lambda: two.overlay is None)
        await one.control.disable()
        await until(lambda: two.overlay is not None)
        await until(lambda: two.membership.view().coordinator == two.id)


async def test_a_fallen_node_told_to_leave_the_mesh_stays_out(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        await one.control.drill("hold", "d", "two", "", 1.0)
        await one.control.drill("node", "d", "two", "", 0.3)
        await until(lambda: two.overlay is None)
        await two.control.disable()
        await until(lambda: two.mesh.fallen == "")
        assert two.overlay is None
        assert two.config.mesh_enabled is False


async def test_a_fallen_node_whose_port_somebody_has_taken_tries_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "REJOIN_S", 0.1)
    async with pair(tmp_path) as (one, two):
        await one.control.drill("hold", "d", "two", "", 1.0)
        await one.control.drill("node", "d", "two", "", 0.5)
        await until(lambda: two.overlay is None)
        with socket.create_server(("127.0.0.1", two.config.peer_port)):
            await until(lambda: two.mesh.fallen == "")
            assert two.overlay is None
        await until(lambda: met(one, two) and met(two, one))


async def test_the_coordinator_that_falls_is_succeeded(tmp_path: Path) -> None:
    async with pair(tmp_path) as (one, two):
        await two.control.drill("hold", "d", "one", "", 1.0)
        assert said(await two.control.drill("node", "d", "one", "", AWAY_S)) == {"one": ""}
        await until(lambda: two.membership.view().coordinator == two.id)
        assert [note.node for note in two.drilling.notes if note.kind == "coordinator"][-1] == "two"
        await until(lambda: met(one, two) and met(two, one))


async def test_only_one_drill_and_only_what_a_node_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair(tmp_path) as (one, two):
        assert said(await two.control.drill("hold", "e", "two", "", 1.0)) == {"two": ""}
        assert said(await one.control.drill("hold", "d", "", "", 1.0)) == {"one": "", "two": "another drill runs"}
        assert "no such drill" in said(await one.control.drill("node", "d", "two", "", 1.0))["two"]
        await two.control.drill("release", "e", "two", "", 1.0)
        assert said(await one.control.drill("hold", "d", "two", "", 1.0)) == {"two": ""}
        assert "update it" in said(await one.control.drill("dance", "d", "two", "", 1.0))["two"]
        assert "no model" in said(await one.control.drill("worker", "d", "two", "m", 1.0))["two"]
        assert "itself" in said(await one.control.drill("node", "d", "one", "", 1.0))["one"]
        killed: list[str] = []

        def kill(model: str) -> int:
            if model == "mine":
                raise NodeError(NodeErrorCode.NODE_BUSY, "mine: no process of this node serves it now")
            killed.append(model)
            return 4711

        monkeypatch.setattr(two.host, "kill", kill)
        two.drilling._guard._last = float("-inf")
        assert said(await one.control.drill("worker", "d", "two", "m", 1.0)) == {"two": ""}
        assert killed == ["m"]
        assert "less than 5 s ago" in said(await one.control.drill("worker", "d", "two", "m", 1.0))["two"]
        two.drilling._guard._last = float("-inf")
        assert "no process" in said(await one.control.drill("worker", "d", "two", "mine", 1.0))["two"]
        assert two.overlay is not None


async def test_a_node_too_old_for_a_drill_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair(tmp_path) as (one, two):
        assert two.overlay is not None
        monkeypatch.setattr(two.drilling, "take", lambda node, frame: None)
        monkeypatch.setattr(one.drilling, "_settings", type(one.drilling._settings)(answer_s=0.2))
        found = await one.control.drill("hold", "d", "", "", 1.0)
        assert said(found) == {"one": ""}
        assert [silent["node"] for silent in found["silent"]] == ["two"]
        assert one.drilling._asked == {}
        one.drilling.take(two.id, Drilled(n=1))  # too late: nobody waits for it any more
        one.drilling.take(NodeId("nobody"), Drill(n=1, drill="d", ask="hold"))
