"""The host with a fake engine: loads, calls, crashes, drains, and its counts at every step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.facts import WorkerFact
from node.io.calls import ALIVE
from node.io.engine import ModelSpec, WorkerStats
from node.openai import DONE
from node.settings import EngineSettings, NodeSettings
from node.types import ModelState
from tests.node.fakes import FAST, GIB, Rig, call, data, running, spec, until, usage
from tests.node.test_weights import model_directory


def mlx_spec(folder: Path, name: str, **more: object) -> ModelSpec:
    """A model whose budget is a bit over 1 GiB: 0.5 fixed and 0.5 x 1.1 of KV."""
    directory = model_directory(folder / name, layers=32, heads=8, head_dim=64, context=8192)
    return ModelSpec(name=name, path=str(directory), **more)  # type: ignore[arg-type]


def ours() -> ModelSpec:
    """One whose server is a process of this node's, unlike `spec()`."""
    return structs.replace(spec(), engine="command")


async def refused(rig: Rig, **fields: object) -> NodeError:
    with pytest.raises(NodeError) as error:
        await rig.answer(call(**fields))  # type: ignore[arg-type]
    return error.value


async def test_an_answer_is_blocks_then_usage_then_done() -> None:
    async with running(Rig(), spec()) as rig:
        blocks = [b async for b in rig.host.serve(call())]
        assert blocks == [ALIVE, data("Hel"), data("lo"), b': usage {"prompt":40,"cached":8,"completion":2}\n\n', DONE]
        (fact,) = rig.ended()
        assert (fact.outcome, fact.usage.prompt, fact.error) == ("ok", 40, None)
        assert fact.wait_ms is not None
        assert fact.ttft_ms is not None
        assert fact.wait_ms <= fact.ttft_ms <= fact.total_ms
        assert rig.model().prefill_tps is not None
        assert rig.model().decode_tps is None  # two tokens tell nothing


async def test_the_usage_event_stays_for_a_client_that_asked() -> None:
    async with running(Rig(), spec()) as rig:
        assert usage(40, 8, 2) in await rig.answer(call(wants_usage=True))


async def test_an_alias_is_served_under_the_models_own_name() -> None:
    async with running(Rig(), spec(aliases=("standard",))) as rig:
        await rig.answer(call(model="standard"))
        assert rig.engine.workers[0].names == ["a"]


async def test_an_unknown_model_and_one_with_a_problem() -> None:
    async with running(Rig(), spec("bad", problem="no such directory: /nowhere"), spec()) as rig:
        assert (await refused(rig, model="zzz")).code is NodeErrorCode.MODEL_NOT_FOUND
        error = await refused(rig, model="bad")
        assert error.code is NodeErrorCode.MODEL_FAILED
        assert "/nowhere" in error.message
        assert (rig.model("bad").state, rig.model("bad").error) == (ModelState.FAILED, "no such directory: /nowhere")
        with pytest.raises(NodeError, match="nowhere"):
            await rig.host.load("bad")
        await rig.answer(call())  # The others are served.


async def test_missing_weights_and_unknown_engines_are_problems(tmp_path: Path) -> None:
    specs = ModelSpec(name="gone", path=str(tmp_path / "gone")), ModelSpec(name="odd", engine="gpt")
    async with running(Rig(), *specs) as rig:
        assert "no such directory" in (rig.model("gone").error or "")
        assert "unknown engine 'gpt'" in (rig.model("odd").error or "")
        assert rig.engine.workers == []


async def test_peers_are_told_the_bounds_of_the_prompt_cache_that_workers_have(tmp_path: Path) -> None:
    assert NodeSettings().cache_seqs == EngineSettings().prompt_cache_seqs
    async with running(Rig(), mlx_spec(tmp_path, "m"), spec()) as rig:
        assert (rig.model("m").cache_tokens, rig.model("m").cache_seqs) == (8192, 1000)  # room for one such text
        assert (rig.model("a").cache_tokens, rig.model("a").cache_seqs) == (0, 0)


async def test_a_disk_that_fails_is_a_problem_of_that_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pulled_out(directory: Path) -> None:
        raise OSError(5, "Input/output error", str(directory))

    monkeypatch.setattr("node.io.weights.shape", pulled_out)
    async with running(Rig(), ModelSpec(name="m", path=str(tmp_path))) as rig:
        assert "Input/output error" in (rig.model("m").error or "")


async def test_weights_that_appear_later_are_loaded(tmp_path: Path) -> None:
    async with running(Rig(), ModelSpec(name="m", path=str(tmp_path / "m"))) as rig:
        mlx_spec(tmp_path, "m")
        await rig.host.load("m")
        assert rig.model("m").state is ModelState.READY


