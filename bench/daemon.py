"""A real daemon of a bench: in a home of its own, on loopback, ended with its workers whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.ports import free_port
from mesh.client import MeshClient, MeshClientError
from mesh.home import Home

START_LIMIT_S = 120.0
LOAD_LIMIT_S = 300.0
STOP_LIMIT_S = 60.0
LOOK_EVERY_S = 0.1
ROOT = Path(__file__).resolve().parents[1]


class Daemon:
    """`up --foreground` of `home`, which `running` made."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.url = home, f"http://127.0.0.1:{port}"
        self.client = MeshClient(home / "daemon.sock", timeout_s=20.0)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when its admin API answers. Raises RuntimeError when it does not come."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLX_STACK_")}
        env |= {"MLX_STACK_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "mesh.cli", "up", "--foreground"]
        with (self.home / "printed").open("ab") as printed:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, start_new_session=True
            )
        end = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the daemon does not come: {(self.home / 'printed').read_text()[-1000:]}")
            time.sleep(LOOK_EVERY_S)

    def _answers(self) -> bool:
        try:
            self.client = MeshClient.of(Home(self.home), timeout_s=20.0)
            self.client.status()
        except (MeshClientError, OSError):
            return False
        return True

    def wait_ready(self) -> None:
        """Until every model can answer. Raises RuntimeError when that takes too long."""
        end = time.monotonic() + LOAD_LIMIT_S
        while not ((models := self.client.models()) and all(m.state in ("ready", "busy") for m in models)):
            if time.monotonic() > end:
                raise RuntimeError(f"not loaded: {[(m.name, m.state, m.error) for m in models]}")
            time.sleep(LOOK_EVERY_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> list[int]:
        """In order if it can, else by force; the pids of workers that it has left behind (they are ended then)."""
        if self._process is None or self._process.poll() is not None:
            return []
        workers = children(self.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        orphans = [w for w in workers if alive(w)]
        for orphan in orphans:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()
        return [o.pid for o in orphans]


@contextmanager
def running(folder: Path, tiers: Sequence[dict[str, Any]], **config: Any) -> Iterator[Daemon]:
    """A daemon that serves `tiers`, with keys of config.yaml written with `_` for `-`."""
    port, peer_port = free_port(), free_port()
    home = folder / "home"
    (home / "stacks").mkdir(parents=True)
    settings = {"node-name": "bench", "port": port, "peer-port": peer_port, "bind": ["127.0.0.1"]}
    settings |= {key.replace("_", "-"): value for key, value in config.items()}
    (home / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    stack = {"schema_version": 1, "name": "bench", "tiers": list(tiers)}
    (home / "stacks" / "default.yaml").write_text(yaml.safe_dump(stack), encoding="utf-8")
    daemon = Daemon(home, port)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


def children(pid: int, *, deep: bool = True) -> list[psutil.Process]:
    """Every process below `pid` now, zombies too; or only those that it started itself."""
    try:
        return psutil.Process(pid).children(recursive=deep)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """It runs, and is no zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
