"""`mlx-stack mesh drill` as it is typed: what it refuses, and what it prints."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from mesh import cli_drill
from mesh.drill import Report, Stopped
from mesh.home import Home
from mesh.render import plain
from tests.mesh.commands import MESH, MODEL, NODE, STATUS, run

B = {**NODE, "name": "b", "id": "2", "coordinator": True}
SWITCHED: dict[str, Any] = MESH["mesh"]
TWO = {**MESH, "nodes": [NODE, B]}
STEP = Stopped(
    what="worker", node="b", detected_s=0.12, handed_over_s=0.34, back_s=9.5, pause_s=0.5, requests=40, resumed=2,
    retried=1, ran=True,
)  # fmt: skip
GOOD = Report(
    model="smol", edge="a", clients=6, seconds=20.0, requests=44, lost=0,
    steps=(STEP, Stopped(what="node", left_out="no node is named but the coordinator")),
)  # fmt: skip


class FakeRun:
    """Instead of mesh/drill_run.py's."""

    report = GOOD
    made: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, mesh: Any, load: Any, plan: Any, **of: Any) -> None:
        self.made.append((plan, of["clients"], of["seconds"]))
        self._say = of["say"]

    def run(self) -> Report:
        self._say("6 clients ask smol")
        return self.report


@pytest.fixture
def drilled(admin: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cli_drill, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "made", [])
    admin.answer("GET /v1/mesh/status", TWO)
    admin.answer("GET /v1/status", STATUS)
    return admin


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "NODE"),
        (("b", "--clients", "0"), "--clients"),
        (("b", "--clients", "33"), "--clients"),
        (("b", "--seconds", "4"), "--seconds"),
        (("b", "--seconds", "301"), "--seconds"),
        (("b", "--only", "disk"), "--only"),
        (("b",), "--yes"),
        (("b", "--json"), "--yes"),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_is_begun(drilled: Any, words: tuple[str, ...], said: str) -> None:
    found = run("mesh", "drill", *words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert FakeRun.made == []


@pytest.mark.parametrize(
    ("mesh", "named", "said"),
    [
        ({**TWO, "mesh": {**SWITCHED, "enabled": False}}, "b", "the mesh is off on this node"),
        (TWO, "a", "name another node"),
        (TWO, "z", "no node 'z'"),
        ({**TWO, "nodes": [NODE, {**B, "models": [{**MODEL, "state": "loading"}]}]}, "b", "only a answers for 'smol'"),
    ],
)
def test_what_cannot_be_drilled_is_one_line_and_exit_code_1(drilled: Any, mesh: Any, named: str, said: str) -> None:
    drilled.answer("GET /v1/mesh/status", mesh)
    found = run("mesh", "drill", named, "--yes", "--json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert FakeRun.made == []


def test_a_daemon_that_does_not_run_is_told(home: Home) -> None:
    found = run("mesh", "drill", "b", "--yes")
    assert found.exit_code == 1
    assert "mlx-stack up" in found.stderr


def test_it_asks_first_and_says_exactly_what_it_will_do(drilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_drill, "_asks", lambda: True)
    found = run("mesh", "drill", "b", input="n\n")
    assert found.exit_code == 1
    assert "1. kill the model server of smol on b" in found.stdout
    assert "2. cut b, which coordinates, off the mesh for 10 s" in found.stdout
    assert "no node: no node is named but the coordinator" in found.stdout
    assert FakeRun.made == []
    found = run("mesh", "drill", "b", input="y\n")
    assert found.exit_code == 0
    assert len(FakeRun.made) == 1


def test_people_see_a_table_and_programs_json(drilled: Any) -> None:
    found = run("mesh", "drill", "b", "--yes", "--clients", "3", "--seconds", "7", "--model", "fast")
    assert found.exit_code == 0
    assert found.stdout == "6 clients ask smol\n" + plain(list(cli_drill.page(GOOD)))
    lines = found.stdout.splitlines()
    row = next(line for line in lines if line.startswith("worker  "))
    assert row.split()[:4] == ["worker", "b", "120", "ms"]
    assert lines[-1] == "none of 44 requests lost; all is as before"
    plan, clients, seconds = FakeRun.made[0]
    assert (plan.model, plan.steps[0].model, clients, seconds) == ("fast", "smol", 3, 7.0)
    found = run("mesh", "drill", "b", "--yes", "--json")
    assert json.loads(found.stdout)["steps"][0]["resumed"] == 2


def test_exit_code_1_when_something_was_lost_or_is_missing(drilled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Stopped(what="worker", node="b", requests=40, lost=2, why_lost={"stream_lost": 2})
    bad = Report(
        model="smol", edge="a", clients=6, seconds=20.0, requests=44, lost=2, steps=(lost,), missing=("b is dead",),
        changed=("a coordinates now, b did before",),
    )  # fmt: skip
    monkeypatch.setattr(FakeRun, "report", bad)
    found = run("mesh", "drill", "b", "--yes")
    assert found.exit_code == 1
    assert found.stderr == ""
    assert "worker: 2 lost: stream_lost" in found.stdout
    assert "worker: nothing of the drill ran on b" in found.stdout
    assert "a coordinates now, b did before" in found.stdout
    assert "2 of 44 requests lost; not as before: b is dead" in found.stdout
    assert run("mesh", "drill", "b", "--yes", "--json").exit_code == 1
