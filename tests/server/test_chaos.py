"""Workers are killed and frozen while ten clients ask for more models than fit; a daemon is killed while it answers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from openai import APIError

from bench.chaos import Chaos, Plan
from demo.model import build_tiny, default_cache
from tests.server.daemons import WORKER, Node, alive, freeze, tier, wait_for

pytestmark = pytest.mark.server

BUDGET = 950 * 2**20  # of the least two of the models would need more
PLAN = Plan(seconds=15.0, tokens=(24,), kill_every_s=4.0, freeze_every_s=7.0, deadline_s=20.0, grace_s=20.0)


@pytest.fixture
def models(tiny_model: Path, slow_model: Path) -> dict[str, Path]:
    middle = build_tiny(default_cache() / "tiny-4x384", layers=4, width=384, seed=4)
    return {"small": tiny_model, "slow": slow_model, "middle": middle}


def test_every_request_ends_right_or_with_a_named_error(node: Callable[..., Node], models: dict[str, Path]) -> None:
    tiers = [tier(path, name=name) for name, path in models.items()]
    one = node("solo", tiers, memory_budget=BUDGET, request_gap=1).start()
    seen = asyncio.run(Chaos(one, list(models), PLAN, BUDGET).run())
    assert not seen.bad(), seen.table()
    assert seen.killed
    assert seen.frozen
    assert seen.recovery_s is not None, "every model answers as before once nobody disturbs"
    assert seen.workers_most == 1, f"the budget holds one of them: {seen.crowd}"
    assert seen.reserved_most <= BUDGET
    assert seen.bytes_most <= 1.1 * BUDGET
    assert not seen.zombies
    workers = one.workers()
    one.signal(signal.SIGTERM)
    assert one.ended(60.0) == 0
    wait_for("its workers end", lambda: not any(map(alive, workers)))


def works_for(process: psutil.Process, node: Node) -> bool:
    """Whether it was started by a daemon of that home, this one or an earlier one."""
    try:
        home = process.environ().get("MLX_STACK_HOME")
        return home == str(node.home) and WORKER in process.cmdline() and alive(process)
    except psutil.Error:
        return False


async def keep_asking(node: Node, names: list[str], answered: list[str]) -> None:
    """Until the daemon cannot be reached any more; the names of models that have answered go to `answered`."""
    async with node.async_openai() as client:
        while True:
            for name in names:
                try:
                    await client.completions.create(model=name, prompt="a b", max_tokens=60)
                    answered.append(name)
                except APIError:
                    assert node.process is not None
                    if node.process.poll() is not None:
                        return


def test_a_daemon_killed_while_it_answers_leaves_nothing_and_ends_no_stranger(
    node: Callable[..., Node], models: dict[str, Path], decoy: subprocess.Popen[bytes]
) -> None:
    """Its workers end or are ended, one of them frozen in the middle of an answer; each model has one worker then."""
    names = list(models)
    one = node("solo", [tier(path, name=name) for name, path in models.items()]).start().wait_models()
    before = {name: one.worker_of(path.name) for name, path in models.items()}
    file = one.home / "node" / "workers.json"

    async def kill_under_load() -> None:
        answered: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(keep_asking(one, names, answered))
            await asyncio.to_thread(wait_for, "all models answer", lambda: set(answered) == set(names), 120.0)
            await asyncio.to_thread(freeze, before["slow"])
            await asyncio.to_thread(wait_for, "it is asked", lambda: one.model("slow").in_flight)
            entries = json.loads(file.read_text())
            one.signal(signal.SIGKILL)
            await asyncio.to_thread(one.ended)
            file.write_text(json.dumps([*entries, {**entries[0], "pid": decoy.pid, "model": "reused"}]))

    try:
        asyncio.run(kill_under_load())
        one.start().wait_models()
        wait_for("the frozen worker ends", lambda: not any(alive(w) for w in before.values()))
    finally:
        for worker in before.values():
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    assert decoy.poll() is None

    def nothing_double() -> bool:
        workers = sorted(w.pid for w in one.workers())
        ours = sorted(p.pid for p in psutil.process_iter() if works_for(p, one))
        return len(workers) == len(names) and workers == ours == sorted(e["pid"] for e in json.loads(file.read_text()))

    wait_for("each model has one worker, and those are registered", nothing_double)
    with one.openai(timeout=120) as client:
        for name in names:
            assert client.completions.create(model=name, prompt="a b", max_tokens=5).choices[0].text
