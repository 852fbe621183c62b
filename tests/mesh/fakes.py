"""A daemon's admin API that answers what a test says, on a real unix socket."""

from __future__ import annotations

import json
import socketserver
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from mesh.home import Home


class Admin:
    """What the fake daemon answers, by "METHOD /path", and what it was asked. A bytes answer is sent as it is."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []

    def answer(self, call: str, body: Any, status: int = 200) -> None:
        self.answers[call] = (status, body)


class AdminServer(socketserver.ThreadingUnixStreamServer):
    """On a unix socket; `admin` says what it answers."""

    daemon_threads = True

    def __init__(self, path: Path, admin: Admin) -> None:
        super().__init__(str(path), _Handler)
        self.admin = admin


class _Handler(BaseHTTPRequestHandler):
    server: AdminServer
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
