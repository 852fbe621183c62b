"""`mlx-stack mesh drill` as a person runs it, on three Macs: what it stops is stopped, and nothing is lost."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Place
from tests.lab.macs import ROOT, Mac, agreed, wait_until

WHATS = ["worker", "node", "coordinator"]


@pytest.fixture
def macs(place: Callable[[int], Place], model: Path) -> list[Mac]:
    """mac1 coordinates and holds no model, mac2 and mac3 serve. The drill runs on mac3, which never coordinates. On a
    busy machine mac2 may do so for a while: the drill follows."""
    lab = place(3)
    macs = [lab.mac(1, mesh_priority=200), lab.mac(2, model=model), lab.mac(3, model=model, mesh_priority=0)]
    macs[0].start()
    wait_until(lambda: macs[0].coordinator == "mac1", "the first coordinates")
    for mac in macs[1:]:
        mac.start()
    wait_until(lambda: agreed(macs), "all agree and every model is ready")
    return macs


def drill(mac: Mac, *words: str) -> tuple[int, str, str]:
    """The command on that Mac: exit code, stdout, stderr."""
    done = mac.lab.run(
        mac.name,
        [sys.executable, "-m", "mesh.cli", "mesh", "drill", *words],
        env={**os.environ, "MLX_STACK_HOME": str(mac.home), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_drill_stops_each_in_turn_and_nothing_is_lost(
    macs: list[Mac], model: Path, figure: Callable[[str, float], None]
) -> None:
    began = time.monotonic()
    code, out, err = drill(macs[2], "mac1", "mac2", "--yes", "--json", "--clients", "10", "--seconds", "15")
    assert out, err
    found = json.loads(out)
    print(json.dumps(found, indent=1))
    steps: dict[str, Any] = {step["what"]: step for step in found["steps"]}
    assert [(steps[w]["what"], steps[w]["left_out"]) for w in WHATS] == [(w, "") for w in WHATS]
    assert steps["worker"]["node"] == "mac2"
    for what in WHATS:
        step = steps[what]
        assert step["detected_s"] is not None, f"{what}: this node saw that it was stopped"
        assert step["back_s"] is not None, f"{what}: all was as before again"
        assert step["requests"] > 0
        figure(f"{what}: seen after", step["detected_s"])
        figure(f"{what}: handed over after", step["handed_over_s"] or 0.0)
        figure(f"{what}: longest pause in a stream", step["pause_s"])
    assert any(steps[w]["ran"] for w in WHATS), "something ran where it struck"
    handed = sum(steps[w]["resumed"] + steps[w]["retried"] for w in WHATS)
    assert handed > 0, "something was handed over"
    figure("requests", found["requests"])
    figure("handed over", handed)
    assert steps["coordinator"]["handed_over_s"] is not None, "another one took over"
    gone = [told.message for told in macs[2].log.gone(began)]
    for what in ("node", "coordinator"):
        assert any(f"{steps[what]['node']} is gone" in text for text in gone), f"{what}: its fall was real"
    assert (found["lost"], found["missing"], code) == (0, [], 0), out
    wait_until(lambda: agreed(macs), "the mesh is whole, as the drill says")


def test_what_would_lose_requests_is_refused_and_nothing_is_stopped(macs: list[Mac]) -> None:
    code, out, err = drill(macs[2], "mac3", "--yes", "--json")
    assert (code, out) == (1, "")
    assert "name another node" in err
    assert macs[1].client.unload(macs[1].said().nodes[1].models[0].name)
    wait_until(lambda: [m.state for m in macs[2].node("mac2").models] == ["absent"], "mac2 has it no more")
    code, out, err = drill(macs[2], "mac2", "--yes", "--json")
    assert (code, out) == (1, "")
    assert "only mac3 answers" in err
    assert macs[2].log.gone(0.0) == []
