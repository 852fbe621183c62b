"""Orphans of a killed daemon, with real processes, frozen ones and decoys among them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec import structs

from node.io.probe import Probe
from node.io.process import TOKEN_VARIABLE
from node.io.registry import Entry, Registry
from tests.mesh.waiting import until

Spawn = Callable[..., subprocess.Popen[bytes]]
WAITS = "print('up', flush=True); import time; time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAITS!r}]).wait()"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """A child in a group of its own that has said that it runs."""
    children: list[subprocess.Popen[bytes]] = []

    def start(code: str = WAITS, token: str = "") -> subprocess.Popen[bytes]:
        env = {k: v for k, v in os.environ.items() if k != TOKEN_VARIABLE}
        env |= {TOKEN_VARIABLE: token} if token else {}
        argv = [sys.executable, "-c", code]
        child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def alive(pid: int) -> bool:
    return Probe().birth(pid) != ""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node" / "workers.json"


def entries(file: Path) -> list[Entry]:
    return msgspec.json.decode(file.read_bytes(), type=list[Entry])


def test_who_runs_is_on_disk_until_it_is_gone(file: Path, spawn: Spawn) -> None:
    registry = Registry(file)
    one, two = spawn(token=registry.token), spawn(token=registry.token)
    registry.add(one.pid, "a", 8000)
    registry.add(two.pid, "b", 8001)
    assert [(e.pid, e.model, e.port, e.token) for e in entries(file)] == [
        (one.pid, "a", 8000, registry.token),
        (two.pid, "b", 8001, registry.token),
    ]
    assert all(e.birth for e in entries(file))
    registry.remove(one.pid)
    registry.remove(one.pid)
    assert [e.pid for e in entries(file)] == [two.pid]


@pytest.mark.parametrize("code", [WAITS, DEAF])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_orphan_is_ended(file: Path, spawn: Spawn, code: str, frozen: bool) -> None:
    killed = Registry(file)
    child = spawn(code, killed.token)
    killed.add(child.pid, "qwen", 8000)
    if frozen:
        child.send_signal(signal.SIGSTOP)
    (said,) = Registry(file).end_orphans()
    assert "qwen" in said
    assert str(child.pid) in said
    assert not alive(child.pid)
    assert child.wait() == -signal.SIGKILL
    assert entries(file) == []
    assert Registry(file).end_orphans() == []


async def test_its_children_go_with_it_also_when_it_went_first(file: Path, spawn: Spawn) -> None:
    killed = Registry(file)
    for leader_first in (False, True):
        child = spawn(PARENT, killed.token)
        (grandchild,) = psutil.Process(child.pid).children()
        killed.add(child.pid, "qwen", 8000)
        if leader_first:
            child.kill()
            child.wait()
        assert len(Registry(file).end_orphans()) == 1
        # Somebody else's to wait for, once its parent is gone.
        await until(lambda pid=grandchild.pid: not alive(pid))


def test_a_copied_home_leaves_the_workers_of_the_original_alone(file: Path, spawn: Spawn) -> None:
    """The copy has workers.json too, and all in it is right; but their daemon lives."""
    original = Registry(file)
    daemon, child = spawn(), spawn(token=original.token)
    original.add(child.pid, "qwen", 8000)
    (entry,) = entries(file)
    birth = Probe().birth(daemon.pid)
    for of, ends in (((daemon.pid, birth), False), ((daemon.pid, "an earlier one"), True)):
        copied = structs.replace(entry, daemon=of[0], daemon_birth=of[1])
        file.write_bytes(msgspec.json.encode([copied]))
        assert len(Registry(file).end_orphans()) == ends
        assert alive(child.pid) is not ends
        assert entries(file) == []


def test_a_decoy_with_a_reused_pid_is_left_alone(file: Path, spawn: Spawn) -> None:
    """Each of the three says that it is not ours: another token, none, or another birth."""
    killed = Registry(file)
    other, none, later = spawn(token="foreign"), spawn(), spawn(token=killed.token)
    birth = Probe().birth
    found = [
        Entry(other.pid, birth(other.pid), killed.token, "a", 1),
        Entry(none.pid, birth(none.pid), killed.token, "b", 2),
        Entry(later.pid, "an earlier one", "an earlier token", "c", 3),
        Entry(2**22 + 1, "long gone", killed.token, "d", 4),
    ]
    file.parent.mkdir()
    file.write_bytes(msgspec.json.encode(found))
    assert Registry(file).end_orphans() == []
    assert all(alive(child.pid) for child in (other, none, later))
    assert entries(file) == []


@pytest.mark.parametrize(("pid", "token"), [(0, ""), (1, ""), (-1, ""), (0, "x"), (None, "")])
def test_an_entry_that_says_no_process_ends_none(file: Path, spawn: Spawn, pid: int | None, token: str) -> None:
    """A process without our variable has an empty token, and who may not be looked at is in no group."""
    there = spawn()
    entry = Entry(there.pid if pid is None else pid, "", token, "a", 1)
    file.parent.mkdir()
    file.write_bytes(msgspec.json.encode([entry]))
    killed: list[Entry] = []

    class Harmless(Registry):
        def _kill(self, entry: Entry, pids: list[int]) -> None:
            killed.append(entry)

    assert Harmless(file).end_orphans() == []
    assert killed == []


def test_a_daemon_that_ends_at_once_takes_its_own_with_it(file: Path, spawn: Spawn) -> None:
    registry = Registry(file)
    mine, frozen, foreign = spawn(token=registry.token), spawn(token=registry.token), spawn()
    frozen.send_signal(signal.SIGSTOP)
    registry.add(mine.pid, "a", 1)
    registry.add(frozen.pid, "b", 2)
    registry.kill()
    assert (mine.wait(), frozen.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    assert alive(foreign.pid)
    assert Registry(file).end_orphans() == []


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"pid": "x"}]', b"\xff"])
def test_a_damaged_registry_is_set_aside(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    (said,) = Registry(file).end_orphans()
    assert str(file) in said
    assert file.with_name("workers.json.bad").read_bytes() == content


def test_without_a_file_nothing_is_written(spawn: Spawn) -> None:
    registry = Registry()
    registry.add(spawn(token=registry.token).pid, "a", 1)
    assert registry.end_orphans() == []
