"""A Mac that fetches 200 MB and loads them goes on being heard in time by the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from demo.model import build_chat, default_cache
from tests.lab.conftest import Place
from tests.lab.macs import ROOT, Mac, wait_until

BYTES = 200 * 2**20
HUB_PORT = 9000
# Prints the kernel's arrival time of each heartbeat that comes in: how busy the listener is does not count.
LISTEN = """
import socket, struct
INCOMING, UDP, PORT = 0, 17, (4001).to_bytes(2, "big")
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as s:
    s.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
    print("listening", flush=True)
    while True:
        packet, notes, _, (_, kind, way, *_) = s.recvmsg(256, 64)
        protocol, start = (packet[9], 4 * (packet[0] & 15)) if kind == 0x0800 else (packet[6], 40)
        if way == INCOMING and protocol == UDP and packet[start + 2:start + 4] == PORT:
            seconds, nanoseconds = struct.unpack("qq", notes[0][2][:16])
            print(seconds + nanoseconds / 1e9, flush=True)
"""


@contextmanager
def running(mac: Mac, *argv: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    """`python ARGV` in the namespace of `mac`; its first line has been printed."""
    command = [sys.executable, *argv]
    process = mac.lab.popen(mac.name, command, stdout=subprocess.PIPE, text=True, cwd=ROOT, **more)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The chat model, and beside it what makes it 200 MB to fetch."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for file in build_chat(default_cache()).iterdir():
        (folder / file.name).symlink_to(file)
    have = sum(p.stat().st_size for p in folder.iterdir())
    (folder / "more.safetensors").write_bytes(os.urandom(BYTES - have))
    return folder


def test_heartbeats_are_in_time_while_200_mb_are_fetched_and_loaded(
    place: Callable[[int], Place],
    repository: Path,
    tmp_path: Path,
    figure: Callable[[str, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = place(3)
    mac1, mac2, hub = lab.mac(1), lab.mac(2), lab.mac(3)  # mac3 is the hub, and no node.
    monkeypatch.setenv("HF_ENDPOINT", f"http://{hub.ip}:{HUB_PORT}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for mac in (mac1, mac2):
        mac.start()
    wait_until(lambda: _state(mac1, "mac2") == _state(mac2, "mac1") == "ok", "they see each other")
    served = ("-m", "tests.server.hub", hub.ip, str(HUB_PORT), f"org/chat={repository}")
    with running(hub, *served), running(mac2, "-c", LISTEN) as listener:
        stack = {"schema_version": 1, "name": "lab", "tiers": [{"name": "chat", "model": "org/chat"}]}
        (mac1.home / "stacks" / "default.yaml").write_text(json.dumps(stack))
        mac1.client.reload()
        seen, states = set[str](), set[str]()

        def ready() -> bool:
            if status := mac2.status():
                seen.update(node.state for node in status.nodes if node.name == "mac1")
            states.update(m.state for m in mac1.client.models())
            return "ready" in states

        took_s = wait_until(ready, "the model is fetched, loaded and ready", 240.0)
        listener.kill()
        assert listener.stdout is not None
        beats = [float(line) for line in listener.stdout if line.strip()]
    figure("200 MB fetched and the model ready", took_s)
    figure("longest gap between two heartbeats meanwhile", max(b - a for a, b in pairwise(beats)))
    assert {"downloading", "loading", "ready"} <= states
    assert seen == {"ok"}


def _state(mac: Mac, name: str) -> str:
    node = mac.sees(name)
    return node.state if node else ""
