"""The host with a fake engine: models are unloaded, the node drains and stops, the stack file changes."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.openai import DONE
from node.types import ModelState
from tests.mesh.waiting import until
from tests.node.fakes import FAST, Rig, call, refused, running, spec


async def test_unloading_waits_for_what_is_in_flight() -> None:
    async with running(Rig(slots=1), spec()) as rig:
        await rig.host.load("a")
        tasks = [asyncio.create_task(rig.answer(call(f"r{n}", body=b"gated"))) for n in range(2)]
        await until(lambda: len(rig.host.running()) == 2)
        unload = asyncio.create_task(rig.host.unload("a"))
        await until(lambda: rig.model().state is ModelState.DRAINING)
        assert (await refused(rig, request="late")).code is NodeErrorCode.NODE_BUSY
        with pytest.raises(NodeError, match="being unloaded"):
            await tasks[1]
        assert not rig.engine.workers[0].stopped
        rig.engine.gate.set()
        assert (await tasks[0])[-1] == DONE
        await unload
        assert rig.model().state is ModelState.ABSENT
        assert rig.engine.workers[0].stopped


async def test_unloading_a_crashed_model_waits_for_its_process_too() -> None:
    async with running(Rig(structs.replace(FAST, backoff_first_s=5.0, backoff_cap_s=5.0)), spec()) as rig:
        await rig.host.load("a")
        rig.engine.may_stop.clear()
        rig.engine.workers[0].crash.set_result("killed by signal 9")
        await until(lambda: rig.model().state is ModelState.FAILED)
        unload = asyncio.create_task(rig.host.unload("a"))
        await until(lambda: rig.model().state is ModelState.ABSENT)
        assert not unload.done()
        rig.engine.may_stop.set()
        await unload
        assert rig.engine.living() == []


async def test_unloading_what_waits_for_its_predecessor() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        task = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: len(rig.host.running()) == 1)
        await rig.host.apply([spec(slots=3)])
        unload = asyncio.create_task(rig.host.unload("a"))
        await asyncio.sleep(0)  # it is asked for
        rig.engine.gate.set()
        await asyncio.gather(task, unload)
        assert rig.model().state is ModelState.ABSENT
        assert rig.engine.living() == []


async def test_a_draining_node_finishes_and_takes_no_more() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        task = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: len(rig.host.running()) == 1)
        rig.host.drain("an update")
        error = await refused(rig, request="r2")
        assert error.code is NodeErrorCode.DRAINING
        assert "an update" in error.message
        rig.engine.gate.set()
        assert (await task)[-1] == DONE
        rig.host.undrain()
        await rig.answer(call("r3"))


async def test_stop_ends_what_does_not_finish_in_time() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        task = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: len(rig.host.running()) == 1)
        await rig.host.stop(0.05)
        assert rig.engine.workers[0].stopped
        with pytest.raises(NodeError, match="stopped"):
            await task


async def test_a_cancelled_host_leaves_no_worker_and_no_reader_waiting() -> None:
    rig = Rig(slots=1)
    async with running(rig, spec()):
        await rig.host.load("a")
        tasks = [asyncio.create_task(rig.answer(call(f"r{n}", body=b"gated"))) for n in range(2)]
        await until(lambda: len(rig.host.running()) == 2)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [r.code for r in results if isinstance(r, NodeError)] == [NodeErrorCode.DRAINING] * 2
    assert rig.host.running() == ()


async def test_a_worker_is_killed_by_its_pid_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    async with running(Rig(), spec(), spec("b")) as rig:
        await rig.host.load("a")
        pid = rig.engine.workers[0].pid
        assert rig.host.kill("a") == pid
        assert killed == [(pid, signal.SIGKILL)]
        rig.engine.workers[0].crash.set_result("killed by signal 9")
        await until(lambda: rig.model().state is not ModelState.READY)
        with pytest.raises(NodeError, match="no process"):
            rig.host.kill("a")
        with pytest.raises(NodeError, match="no model 'c'"):
            rig.host.kill("c")
        await rig.host.load("b")
        rig.engine.workers[-1].pid = None
        with pytest.raises(NodeError, match="no process"):
            rig.host.kill(next(m.name for m in rig.host.models() if rig.engine.workers[-1].spec.name == m.name))
    assert killed == [(pid, signal.SIGKILL)]


async def test_new_names_do_not_restart_a_worker_but_new_arguments_do() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        await rig.host.apply([spec(aliases=("fast",), fallback=("b",))])
        assert rig.model().aliases == ("fast",)
        assert len(rig.engine.workers) == 1
        task = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: len(rig.host.running()) == 1)
        await rig.host.apply([spec(slots=3)])
        await rig.host.apply([spec(slots=4)])  # Edited again, before the first edit has taken effect.
        assert "reloaded" in (await refused(rig, request="r2")).message
        assert len(rig.host.running()) == 1
        rig.engine.gate.set()
        assert (await task)[-1] == DONE
        await until(lambda: rig.model().state is ModelState.READY)
        assert rig.model().slots == 4
        assert len(rig.engine.workers) == 2
        assert len(rig.engine.living()) == 1


async def test_a_server_that_knows_the_model_by_another_name_is_asked_anew() -> None:
    async with running(Rig(), spec(source="org/a")) as rig:
        await rig.host.load("a")
        await rig.host.apply([spec(source="org/b")])
        await until(lambda: len(rig.engine.workers) == 2 and rig.model().state is ModelState.READY)
        assert [w.spec.source for w in rig.engine.living()] == ["org/b"]


async def test_who_waits_for_a_load_hears_that_the_stack_file_changed_again() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        task = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: len(rig.host.running()) == 1)
        await rig.host.apply([spec(slots=3)])
        loading = asyncio.create_task(rig.host.load("a"))  # It waits for r1, like the model itself.
        await asyncio.sleep(0)  # it is asked for
        await rig.host.apply([spec(slots=4)])
        with pytest.raises(NodeError, match="meanwhile"):
            await asyncio.wait_for(loading, 5)
        rig.engine.gate.set()
        await task
        await until(lambda: rig.model().state is ModelState.READY)


async def test_a_model_removed_and_added_again_starts_after_its_old_worker_is_gone() -> None:
    async with running(Rig(), spec(), spec("b")) as rig:
        await rig.host.load("a")
        task = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: len(rig.host.running()) == 1)
        await rig.host.apply([spec("b")])
        assert [m.name for m in rig.host.models()] == ["b"]
        assert (await refused(rig, request="r2")).code is NodeErrorCode.MODEL_NOT_FOUND
        await rig.host.apply([spec("b"), spec()])
        loading = asyncio.create_task(rig.host.load("a"))
        rig.engine.gate.set()
        await asyncio.gather(task, loading)
        assert [w.spec.name for w in rig.engine.living()] == ["b", "a"]


async def test_every_change_is_told() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        before = rig.changes
        await rig.answer(call())
        assert rig.changes >= before + 2  # admitted, ended
        before = rig.changes
        rig.host.drain("x")
        assert rig.changes > before
