"""What the admin API can ask of a daemon, on a real one."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import pytest
import yaml

from mesh.config import ConfigError
from mesh.daemon import Daemon
from mesh.errors import MeshError
from mesh.home import Home
from node.errors import NodeError
from tests.mesh.waiting import until


async def refused(awaited: Any, kind: type[Exception], text: str) -> Exception:
    with pytest.raises(kind, match=text) as caught:
        await awaited
    return caught.value


async def test_what_it_cannot_do_has_a_reason(daemon: Daemon) -> None:
    control = daemon.control
    error = await refused(control.model("m"), MeshError, "no model 'm' on this node; there is: none")
    assert isinstance(error, MeshError)
    assert error.status == 404
    await refused(control.load("m"), NodeError, "m")
    await refused(control.unload("m"), NodeError, "m")
    await refused(control.route("req-1"), MeshError, "no route 'req-1'")
    await refused(control.drain("bob", None), MeshError, "no node 'bob'.*solo")
    await refused(control.drain("solo", 0), MeshError, "0 s")
    await refused(control.remove_node("solo"), MeshError, "mesh disable")
    await refused(control.add_peer("127.0.0.1:1"), MeshError, "mesh enable")


async def test_a_drain_lasts_until_it_is_ended_or_its_time_is_up(daemon: Daemon) -> None:
    async def drains() -> bool:
        return bool((await daemon.control.mesh_status())["nodes"][0]["state"] == "draining")

    assert (await daemon.control.drain("solo", None))["draining"] is True
    assert await drains()
    assert (await daemon.control.undrain("solo"))["draining"] is False
    assert not await drains()
    await daemon.control.drain(daemon.id, 0.1)
    await until(lambda: not daemon.host.draining)
    found = await daemon.control.drain("solo", 60.0)
    assert found["reason"].startswith("drained by hand until 20")
    await daemon.control.drain("solo", None)  # the later word counts
    assert daemon.host.drain_reason == "drained by hand"
    broken: list[str] = []
    daemon.host.break_off = broken.append  # type: ignore[method-assign]  # nothing runs here that could show it
    await daemon.control.drain("solo", None, now=True)
    assert broken == ["this node was drained at once"]
    assert '"draining":true' in (daemon.home.node / "drain.json").read_text(), "it is on disk when it is confirmed"


async def test_the_mesh_is_switched_on_and_off(daemon: Daemon, daemon_home: Home) -> None:
    boot = daemon.boot
    found = await daemon.control.enable(150, None)
    assert found["mesh"]["enabled"] is True
    assert found["mesh"]["coordinator"] == "solo", "alone, it decides itself"
    assert yaml.safe_load(daemon_home.config.read_text())["mesh-priority"] == 150
    assert daemon.boot != boot, "each stay in a mesh is a life of its own"
    async with aiohttp.ClientSession() as session:
        url, tls = f"https://127.0.0.1:{daemon.config.peer_port}/mesh/v1/status", daemon.peer_tls.client(daemon.id)
        assert tls is not None
        async with session.get(url, ssl=tls) as answer:
            assert (await answer.json())["coordinator"] == daemon.id
        found = await daemon.control.disable()
        assert found["mesh"]["enabled"] is False
        assert daemon.overlay is None
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url, ssl=tls)
    assert yaml.safe_load(daemon_home.config.read_text())["mesh-enabled"] is False


async def test_a_mesh_that_cannot_be_enabled_changes_nothing(
    daemon: Daemon, daemon_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = daemon_home.config.read_text()
    with socket.create_server(("127.0.0.1", daemon.config.peer_port)):
        await refused(daemon.control.enable(None, None), MeshError, f"port {daemon.config.peer_port} is taken")
    assert yaml.safe_load(daemon_home.config.read_text()).get("mesh-enabled") in (None, False)
    assert daemon.overlay is None
    assert not (await daemon.control.mesh_status())["mesh"]["enabled"]
    monkeypatch.setenv("MLX_STACK_MESH_ENABLED", "false")
    await refused(daemon.control.enable(None, None), ConfigError, "MLX_STACK_MESH_ENABLED")
    await refused(daemon.control.enable(-1, None), ConfigError, "mesh-priority")
    monkeypatch.delenv("MLX_STACK_MESH_ENABLED")
    assert yaml.safe_load(daemon_home.config.read_text()).keys() <= yaml.safe_load(before).keys() | {"mesh-enabled"}
    assert (await daemon.control.enable(None, None))["mesh"]["enabled"] is True
