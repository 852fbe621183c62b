"""A daemon's admin API that answers what a test says, on a real unix socket."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mesh.home import Home
from tests.mesh.daemons import bare_environment, daemon, daemon_home  # noqa: F401 - fixtures


class Admin:
    """What the fake daemon answers, by "METHOD /path", and what it was asked. A bytes answer is sent as it is."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []

    def answer(self, call: str, body: Any, status: int = 200) -> None:
        self.answers[call] = (status, body)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    admin: Admin


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        call = f"{self.command} {self.path}"
        self.server.admin.asked.append((call, body))
        missing = (404, {"error": {"code": "no_such_endpoint", "message": call}})
        status, answer = self.server.admin.answers.get(call, missing)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.send_header("connection", "close")
        self.end_headers()
        with suppress(BrokenPipeError):  # a caller may have read enough
            self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


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
        server = _Server(str(path), _Handler)
        server.admin = admin
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        home.write_pid(path)
        try:
            yield admin
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
