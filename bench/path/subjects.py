"""What is measured: nginx and haproxy as references, our daemon as it ships, and nothing at all in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
from msgspec import Struct

from bench.daemon import Daemon, running
from bench.path.native import built, tool_path
from bench.ports import free_port

PROXY_CORE: Final = 0
LOAD_CORE: Final = 1  # the loader, the engine and this program
MODEL: Final = "fake"
SLOTS: Final = 1024  # the most that a tier may have
START_LIMIT_S = 20.0
JOIN_LIMIT_S = 60.0
LOOK_EVERY_S = 0.05
REFERENCES: Final = ("nginx", "haproxy")

# No request of ours is written to disk before it is passed on, as it would be above the 16 KiB that nginx holds else.
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
worker_rlimit_nofile 20000; user {user};
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; client_body_buffer_size 128k;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ least_conn; server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s; }} }}
}}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend in
  bind 127.0.0.1:{port}
  default_backend engines
backend engines
  balance leastconn
  server engine 127.0.0.1:{engine}
"""


class Subject(Struct, frozen=True):
    """One way to the engine: where to ask, and the roots of the process trees that serve there."""

    name: str
    port: int
    pids: tuple[int, ...] = ()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def engine() -> Iterator[Subject]:
    """The fake engine itself: `direct`, nothing in between."""
    port = free_port()
    with on_core(LOAD_CORE), started([str(built("engine")), str(port)], port) as process:
        yield Subject("direct", port, (process.pid,))


@contextmanager
def started(command: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that takes connections on `port`. Raises RuntimeError when it does not come."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + START_LIMIT_S
        while not _takes_connections(port):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                said = process.communicate()[1].decode(errors="replace")
                raise RuntimeError(f"{command[0]} does not come: {said[-1000:]}")
            time.sleep(LOOK_EVERY_S)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _takes_connections(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


@contextmanager
def subject(name: str, engine_port: int, folder: Path) -> Iterator[Subject]:
    """nginx, haproxy, ours or two, ready and on its core."""
    folder.mkdir(parents=True)
    with on_core(PROXY_CORE), ExitStack() as stack:
        if name in REFERENCES:
            yield stack.enter_context(_reference(name, engine_port, folder))
            return
        nodes = _nodes(stack, name, engine_port, folder)
        yield Subject(name, _port(nodes[0]), tuple(n.pid for n in nodes))


@contextmanager
def _reference(name: str, engine_port: int, folder: Path) -> Iterator[Subject]:
    port, file, program = free_port(), folder / f"{name}.conf", tool_path(name)
    assert program is not None
    text = NGINX if name == "nginx" else HAPROXY
    user = psutil.Process().username()
    file.write_text(text.format(port=port, engine=engine_port, folder=folder, user=user), encoding="utf-8")
    words = ["-p", str(folder), "-c", str(file)] if name == "nginx" else ["-db", "-f", str(file)]
    with started([program, *words], port) as process:
        yield Subject(name, port, (process.pid,))


def _nodes(stack: ExitStack, name: str, engine_port: int, folder: Path) -> list[Daemon]:
    """The node that is asked first. Of `two` it has no model, and the other one coordinates: every request of the edge
    crosses to it twice, once to be placed and once to be answered."""
    tier: dict[str, Any] = {"name": MODEL, "model": MODEL, "engine": "external", "slots": SLOTS}
    tier["url"] = f"http://127.0.0.1:{engine_port}/v1"
    mesh = f"path-{name}-{os.getpid()}-{engine_port}"
    serving = stack.enter_context(
        running(folder / "serving", [tier], node_name="serving", mesh_enabled=True, mesh_name=mesh, mesh_priority=100)
    )
    serving.wait_ready()
    if name != "two":
        return [serving]
    edge = stack.enter_context(
        running(folder / "edge", [], node_name="edge", mesh_enabled=True, mesh_name=mesh, mesh_priority=50)
    )
    _wait_joined(edge)
    return [edge, serving]


def _wait_joined(edge: Daemon) -> None:
    """Until the edge can place requests. Raises RuntimeError when that takes too long."""
    end = time.monotonic() + JOIN_LIMIT_S
    while True:
        nodes = [n for n in edge.client.mesh_status().nodes if n.state == "ok"]
        if len(nodes) == 2 and any(m.state in ("ready", "busy") for n in nodes for m in n.models):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"two nodes did not become one mesh: {[(n.name, n.state) for n in nodes]}")
        time.sleep(LOOK_EVERY_S)


def _port(daemon: Daemon) -> int:
    return int(daemon.url.rsplit(":", 1)[1])
