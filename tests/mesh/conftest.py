"""Homes and daemons that tests of the mesh ask for by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.home import Home
from tests.mesh.daemons import bare_environment, daemon, daemon_home  # noqa: F401 - fixtures
from tests.mesh.fakes import Admin, AdminServer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home that commands find."""
    for variable in ("MLX_STACK_PORT", "MLX_STACK_PEER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLX_STACK_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def admin(home: Home) -> Iterator[Admin]:
    """A running daemon, as far as commands can see."""
    admin = Admin(home)
    with home.lock():
        path = home.prepare_socket()
        server = AdminServer(path, admin)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        home.write_pid(path)
        try:
            yield admin
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