async def test_a_worker_says_how_its_start_goes() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        rig.engine.progress[0]("reading weights")
        assert WorkerFact(model="a", text="reading weights") in rig.facts


# Slots and the line


async def test_slots_plus_an_equal_line_then_refused() -> None:
    async with running(Rig(slots=2), spec()) as rig:
        await rig.host.load("a")
        tasks = [asyncio.create_task(rig.answer(call(f"r{n}", body=b"gated"))) for n in range(4)]
        await until(lambda: len(rig.host.running()) == 4)
        assert (rig.model().in_flight, rig.model().queue_depth, rig.model().state) == (2, 2, ModelState.BUSY)
        assert [r.started for r in rig.host.running()] == [True, True, False, False]
        error = await refused(rig, request="r5")
        assert error.code is NodeErrorCode.NODE_BUSY
        assert error.retry_after_s is not None
        rig.engine.gate.set()
        assert all(blocks[-1] == DONE for blocks in await asyncio.gather(*tasks))
        assert (rig.model().in_flight, rig.model().queue_depth, rig.model().state) == (0, 0, ModelState.READY)
        assert rig.engine.workers[0].most_streams == 2


async def test_a_waiting_call_hears_that_it_is_alive() -> None:
    async with running(Rig(slots=1), spec()) as rig:
        await rig.host.load("a")
        first = asyncio.create_task(rig.answer(call("r1", body=b"gated")))
        await until(lambda: rig.model().in_flight == 1)
        waiting = rig.host.serve(call("r2"))
        assert [await anext(waiting) for _ in range(3)] == [ALIVE] * 3
        await waiting.aclose()
        assert rig.model().queue_depth == 0
        assert rig.ended()[-1].wait_ms is None
        rig.engine.gate.set()
        await first


async def test_the_same_attempt_runs_once() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.answer(call("r", attempt=1))
        assert "already here" in (await refused(rig, request="r", attempt=1)).message
        await rig.answer(call("r", attempt=2))


async def test_a_deadline_ends_a_call_that_waits_and_one_that_runs() -> None:
    async with running(Rig(slots=1), spec()) as rig:
        await rig.host.load("a")
        runs = asyncio.create_task(rig.answer(call("r0", body=b"gated", deadline_s=2.0)))
        await until(lambda: rig.engine.workers[0].streams == 1)
        waits = asyncio.create_task(rig.answer(call("r1", body=b"gated", deadline_s=0.05)))
        errors = await asyncio.gather(runs, waits, return_exceptions=True)
        assert [e.code for e in errors if isinstance(e, NodeError)] == [NodeErrorCode.NODE_BUSY] * 2
        assert rig.model().in_flight == 0
        assert rig.engine.workers[0].closed_streams == 1


# Clients that leave


async def test_a_client_that_leaves_frees_the_slot_and_closes_the_stream() -> None:
    async with running(Rig(), spec()) as rig:
        stream = rig.host.serve(call(body=b"gated"))
        while await anext(stream) != data("Hel"):
            pass
        await stream.aclose()
        assert rig.engine.workers[0].closed_streams == 1
        assert rig.host.running() == ()
        assert rig.ended()[-1].outcome == "cancelled"


async def test_a_slow_reader_stops_the_worker() -> None:
    async with running(Rig(structs.replace(FAST, stream_blocks=4)), spec()) as rig:
        stream = rig.host.serve(call(body=b"flood"))
        taken = [await anext(stream) for _ in range(3)]
        await asyncio.sleep(0)
        assert taken[1:] == [data("Hel"), data("0")]
        (admitted,) = rig.host._roster.models["a"].calls.values()
        assert admitted._out.qsize() <= 4
        rest = [b async for b in stream]
        assert len([b for b in rest if b.startswith(b"data: {")]) == 300


async def test_the_silent_second_is_filled_while_the_worker_thinks() -> None:
    async with running(Rig(), spec()) as rig:
        stream = rig.host.serve(call(body=b"gated"))
        seen = [await anext(stream) for _ in range(4)]
        assert seen[0] == ALIVE
        assert seen[-1] == ALIVE
        assert data("Hel") in seen
        await stream.aclose()


