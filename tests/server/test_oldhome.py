"""The recorded home of an older mlx-stack, unedited, under the real daemon with real workers."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.ports import free_port
from demo.model import build_tiny, default_cache
from tests import oldhome
from tests.server.daemons import START_S, Node, wait_for

pytestmark = pytest.mark.server

FAKE_CAFFEINATE = '#!/bin/sh\necho "$$ $@" >> "$RECORD"\nexec sleep 600\n'


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


class OldNode(Node):
    """A daemon of a home that is found by $HOME alone; only its own ports are told, by the environment."""

    def __init__(self, user_home: Path) -> None:
        self.name, self.home = "old", oldhome.place(user_home).root
        self.port, self.peer_port = free_port(), free_port()
        self.process = None
        self.record = user_home / "caffeinate"
        self.programs = user_home / "bin"
        self.programs.mkdir()
        (self.programs / "caffeinate").write_text(FAKE_CAFFEINATE)
        (self.programs / "caffeinate").chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        mine = {k: v for k, v in super().environment.items() if k != "MLX_STACK_HOME"}
        told = {"PORT": str(self.port), "PEER_PORT": str(self.peer_port), "BIND": "127.0.0.1", "NODE_NAME": "old"}
        return {
            **mine,
            **{f"MLX_STACK_{key}": value for key, value in told.items()},
            "HOME": str(self.home.parent),
            "MLX_STACK_MEMORY_BUDGET": "4GB",
            "RECORD": str(self.record),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
        }


@pytest.fixture(scope="module")
def old(short_folder: Path, tiny_model: Path, other_tiny_model: Path) -> Iterator[OldNode]:
    user_home = short_folder / "old"
    user_home.mkdir()
    node = OldNode(user_home)
    third = build_tiny(default_cache() / "tiny-c", seed=5)
    for tier, model in zip(oldhome.TIERS, (tiny_model, other_tiny_model, third), strict=True):
        shutil.copytree(model, node.home / "models" / oldhome.FOLDERS[tier])
    yield node
    node.stop()


def test_it_starts_unedited_and_its_tiers_answer(old: OldNode) -> None:
    before = oldhome.files(oldhome.Home(old.home))
    free = {tier: is_free(port) for tier, port in oldhome.PORTS.items()}
    old.start()
    old.wait_models()
    client = old.openai()
    assert {*oldhome.TIERS, *oldhome.TIERS.values()} <= {model.id for model in client.models.list()}
    for tier, model in oldhome.TIERS.items():
        answer = client.chat.completions.create(
            model=tier, messages=[{"role": "user", "content": "Hello"}], max_tokens=3, temperature=0
        )
        assert answer.model == model
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
    ports = {
        tier: [w for w in old.workers() if any(folder in word for word in w.cmdline())]
        for tier, folder in oldhome.FOLDERS.items()
    }
    for tier, found in ports.items():
        assert found, tier
        if free[tier]:
            assert any(str(oldhome.PORTS[tier]) in worker.cmdline() for worker in found), tier
    log = (old.home / "logs" / "daemon.log").read_text(encoding="utf-8")
    said = [w for w in old.client.status().warnings if "vllm" in w or "no effect" in w]
    assert len(said) == 3
    for warning in said:
        assert log.count(warning) == 1, warning
    after = oldhome.files(oldhome.Home(old.home))
    assert {name for name in before if before[name] != after[name]} == set()


def test_what_happened_is_kept_and_followed(old: OldNode) -> None:
    kinds = [(e["kind"], e["model"]) for e in old.json("logs", "--events")["events"]]
    assert kinds[0] == ("start", "")
    for model in oldhome.TIERS.values():
        assert kinds.index(("load", model)) < kinds.index(("ready", model))
    old.cli("models", "unload", "fast")
    news = old.client.follow_events(1, "fast")
    assert (event := next(news)).kind == "unload"
    assert event.model == oldhome.TIERS["fast"]
    assert "unload" in old.cli("logs", "fast", "--events", "--tail", "1").stdout
    old.cli("models", "load", "fast")
    assert next(e for e in news if e.kind == "ready").data["load_s"] > 0
    shown = old.json("models", "show", "fast")
    assert shown["state"] == "ready"
    assert shown["reserved_bytes"] > 0


def test_while_it_serves_the_machine_is_kept_awake(old: OldNode) -> None:
    client = old.openai()
    stream = client.chat.completions.create(
        model="standard",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=200_000,
        temperature=0,
        stream=True,
    )
    next(iter(stream))
    wait_for("caffeinate was started", lambda: old.record.exists() and old.record.read_text().endswith("\n"))
    stream.close()
    pids = {line.split()[0]: line.split()[1:] for line in old.record.read_text().splitlines()}
    assert all(words == ["-i", "-w", str(old.pid)] for words in pids.values())


def test_after_the_end_events_are_read_from_the_file(old: OldNode) -> None:
    pids = [int(line.split()[0]) for line in old.record.read_text().splitlines()]
    old.cli("down")
    assert old.ended(START_S) == 0
    assert old.json("logs", "--events", "--tail", "1")["events"][0]["kind"] in ("unload", "stop")
    wait_for("the machine may sleep again", lambda: not any(map(psutil.pid_exists, pids)))
