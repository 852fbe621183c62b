"""A disk without the room, told before a byte is fetched or when it fills up meanwhile; a download process alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.download import Fetched, Planned, Refused, Said
from tests.server.daemons import ROOT, tier, wait_for
from tests.server.downloads import MIB, Make, answer, failed, fetched, shown
from tests.server.hub import Hub

pytestmark = pytest.mark.server


class Worker:
    """One download process as the daemon runs it, in our hands."""

    def __init__(self, hub: Hub, tmp_path: Path, *, file_kib: int = 0) -> None:
        limit = f"ulimit -f {file_kib} && " if file_kib else ""
        self.process = subprocess.Popen(
            ["bash", "-c", limit + 'exec "$0" -m node.io.download_worker org/tiny', sys.executable],
            env={**os.environ, **hub.environment(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def says(self, kind: type[Any]) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = msgspec.json.decode(line, type=Said)
            if isinstance(said, kind):
                return said
        raise AssertionError(f"it ended without saying {kind.__name__}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go on\n")
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=60)


def test_a_write_that_does_not_fit_is_a_full_disk_and_the_rest_comes_later(
    hub: Hub, hub_model: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a disk that fills up meanwhile."""
    hub.add("org/tiny", hub_model)
    worker = Worker(hub, tmp_path, file_kib=4 * 1024)
    plan = worker.says(Planned)
    needed = [p for p in hub_model.iterdir() if p.suffix in (".safetensors", ".json")]
    assert plan.total_bytes == sum(p.stat().st_size for p in needed)
    assert plan.free_bytes > 0
    worker.go()
    why = worker.says(Refused).why
    assert why.startswith("the disk is full: ")
    assert str(tmp_path / "hf" / "hub") in why
    worker.end()
    worker = Worker(hub, tmp_path)
    assert worker.says(Planned).done_bytes >= 4 * MIB
    worker.go()
    assert Path(worker.says(Fetched).path).joinpath("more.safetensors").stat().st_size == 8 * MIB
    worker.end()


def test_it_does_nothing_before_it_may_and_ends_with_its_parent(hub: Hub, hub_model: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", hub_model)
    worker = Worker(hub, tmp_path)
    worker.says(Planned)
    assert worker.end() == 1
    assert not hub.sent


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB. Only root on Linux can mount one, as CI is; in some containers not even root."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "hf"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_by_name_and_the_others_are_served(
    node: Make, hub: Hub, hub_model: Path, tiny_model: Path, small_disk: Path
) -> None:
    small = hub.add("org/tiny", hub_model)
    hub.add("org/huge", _huge(hub_model))
    one = node("solo", [tier(tiny_model, name="quick"), tier("org/huge"), tier("org/tiny")]).start()
    # Before a byte is fetched: what it needs, what there is, and where.
    failed(one, "the disk is full", "(1.2 times that)", "free at " + str(small_disk), name="org/huge")
    assert "huge.safetensors" not in hub.sent
    # While it is fetched: somebody else fills the disk.
    small.bytes_per_s = MIB
    one.stop()
    shutil.rmtree(small_disk / "hub")
    one.stack([tier(tiny_model, name="quick"), tier("org/tiny")])
    one.start()
    fetched(one, 0.2)
    small.hold.clear()  # it must not be over before the disk is full
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 2 * MIB))
    small.bytes_per_s = 0.0
    small.hold.set()
    failed(one, "the disk is full", "still to fetch", str(small_disk))
    wait_for("quick is ready", lambda: shown(one, "quick").state == "ready")
    assert answer(one, "quick")
    filler.unlink()
    one.wait_models("ready", "ready")
    assert answer(one, "org/tiny")


def _huge(hub_model: Path) -> Path:
    """The same with a file that does not fit."""
    folder = hub_model.parent / "huge"
    shutil.copytree(hub_model, folder)
    (folder / "huge.safetensors").write_bytes(os.urandom(16 * MIB))
    return folder
