"""A worker that is ready: whether it lives, gets on, answers, and keeps within its memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from node.errors import NodeError, NodeErrorCode
from node.facts import ModelFact
from node.headroom import GIB
from node.io.engine import ModelSpec, WorkerStats
from node.openai import DONE
from node.settings import NodeSettings
from node.types import ModelState
from tests.mesh.waiting import until
from tests.node.fakes import FAST, Rig, call, running, spec
from tests.node.models import model_directory

QUICK = structs.replace(
    FAST,
    hang_floor_s=0.1,
    hang_blind_s=0.1,
    hang_prefill_tps=1e6,
    frozen_limit_s=0.05,
    measure_every_s=0.01,
    idle_probe_first_s=0.03,
    idle_probe_cap_s=0.06,
    idle_probe_limit_s=0.1,
)
NO_PROBES = structs.replace(QUICK, idle_probe_first_s=1e6, idle_probe_cap_s=1e6)


def whys(rig: Rig, state: ModelState = ModelState.FAILED) -> list[str]:
    return [f.why for f in rig.facts if isinstance(f, ModelFact) and f.state is state]


async def ready(rig: Rig) -> None:
    await until(lambda: rig.model().state is ModelState.READY)


async def replaced(rig: Rig, said: str) -> None:
    """Its first worker was ended for that reason, another one runs."""
    await until(lambda: len(rig.engine.workers) >= 2)
    await ready(rig)
    assert rig.engine.workers[0].stopped
    assert any(said in why for why in whys(rig)), whys(rig)


async def test_a_busy_worker_without_progress_hangs() -> None:
    async with running(Rig(NO_PROBES), spec()) as rig:
        await ready(rig)
        with pytest.raises(NodeError, match="it hangs: no token for") as error:
            await rig.answer(call(body=b"gated"))
        assert error.value.code is NodeErrorCode.MODEL_FAILED
        await replaced(rig, "it hangs: no token for")


async def test_a_post_may_be_silent() -> None:
    """What makes pictures says nothing until they are there: streams that begin later and are as silent hang."""
    async with running(Rig(NO_PROBES), spec(), spec("b")) as rig:
        await ready(rig)
        rig.engine.may_post.clear()
        answer = asyncio.create_task(rig.host.post(call(path="embeddings", body=b"abc")))
        await until(lambda: rig.model().in_flight == 1)
        for number in range(2):
            await until(lambda times=number + 1: rig.states("b").count("ready") == times)
            with pytest.raises(NodeError, match="it hangs: no token for"):
                await rig.answer(call(f"later {number}", "b", b"gated"))
        assert not answer.done()
        rig.engine.may_post.set()
        assert (await answer)[2] == b"cba"


async def test_a_frozen_worker_is_replaced() -> None:
    async with running(Rig(NO_PROBES), spec()) as rig:
        await ready(rig)
        rig.probe.stopped.add(1000)
        await replaced(rig, "stopped by a signal")


async def test_a_dead_generation_behind_a_healthy_port_is_found_by_a_probe() -> None:
    async with running(Rig(QUICK), spec()) as rig:
        await ready(rig)
        await until(lambda: rig.engine.workers[0].probes >= 3)
        rig.engine.probe_errors.append(NodeError(NodeErrorCode.MODEL_FAILED, "nobody generates"))
        await replaced(rig, "a probe failed: nobody generates")


async def test_an_idle_worker_that_never_answers_a_probe_is_replaced() -> None:
    async with running(Rig(QUICK), spec()) as rig:
        await ready(rig)
        rig.engine.may_probe.clear()
        await until(lambda: bool(whys(rig)))
        rig.engine.may_probe.set()
        await replaced(rig, "no answer to a probe")


async def test_a_full_worker_is_not_a_failed_one() -> None:
    async with running(Rig(QUICK), spec()) as rig:
        await ready(rig)
        rig.engine.probe_errors.append(NodeError(NodeErrorCode.NODE_BUSY, "full"))
        await until(lambda: rig.engine.workers[0].probes >= 3)
        assert rig.engine.probe_errors == []
        assert whys(rig) == []


async def test_a_server_that_is_not_ours_is_never_probed() -> None:
    async with running(Rig(QUICK), spec(), spec("b")) as rig:
        await until(lambda: all(model.state is ModelState.READY for model in rig.host.models()))
        theirs, other = sorted(rig.engine.workers, key=lambda worker: worker.spec.name)
        theirs.pid = None
        before, others = theirs.probes, other.probes
        await until(lambda: other.probes >= others + 4)
        assert theirs.probes <= before + 1, "one may have been on its way"


async def away(rig: Rig) -> None:
    """Its server, which is not ours, breaks off an answer, and is gone when it is asked why."""
    await ready(rig)
    rig.engine.workers[0].pid = None
    rig.engine.probe_errors.append(NodeError(NodeErrorCode.MODEL_FAILED, "nothing answers at http://x/v1"))
    rig.engine.start_errors += [NodeError(NodeErrorCode.MODEL_FAILED, "model a: nothing answers") for _ in range(8)]
    with pytest.raises(NodeError):
        await rig.answer(call(body=b"cut"))
    await until(lambda: rig.model().state is ModelState.FAILED)


async def test_a_server_that_is_not_ours_is_asked_after_a_failure_and_until_it_is_back() -> None:
    async with running(Rig(NO_PROBES), spec()) as rig:
        await away(rig)
        assert rig.model().last_error.endswith("nothing answers at http://x/v1")
        await until(lambda: rig.engine.start_errors == [])  # more often than a server of ours may fail
        await ready(rig)
        assert (await rig.answer(call("again")))[-1] == DONE
        assert rig.states() == ["loading", "ready", "failed", "failed", "ready"], (
            "told once, and once as a start says it"
        )


async def test_a_failed_answer_of_a_server_that_still_answers_changes_nothing() -> None:
    async with running(Rig(NO_PROBES), spec()) as rig:
        await ready(rig)
        rig.engine.workers[0].pid = None
        for number in range(3):
            with pytest.raises(NodeError):
                await rig.answer(call(f"r{number}", body=b"cut"))
            await until(lambda seen=number + 1: rig.engine.workers[0].probes == seen)
        assert rig.states() == ["loading", "ready"]


async def test_a_worker_of_ours_is_probed_at_once_after_a_failure() -> None:
    async with running(Rig(NO_PROBES), spec()) as rig:
        await ready(rig)
        rig.engine.probe_errors.append(NodeError(NodeErrorCode.MODEL_FAILED, "nobody generates"))
        with pytest.raises(NodeError):
            await rig.answer(call(body=b"cut"))
        await replaced(rig, "a probe failed: nobody generates")


def mlx_spec(folder: Path) -> ModelSpec:
    return ModelSpec(name="a", path=str(model_directory(folder / "a")))


async def test_what_a_worker_takes_corrects_what_is_reserved(tmp_path: Path) -> None:
    rig = Rig(NO_PROBES)
    rig.probe.taken[1000] = 100 * 2**20
    async with running(rig, mlx_spec(tmp_path)):
        await until(lambda: rig.model().measured_bytes == 100 * 2**20)
        corrected = rig.model().size_bytes
        assert corrected < rig.host.memory().budget_bytes
        await until(lambda: rig.host.memory().used_bytes == corrected)
        rig.probe.taken[1000] = GIB
        await until(lambda: rig.host.memory().used_bytes == rig.model().size_bytes == GIB)
        await rig.host.unload("a")
        assert rig.model().measured_bytes == 0
        assert rig.model().size_bytes == GIB, "remembered for its next load"


async def test_a_worker_that_leaks_is_exchanged_once_it_is_idle(tmp_path: Path) -> None:
    rig = Rig(structs.replace(NO_PROBES, hang_floor_s=1e6, hang_blind_s=1e6))
    rig.probe.taken[1000] = 100 * 2**20
    async with running(rig, mlx_spec(tmp_path)):
        await ready(rig)
        reserved = rig.model().size_bytes
        answer = asyncio.create_task(rig.answer(call(body=b"gated")))
        await until(lambda: rig.model().in_flight == 1)
        rig.probe.taken[1000] = 2 * reserved
        await until(lambda: rig.model().measured_bytes == 2 * reserved)
        assert len(rig.engine.workers) == 1, "never while it answers"
        rig.engine.gate.set()
        assert await answer
        await until(lambda: len(rig.engine.workers) == 2)
        await ready(rig)
        assert any("its worker is exchanged: it takes" in why for why in whys(rig, ModelState.DRAINING))
        assert rig.model().size_bytes < 2 * reserved, "what leaked is not what the next one needs"


def test_the_bounds_are_in_order() -> None:
    settings = NodeSettings()
    assert settings.idle_probe_first_s <= settings.idle_probe_cap_s
    assert settings.hang_floor_s <= settings.hang_blind_s
    assert settings.leak_factor > 1


async def test_a_worker_that_ends_while_it_is_looked_at_is_said_to_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call fails, so a doubt is raised, and the process is gone before that look is over."""
    async with running(Rig(NO_PROBES), spec()) as rig:
        await ready(rig)
        worker, hosted = rig.engine.workers[0], rig.host._roster.find("a")
        well = worker.stats

        async def die() -> WorkerStats:
            worker.crash.set_result("ended by SIGKILL")
            for _ in range(5):  # the task that waits for its end has its turn
                await asyncio.sleep(0)
            hosted.doubt()
            monkeypatch.setattr(worker, "stats", well)
            return worker.alive

        def doubtful(_pid: int, **_: bool) -> int:
            hosted.doubt()
            return 0

        monkeypatch.setattr(rig.probe, "worker_bytes", doubtful)
        monkeypatch.setattr(worker, "stats", die)
        await until(lambda: len(rig.engine.workers) == 2)
        await ready(rig)
        assert any("ended by SIGKILL" in why for why in whys(rig)), whys(rig)
        assert not any("Futures" in why for why in whys(rig)), whys(rig)
