"""What the host tells beside answers: why models leave, pressure, draining, cold calls, what is reserved."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.facts import DrainFact, ModelFact, PressureFact
from node.types import ModelState, Pressure
from tests.mesh.waiting import until
from tests.node.fakes import FAST, GIB, Rig, call, running, spec
from tests.node.models import mlx_spec


def causes(rig: Rig, name: str) -> list[tuple[ModelState, str]]:
    return [(f.state, f.cause) for f in rig.facts if isinstance(f, ModelFact) and f.model == name and f.cause]


def phases(rig: Rig) -> Sequence[str]:
    return [f.phase for f in rig.facts if isinstance(f, DrainFact)]


async def test_why_a_model_left_is_one_word() -> None:
    async with running(Rig(), spec(), spec("b")) as rig:
        await rig.host.load("a")
        await rig.host.load("b")
        await rig.host.unload("a")
        assert causes(rig, "a") == [(ModelState.DRAINING, "asked"), (ModelState.ABSENT, "asked")]
        await rig.host.apply([spec()])
        await until(lambda: (ModelState.ABSENT, "removed") in causes(rig, "b"))
        await rig.host.load("a")
        await rig.host.stop(1.0)
        assert causes(rig, "a")[-1] == (ModelState.ABSENT, "stopping")


async def test_an_eviction_and_a_crash_are_told_apart(tmp_path: Path) -> None:
    settings = structs.replace(FAST, memory_budget_bytes=int(1.8 * GIB))
    async with running(Rig(settings), mlx_spec(tmp_path, "x"), mlx_spec(tmp_path, "y")) as rig:
        await until(lambda: rig.model("x").state is ModelState.READY)
        await rig.answer(call("1", "x"))
        assert rig.model("x").reserved_bytes == rig.host.memory().used_bytes > 0
        assert rig.model("y").reserved_bytes == 0
        await rig.answer(call("2", "y"))
        assert (ModelState.DRAINING, "evicted") in causes(rig, "x")
        rig.engine.workers[-1].crash.set_result("exit code 1")
        await until(lambda: (ModelState.FAILED, "crash") in causes(rig, "y"))
        await until(lambda: rig.model("y").state is ModelState.READY)
        assert (rig.model("y").error, rig.model("y").last_error) == (None, "exit code 1")


async def test_a_call_that_found_its_model_absent_is_cold() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        await rig.answer(call("warm"))
        await rig.host.unload("a")
        await rig.answer(call("cold"))
        assert [(fact.id, fact.cold) for fact in rig.ended()] == [("warm", False), ("cold", True)]


async def test_when_it_unloads_is_told_unless_it_stays(tmp_path: Path) -> None:
    settings = structs.replace(FAST, idle_timeout_s=300.0, memory_budget_bytes=8 * GIB)
    specs = mlx_spec(tmp_path, "x"), mlx_spec(tmp_path, "stays", keep_alive=-1.0)
    async with running(Rig(settings), *specs) as rig:
        await rig.answer(call("1", "x"))
        await rig.answer(call("2", "stays"))
        assert 200.0 < (rig.model("x").unloads_in_s or 0.0) <= 300.0
        assert rig.model("stays").unloads_in_s is None


async def test_draining_is_told_with_its_end() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        running_call = asyncio.create_task(rig.answer(call(body=b"gated")))
        await until(lambda: rig.model().in_flight == 1)
        rig.host.drain("by hand")
        assert phases(rig) == ["begun"]
        rig.engine.gate.set()
        await running_call
        assert phases(rig) == ["begun", "drained"]
        rig.host.undrain()
        rig.host.undrain()
        assert phases(rig) == ["begun", "drained", "ended"]
        rig.host.drain("again")
        assert phases(rig)[3:] == ["begun", "drained"]


async def test_a_drain_at_once_breaks_off_what_runs_and_what_waits() -> None:
    async with running(Rig(), spec(slots=1)) as rig:
        await rig.host.load("a")
        calls = [asyncio.create_task(rig.answer(call(str(n), body=b"gated"))) for n in range(2)]
        await until(lambda: (rig.model().in_flight, rig.model().queue_depth) == (1, 1))
        rig.host.drain("an update")
        rig.host.break_off("drained at once")
        for failed in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failed, NodeError)
            assert (failed.code, failed.message) == (NodeErrorCode.DRAINING, "drained at once")
        await until(lambda: phases(rig) == ["begun", "drained"])
        assert {fact.outcome for fact in rig.ended()} == {"busy"}


async def test_pressure_is_told_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, level = Rig(), [Pressure.NORMAL]
    monkeypatch.setattr(rig.probe, "pressure", lambda: level[0])
    async with running(rig, spec()):
        level[0] = Pressure.CRITICAL
        await until(lambda: any(isinstance(f, PressureFact) for f in rig.facts))
        level[0] = Pressure.NORMAL
        await until(lambda: len([f for f in rig.facts if isinstance(f, PressureFact)]) == 2)
    found = [f for f in rig.facts if isinstance(f, PressureFact)]
    assert [f.pressure for f in found] == [Pressure.CRITICAL, Pressure.NORMAL]
    assert found[0].budget_bytes > 0
