"""The composition root: a daemon without models, started and ended in this process."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import aiohttp
import pytest

from mesh import config as configuration
from mesh.config import ConfigError
from mesh.daemon import Daemon
from mesh.errors import MeshError, leaves
from mesh.home import Home
from mesh.process import run
from router.view import NodeState
from tests.mesh.daemons import edit
from tests.mesh.waiting import until


async def test_a_bare_daemon_says_what_it_is(daemon: Daemon, daemon_home: Home) -> None:
    status = await daemon.control.status()
    assert (status["pid"], status["no_stack"], status["port"]) == (os.getpid(), True, daemon.config.port)
    assert "no stack file" in status["message"]
    assert status["node"]["name"] == "solo"
    assert status["mesh"]["mesh"]["enabled"] is False
    assert await daemon.control.models() == {"models": []}
    assert await daemon.control.routes(5) == {"routes": [], "unreachable": []}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{daemon.config.port}/metrics") as answer:
            assert 'mlx_mesh_build_info{node="solo"' in await answer.text()
        async with session.get(f"http://127.0.0.1:{daemon.config.port}/ready") as answer:
            assert (answer.status, (await answer.json())["ready"]) == (503, False)


async def test_an_edited_file_is_taken_over_but_a_port_waits_for_a_start(daemon: Daemon, daemon_home: Home) -> None:
    port = daemon.config.port
    edit(daemon_home, mesh_priority=7, port=port + 1)
    assert sorted(await daemon.reload()) == ["mesh-priority", "port"]
    assert daemon.report().priority == 7
    assert (daemon.report().port, (await daemon.control.status())["port"]) == (port, port), "what is open is told"
    edit(daemon_home, mesh_priority="high")
    with pytest.raises(ConfigError, match="mesh-priority"):
        await daemon.reload()
    assert daemon.report().priority == 7
    edit(daemon_home, mesh_priority=8, port=port)
    await until(lambda: daemon.report().priority == 8)  # noticed by itself


async def test_a_stack_file_that_appears_is_read(daemon: Daemon, daemon_home: Home) -> None:
    daemon_home.stack.write_text("schema_version: 1\ntiers: [{name: lost, model: /nowhere}]\n")
    await until(lambda: [m.state.value for m in daemon.host.models()] == ["failed"])
    assert not daemon.no_stack
    daemon_home.stack.write_text("tiers: 7\n")
    with suppress(ConfigError):
        await daemon.reload()
    assert len(daemon.host.models()) == 1, "what cannot be read changes nothing"
    daemon_home.stack.unlink()
    await until(lambda: daemon.host.models() == ())


async def test_it_counts_itself_as_a_node_that_serves(daemon: Daemon) -> None:
    view = daemon.membership.view()
    assert [n.state for n in view.nodes] == [NodeState.OK]
    gauges = daemon.metrics.text().decode()
    assert "mlx_mesh_open_requests 0" in gauges.replace(".0", "")


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(daemon_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    port = configuration.load(daemon_home).port
    with socket.create_server(("127.0.0.1", port)):
        assert run(daemon_home) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"mlx-stack: port {port} is taken by ")
    assert len(said.splitlines()) == 1
    assert not daemon_home.locked(), "the home is free again"


def test_a_second_daemon_is_refused(daemon_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    with daemon_home.lock():
        assert run(daemon_home) == 1
    assert str(daemon_home.root) in capfd.readouterr().err


def test_every_cause_in_a_group_of_groups_is_told() -> None:
    one, two = MeshError("a", "one"), MeshError("b", "two")
    assert leaves(ExceptionGroup("x", [ExceptionGroup("y", [one]), two])) == [one, two]
