"""A daemon without models in the test's own process: the fixtures `daemon_home` and `daemon` of conftest.py."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mesh import config as configuration
from mesh.daemon import Daemon
from mesh.home import Home


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def daemon_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """One in a short folder, with ports of its own and a mesh name nobody else uses."""
    for name in [n for n in os.environ if n.startswith("MLX_STACK_")]:
        monkeypatch.delenv(name)
    made = Home(tmp_path / "home")
    made.create()
    port, peer_port = free_ports()
    edit(made, port=port, peer_port=peer_port, bind=["127.0.0.1"], node_name="solo", mesh_name=f"d{os.getpid()}{port}")
    return made


def edit(home: Home, **changes: Any) -> None:
    found = yaml.safe_load(home.config.read_text()) if home.config.exists() else {}
    found |= {key.replace("_", "-"): value for key, value in changes.items()}
    home.config.write_text(yaml.safe_dump(found))


async def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.02)


@pytest.fixture
async def daemon(daemon_home: Home) -> AsyncIterator[Daemon]:
    made = Daemon(daemon_home, configuration.load(daemon_home), SimpleNamespace(dropped=0, close=lambda: None))  # type: ignore[arg-type]
    running = asyncio.ensure_future(made.run())
    await until(lambda: daemon_home.read_pid() is not None or running.done())
    assert not running.done(), running.exception()
    yield made
    made.stop(0.0)
    await asyncio.wait_for(running, 20)
    assert daemon_home.read_pid() is None
