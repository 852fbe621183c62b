"""A real daemon that the system gives few file descriptors: however many connect, it answers, and can still open what
it needs."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

FEW = 256
HELPER = f"""
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW}))
from bench.daemon import running
with running(Path(sys.argv[1]), []) as daemon:
    print(daemon.url, daemon.pid, flush=True)
    sys.stdin.read()
"""


def asked(port: int) -> bytes:
    """Who asks with a body, on a connection that is new."""
    with socket.create_connection(("127.0.0.1", port), 30.0) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        return sock.recv(4096)


def page(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 30.0) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = b""
        while data := sock.recv(65536):
            said += data
    return said.decode()


def test_more_connections_than_descriptors_leave_some_for_whoever_asks(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELPER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as helper:
        assert helper.stdout is not None
        assert helper.stdin is not None
        url, _pid = helper.stdout.readline().split()
        port = int(url.rpartition(":")[2])
        try:
            with ExitStack() as stack:
                for number in range(3 * FEW):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), 30.0))
                    if number % 50 == 0:
                        assert asked(port).startswith(b"HTTP/1.1 400 "), number
                assert asked(port).startswith(b"HTTP/1.1 400 ")
                said = page(port)
            assert 'mlx_mesh_limits_total{app="edge",limit="made_way"}' in said
        finally:
            helper.stdin.close()
            helper.wait(90)
    log = (tmp_path / "home" / "logs" / "daemon.log").read_text()
    assert "Too many open files" not in log
    assert "out of system resource" not in log
