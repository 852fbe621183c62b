"""The host with a fake engine: which models it has in memory, and what calls are told that wait for theirs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.io.engine import ModelSpec
from node.openai import DONE
from node.types import ModelState
from tests.mesh.waiting import until
from tests.node.fakes import FAST, GIB, Rig, call, refused, running, spec
from tests.node.models import mlx_spec


async def test_one_load_at_a_time_pinned_then_largest_first(tmp_path: Path) -> None:
    rig = Rig()
    rig.engine.may_start.clear()
    small = structs.replace(mlx_spec(tmp_path, "small"), context=1024)
    specs = [small, mlx_spec(tmp_path, "large"), structs.replace(small, name="pinned", pinned=True)]
    task = asyncio.create_task(rig.host.run())
    applying = asyncio.create_task(rig.host.apply(specs))
    await until(lambda: len(rig.engine.workers) == 1)
    assert {m.state for m in rig.host.models()} == {ModelState.LOADING}
    rig.engine.may_start.set()
    await applying
    await until(lambda: all(m.state is ModelState.READY for m in rig.host.models()))
    assert [w.spec.name for w in rig.engine.workers] == ["pinned", "large", "small"]
    assert rig.engine.most_starting == 1
    memory = rig.host.memory()
    assert memory.used_bytes == sum(m.size_bytes for m in rig.host.models())
    assert memory.used_bytes + memory.headroom_bytes == memory.budget_bytes == 12 * GIB
    assert all(m.fingerprint for m in rig.host.models())
    await rig.host.stop(1.0)
    assert rig.host.memory().used_bytes == 0
    task.cancel()
    await asyncio.wait({task})


async def test_a_model_that_never_becomes_ready_keeps_no_other_waiting(tmp_path: Path) -> None:
    rig = Rig(structs.replace(FAST, slow_floor_s=0.05, slow_factor=0.0, start_limit_s=1.0))
    rig.engine.stuck.add("stuck")
    stuck = structs.replace(mlx_spec(tmp_path, "stuck"), pinned=True)  # the first to load
    async with running(rig, stuck, mlx_spec(tmp_path, "other")):
        await until(lambda: rig.model("other").state is ModelState.READY)
        assert [w.spec.name for w in rig.engine.workers[:2]] == ["stuck", "other"]
        await until(lambda: "failed" in rig.states("stuck"))
        assert rig.model("stuck").last_error == "not ready within 1 s"
        assert (await rig.answer(call(model="other")))[-1] == DONE


async def test_what_does_not_fit_stays_absent_and_says_why(tmp_path: Path) -> None:
    settings = structs.replace(FAST, memory_budget_bytes=2 * GIB, request_gap_s=60.0, turn_s=60.0)
    async with running(Rig(settings), mlx_spec(tmp_path, "m1"), mlx_spec(tmp_path, "m2")) as rig:
        await until(lambda: rig.model("m1").state is ModelState.READY)
        assert rig.model("m2").state is ModelState.ABSENT
        assert "needs 1.1 GB" in (rig.model("m2").error or "")
        held = asyncio.create_task(rig.answer(call(model="m2")))  # m1 was used a moment ago: it must wait.
        await until(lambda: rig.model("m2").waits_for != "")
        assert rig.model("m2").waits_for.endswith("in its way are m1 1.1 GB (used less than 60 s ago)")
        assert (rig.model("m2").state, rig.model("m2").error) == (ModelState.ABSENT, None)
        await rig.answer(call("r1", model="m1"))  # A blocked load stalls nobody else.
        await rig.host.unload("m1")
        assert (await held)[-1] == DONE
        assert (rig.model("m2").error, rig.model("m2").waits_for) == (None, "")


async def test_idle_models_go_for_what_is_asked_for(tmp_path: Path) -> None:
    settings = structs.replace(FAST, memory_budget_bytes=2 * GIB)
    async with running(Rig(settings), mlx_spec(tmp_path, "m1"), mlx_spec(tmp_path, "m2")) as rig:
        for round_ in range(3):
            for name in ("m2", "m1"):
                assert (await rig.answer(call(f"{name} {round_}", model=name)))[-1] == DONE
        await rig.host.load("m2")
        assert len(rig.engine.living()) == 1


async def test_a_pinned_model_does_not_go_and_a_hold_ends_with_what_it_waited_for(tmp_path: Path) -> None:
    settings = structs.replace(FAST, memory_budget_bytes=2 * GIB, hold_factor=0.1, turn_s=60.0)
    pinned = structs.replace(mlx_spec(tmp_path, "m1"), pinned=True)
    async with running(Rig(settings), pinned, mlx_spec(tmp_path, "m2")) as rig:
        error = await refused(rig, model="m2")
        assert "never fit beside what is pinned (m1 1.1 GB)" in error.message
        busy = structs.replace(pinned, pinned=False)
        await rig.host.apply([busy, rig.host._roster.models["m2"].spec])
        first = asyncio.create_task(rig.answer(call("r1", model="m1", body=b"gated")))
        await until(lambda: rig.model("m1").in_flight == 1)
        error = await refused(rig, request="r2", model="m2")
        assert error.code is NodeErrorCode.NODE_BUSY
        assert error.retry_after_s is not None
        assert "for room: it needs 1.1 GB" in error.message
        assert "m1 1.1 GB (answering)" in error.message
        assert rig.model("m2").waits_for == ""
        with pytest.raises(NodeError, match="waits for room"):
            await rig.host.load("m2")
        await until(lambda: rig.host._keeper.rail.line == ())
        rig.engine.gate.set()
        await first


async def test_a_busy_model_takes_no_new_request_when_another_has_waited_long(tmp_path: Path) -> None:
    settings = structs.replace(FAST, memory_budget_bytes=2 * GIB, hold_floor_s=60.0, turn_s=0.2)
    async with running(Rig(settings), mlx_spec(tmp_path, "m1"), mlx_spec(tmp_path, "m2")) as rig:
        await until(lambda: rig.model("m1").state is ModelState.READY)
        first = asyncio.create_task(rig.answer(call("r1", model="m1", body=b"gated")))
        await until(lambda: rig.model("m1").in_flight == 1)
        other = asyncio.create_task(rig.answer(call("r2", model="m2")))
        await until(lambda: "takes no more" in rig.model("m2").waits_for)
        late = asyncio.create_task(rig.answer(call("r3", model="m1")))
        await until(lambda: rig.model("m1").queue_depth == 1)
        rig.engine.gate.set()
        assert all(blocks[-1] == DONE for blocks in await asyncio.gather(first, other, late))
        order = [f.model for f in rig.ended()]
        assert order == ["m1", "m2", "m1"]


async def test_on_a_node_alone_a_request_is_held_until_its_deadline(tmp_path: Path) -> None:
    settings = structs.replace(FAST, memory_budget_bytes=2 * GIB, hold_factor=0.0, hold_floor_s=0.01, turn_s=60.0)
    async with running(Rig(settings), mlx_spec(tmp_path, "m1"), mlx_spec(tmp_path, "m2")) as rig:
        first = asyncio.create_task(rig.answer(call("r1", model="m1", body=b"gated")))
        await until(lambda: rig.model("m1").in_flight == 1)
        assert (await refused(rig, request="r2", model="m2")).code is NodeErrorCode.NODE_BUSY
        held = asyncio.create_task(rig.answer(call("r3", model="m2", alone=True)))
        await until(lambda: rig.model("m2").queue_depth == 1)
        call_ = next(iter(rig.host._roster.models["m2"].calls.values()))
        assert call_.hold_until == pytest.approx(call_.deadline - 1.0)
        rig.engine.gate.set()
        await first
        assert (await held)[-1] == DONE


async def test_keep_alive_zero_unloads_after_the_answer_and_an_idle_model_goes_by_itself() -> None:
    specs = [ModelSpec(name=name, engine="command", path="/nowhere") for name in "ab"]
    async with running(Rig(structs.replace(FAST, idle_timeout_s=0.3)), *specs) as rig:
        await rig.answer(call(keep_alive=float("inf")))
        await rig.answer(call("r1", "b"))
        await until(lambda: rig.model("b").state is ModelState.ABSENT)  # it was idle for less long than a
        assert rig.model().state is ModelState.READY
        await rig.answer(call("r2", keep_alive=0.0))
        await until(lambda: rig.model().state is ModelState.ABSENT)
        await rig.answer(call("r3"))  # Loaded again, and the keep_alive of then is forgotten.
        assert rig.states().count("ready") == 2
        await until(lambda: rig.model().state is ModelState.ABSENT)


async def test_a_cold_start_is_held_for_and_a_slow_one_given_up(tmp_path: Path) -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.unload("a")
        rig.engine.may_start.clear()
        error = await refused(rig, request="r1")
        assert error.code is NodeErrorCode.NODE_BUSY
        assert "still loading" in error.message
        held = asyncio.create_task(rig.answer(call("r2")))
        await until(lambda: rig.model().queue_depth == 1)
        assert rig.model().state is ModelState.LOADING
        rig.engine.may_start.set()
        assert (await held)[-1] == DONE
