"""The host with a fake engine: an answer from call to end, and its counts at every step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.errors import NodeError, NodeErrorCode
from node.facts import WorkerFact
from node.io.calls import ALIVE
from node.io.engine import ModelSpec, WorkerStats
from node.io.flow import GATHERED_BLOCKS
from node.openai import DONE
from node.settings import EngineSettings, NodeSettings
from node.types import ModelState, Resume
from tests.mesh.waiting import until
from tests.node.fakes import GIB, Rig, call, data, ours, refused, running, spec, spoken, usage
from tests.node.models import mlx_spec
from tests.node.scripted import served


async def test_an_answer_is_blocks_then_usage_then_done() -> None:
    async with running(Rig(), spec()) as rig:
        blocks = [b async for b in served(rig.host, call())]
        said = [b for b in blocks if b != ALIVE]
        assert said == [data("Hel"), data("lo"), b': usage {"prompt":40,"cached":8,"completion":2}\n\n', DONE]
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
        waiting = served(rig.host, call("r2"))
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
        stream = served(rig.host, call(body=b"gated"))
        assert await spoken(stream) == data("Hel")
        await stream.aclose()
        assert rig.host.running() == ()
        await until(lambda: rig.engine.workers[0].closed_streams == 1)
        assert rig.ended()[-1].outcome == "cancelled"


async def test_a_slow_reader_stops_the_worker() -> None:
    async with running(Rig(), spec()) as rig:
        stream = served(rig.host, call(body=b"flood"))
        assert [await spoken(stream) for _ in range(2)] == [data("Hel"), data("0")]
        worker = rig.engine.workers[0]
        await until(lambda: worker.said > GATHERED_BLOCKS)
        said = worker.said
        for _ in range(20):
            await asyncio.sleep(0)  # the worker has its turns
        assert worker.said == said < 100, "nobody reads"
        rest = [b async for b in stream]
        assert len([b for b in rest if b.startswith(b"data: {")]) == 300


async def test_the_silent_second_is_filled_while_the_worker_thinks() -> None:
    async with running(Rig(), spec()) as rig:
        stream = served(rig.host, call(body=b"gated"))
        assert await spoken(stream) == data("Hel")
        assert await anext(stream) == ALIVE
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


async def test_an_answer_begun_elsewhere_goes_on_only_where_the_engine_can() -> None:
    async with running(Rig(), spec()) as rig:
        assert rig.model().resume is Resume.REPLAY
        assert (await refused(rig, resumes=True)).code is NodeErrorCode.CANNOT_RESUME
        rig.engine.resume = Resume.CONTINUE
        assert rig.model().resume is Resume.CONTINUE
        assert DONE in await rig.answer(call(resumes=True))
        assert (rig.model().prefill_tps, rig.model().decode_tps) == (None, None)  # its usage is of the whole answer


async def test_a_worker_that_cannot_do_what_its_engine_promised_refuses() -> None:
    rig = Rig()
    rig.engine.resume = Resume.CONTINUE
    rig.engine.may_start.clear()
    async with running(rig, spec()):
        late = asyncio.create_task(refused(rig, resumes=True))
        await until(lambda: rig.host.running() != ())
        rig.engine.resume = Resume.REPLAY
        rig.engine.may_start.set()
        assert (await late).code is NodeErrorCode.CANNOT_RESUME
