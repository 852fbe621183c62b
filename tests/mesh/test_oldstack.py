"""The older mlx-stack beside us: its services, its gateway and its LaunchAgent are recognised, nobody else's are."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mesh import config, oldstack
from mesh.cli import root
from mesh.home import Home


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """service("vllm-mlx"): the pid of a process that is called so, as a console script is."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> int:
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text("import sys; print('up', flush=True); sys.stdin.read()")
        command = [sys.executable, script, *words]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == b"up\n"
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


class _Gateway(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        alive = self.path == "/health/liveliness"
        self.send_response(200 if alive else 404)
        self.end_headers()
        self.wfile.write(b'"I\'m alive!"' if alive else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[int]:
    """The port of something that answers as LiteLLM does."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("command", "its"),
    [
        ("/Users/a/.local/share/uv/tools/vllm-mlx/bin/python /Users/a/.local/bin/vllm-mlx serve x --port 8000", True),
        ("/usr/bin/python3 -m vllm_mlx.server --port 8000", True),
        ("/Users/a/.local/bin/litellm --config /Users/a/.mlx-stack/litellm.yaml --port 4000", True),
        ("/usr/bin/python3 /Users/a/.local/bin/mlx-stack watch", True),
        ("/usr/bin/python3 /Users/a/.local/bin/mlx-stack up --foreground", False),  # we
        ("/usr/bin/python3 -m node.io.mlx_worker --model /Users/a/.mlx-stack/models/vllm-mlx/x", False),
        ("vim /Users/a/notes/litellm.txt.md now", False),
        ("", False),
    ],
)
def test_a_command_line_is_judged_by_what_is_run(command: str, its: bool) -> None:
    assert oldstack.is_its(command) is its


def pid_file(home: Home, name: str, content: str) -> None:
    home.old_pids.mkdir(exist_ok=True)
    (home.old_pids / f"{name}.pid").write_text(content)


def test_only_living_services_of_its_own_count(home: Home, service: Callable[..., int]) -> None:
    assert oldstack.running(home) == {}
    pid_file(home, "standard", str(pid := service("vllm-mlx", "serve")))
    pid_file(home, "fast", str(os.getpid()))  # the number was taken by another program
    pid_file(home, "longctx", "2147483000")
    pid_file(home, "broken", "x")
    (home.root / "watchdog.pid").write_text(str(watchdog := service("mlx-stack", "watch")))
    assert oldstack.running(home) == {"standard": pid, "watchdog": watchdog}


def test_a_gateway_is_known_by_its_own_words(gateway: int) -> None:
    assert oldstack.gateway(gateway)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        free = nobody.getsockname()[1]
    assert not oldstack.gateway(free)


def test_what_is_in_the_way_is_said_with_what_to_type(
    home: Home, tmp_path: Path, service: Callable[..., int], gateway: int
) -> None:
    assert oldstack.in_the_way(home, 1, 501, tmp_path) == ""
    pid_file(home, "standard", str(pid := service("vllm-mlx", "serve")))
    said = oldstack.in_the_way(home, gateway, 501, tmp_path)
    assert f"standard (pid {pid}), its gateway on port {gateway}" in said
    assert f"`mlx-stack down` or `kill {pid}`" in said
    oldstack.agent(tmp_path).parent.mkdir(parents=True)
    oldstack.agent(tmp_path).write_text("")
    assert "launchctl bootout gui/501/com.mlx-stack.watchdog" in oldstack.in_the_way(home, gateway, 501, tmp_path)


@pytest.mark.parametrize("words", [("up",), ("up", "--foreground")])
def test_up_does_not_start_beside_it(
    home: Home, gateway: int, service: Callable[..., int], words: tuple[str, ...]
) -> None:
    config.set_values(home, {"litellm-port": gateway})
    found = CliRunner().invoke(root, words)
    assert found.exit_code == 1
    assert f"its gateway on port {gateway}" in found.stderr
    config.set_values(home, {"litellm-port": 4000})
    pid_file(home, "standard", str(pid := service("vllm-mlx", "serve")))
    found = CliRunner().invoke(root, words)
    assert found.exit_code == 1
    assert f"standard (pid {pid})" in found.stderr
    assert not home.locked()
