"""Daemons without models in the test's own process: `running`, and the fixtures `daemon_home` and `daemon` of
conftest.py."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.ports import free_port
from mesh import config as configuration
from mesh.daemon import Daemon
from mesh.home import Home
from mesh.log import DaemonLog
from tests.mesh.waiting import until


class NoLog(DaemonLog):
    """Leaves the logging of this process to pytest."""

    def __init__(self) -> None:
        pass

    @property
    def dropped(self) -> int:
        return 0

    def close(self) -> None:
        pass


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("MLX_STACK_")]:
        monkeypatch.delenv(name)


def mesh_name() -> str:
    """One that nobody else uses: daemons of other tests may share this machine's loopback."""
    return f"d{os.getpid()}x{random.randrange(10**6)}"


def home_of(folder: Path, name: str, **settings: Any) -> Home:
    """`name`'s, on loopback, with ports and a mesh of its own unless `settings` say otherwise."""
    home = Home(folder / name)
    home.create()
    own = {"port": free_port(), "peer_port": free_port(), "bind": ["127.0.0.1"], "mesh_name": mesh_name()}
    edit(home, **{**own, "node_name": name, **settings})
    return home


def edit(home: Home, **changes: Any) -> None:
    found = yaml.safe_load(home.config.read_text()) if home.config.exists() else {}
    found |= {key.replace("_", "-"): value for key, value in changes.items()}
    home.config.write_text(yaml.safe_dump(found))


@asynccontextmanager
async def running(home: Home) -> AsyncIterator[Daemon]:
    """The daemon of `home` from when it serves, its mesh too if it has one; it is stopped afterwards."""
    made = Daemon(home, configuration.load(home), NoLog())
    task = asyncio.ensure_future(made.run())
    try:
        await until(lambda: home.read_pid() is not None or task.done())
        await until(lambda: made.overlay or not made.config.mesh_enabled or task.done())
        assert not task.done(), task.exception()
        yield made
        assert not task.done(), task.exception()
    finally:
        made.stop(0.0)
        await asyncio.wait_for(task, 20)
    assert home.read_pid() is None


@pytest.fixture
def daemon_home(tmp_path: Path, bare_environment: None) -> Home:
    return home_of(tmp_path, "solo")


@pytest.fixture
async def daemon(daemon_home: Home) -> AsyncIterator[Daemon]:
    async with running(daemon_home) as made:
        yield made
