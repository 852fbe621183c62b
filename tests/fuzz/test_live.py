"""A moment of `make fuzz ARGS="--target live"`: hostile bytes over sockets at a real daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROWN_MAX = 64 * 2**20


@pytest.mark.server
def test_a_real_daemon_takes_what_comes_and_nothing_of_it_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.fuzz.live", "--seconds", "6", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads((tmp_path / "status.json").read_text())
    assert row["findings"] == []
    assert row["runs"] > 100
    assert row["rss_grown"] < GROWN_MAX