# Errors of the worker


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"bad", NodeErrorCode.BAD_REQUEST),
        (b"cut", NodeErrorCode.MODEL_FAILED),
        (b"bug", NodeErrorCode.INTERNAL),
    ],
)
async def test_a_failed_answer_is_an_error_and_never_a_silent_end(body: bytes, code: NodeErrorCode) -> None:
    async with running(Rig(), spec()) as rig:
        assert (await refused(rig, body=body)).code is code
        assert rig.model().in_flight == 0
        assert rig.ended()[-1].outcome == "failed"
        await rig.answer(call("next"))


async def test_a_crash_fails_what_runs_and_only_delays_what_waits() -> None:
    async with running(Rig(slots=1), ours()) as rig:
        await rig.host.load("a")
        tasks = [asyncio.create_task(rig.answer(call(f"r{n}", body=b"gated"))) for n in range(2)]
        await until(lambda: len(rig.host.running()) == 2)
        rig.engine.workers[0].crash.set_result("killed by signal 9")
        errors = [r for r in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(r, NodeError)]
        assert [e.code for e in errors] == [NodeErrorCode.MODEL_FAILED, NodeErrorCode.NODE_BUSY]
        assert "signal 9" in errors[0].message
        await until(lambda: rig.model().state is ModelState.READY)
        assert rig.engine.workers[0].stopped
        assert rig.states() == ["loading", "ready", "failed", "loading", "ready"]
        await rig.answer(call("again"))


async def test_a_worker_that_cannot_answer_any_more_is_replaced() -> None:
    async with running(Rig(), spec()) as rig:
        await rig.host.load("a")
        rig.engine.workers[0].alive = WorkerStats(alive=False, why="generation thread died", generated_tokens=7)
        await until(lambda: len(rig.engine.workers) == 2)
        assert "generation thread died" in [
            f.why for f in rig.facts if not isinstance(f, WorkerFact) and hasattr(f, "why")
        ]
        rig.engine.workers[1].alive = WorkerStats(generated_tokens=5)
        await until(lambda: rig.host.worker_stats()["a"].generated_tokens == 12)


async def test_failed_starts_back_off_then_flap_until_load() -> None:
    rig = Rig()
    rig.engine.start_errors = [NodeError(NodeErrorCode.MODEL_FAILED, f"out of memory {n}") for n in range(4)]
    rig.engine.start_errors.append(ValueError("a fault in the engine"))
    async with running(rig, ours()):
        await until(lambda: rig.states().count("failed") == 5)
        assert "`models load`" in (rig.model().error or "")
        error = await refused(rig)
        assert error.code is NodeErrorCode.MODEL_FAILED
        assert error.retry_after_s is None
        await rig.host.load("a")
        assert rig.model().error is None
        await rig.answer(call())


async def test_load_tells_why_it_failed() -> None:
    rig = Rig()
    async with running(rig, spec()):
        await rig.host.unload("a")
        rig.engine.start_errors = [NodeError(NodeErrorCode.MODEL_FAILED, "unsupported model type")]
        with pytest.raises(NodeError, match="unsupported model type"):
            await rig.host.load("a")


# Memory


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
    engine_spec = ModelSpec(name="a", engine="mlx-lm", path="/nowhere")  # never looked at: see below
    rig = Rig(structs.replace(FAST, idle_timeout_s=0.3))
    rig.engine.default_slots = 2
    async with running(rig, structs.replace(engine_spec, engine="command")) as rig:
        await rig.answer(call(keep_alive=float("inf")))
        await asyncio.sleep(0.5)
        assert rig.model().state is ModelState.READY
        await rig.answer(call("r2", keep_alive=0.0))
        await until(lambda: rig.model().state is ModelState.ABSENT)
        await rig.answer(call("r3"))  # Loaded again, and the keep_alive of then is forgotten.
        assert rig.model().state is ModelState.READY
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


# Unload, drain, stop, a changed stack file


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
        await asyncio.sleep(0)
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
        await asyncio.sleep(0)
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


# Other endpoints


async def test_a_post_takes_a_slot_and_gives_the_engines_answer() -> None:
    async with running(Rig(), spec()) as rig:
        assert await rig.host.post(call(path="embeddings", body=b"abc")) == (200, "application/json", b"cba")
        with pytest.raises(NodeError) as error:
            await rig.host.post(call("r2", path="rerank"))
        assert error.value.code is NodeErrorCode.PATH_NOT_SERVED
        assert [f.outcome for f in rig.ended()] == ["ok", "failed"]
        assert rig.host.running() == ()


async def test_hardware_and_budget_are_known_once_it_runs() -> None:
    async with running(Rig(NodeSettings())) as rig:
        assert rig.host.hardware().chip == "Test"
        assert rig.host.memory().budget_bytes == 12 * GIB
        assert rig.host.models() == ()
