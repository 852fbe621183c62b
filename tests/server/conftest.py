"""The demo models, built once and kept (demo/model.py), engines whose logs go where a test can read them, and daemons.

A failing test shows the end of the log of each daemon that lives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from demo.model import build_chat, build_tiny, default_cache
from node.io.engine import ModelSpec
from node.io.mlx import MlxEngine, MlxWorker
from node.io.process import TOKEN_VARIABLE
from node.io.registry import Registry
from node.settings import EngineSettings
from tests.server.daemons import LIVE, Node, agree, mesh_of, tier
from tests.server.hub import Hub


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """SmolLM2-135M-Instruct: knows the capital of France, at about ten tokens a second."""
    return build_chat(default_cache())


@pytest.fixture(scope="session")
def tiny_model(chat_model: Path) -> Path:
    """Says words without sense, at about a thousand tokens a second."""
    return build_tiny(default_cache() / "tiny-a", seed=1)


@pytest.fixture(scope="session")
def other_tiny_model(chat_model: Path) -> Path:
    """Like `tiny_model`, but says other words."""
    return build_tiny(default_cache() / "tiny-b", seed=2)


@pytest.fixture(scope="session")
def slow_model(chat_model: Path) -> Path:
    """Like `tiny_model`, but slow enough that one can act while it reads and writes."""
    return build_tiny(default_cache() / "tiny-30-layers", layers=30, seed=3)


@pytest.fixture
def engine(tmp_path: Path) -> MlxEngine:
    return MlxEngine(
        EngineSettings(start_limit_s=120.0, exit_notice_s=30.0), logs=tmp_path / "logs", registry=Registry()
    )


@pytest.fixture
async def started(engine: MlxEngine) -> AsyncIterator[Callable[..., Awaitable[MlxWorker]]]:
    """started(directory, name=..., **ModelSpec fields): a running worker, which is stopped when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(directory: Path, name: str = "", **fields: Any) -> MlxWorker:
            spec = ModelSpec(name=name or directory.name, path=str(directory), **fields)
            worker = engine.worker(spec, lambda _: None)
            stack.push_async_callback(worker.stop, 5.0)
            await worker.start()
            return worker

        yield start


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        report.sections += [(f"{node.name}, pid {node.pid}", node.log()[-6000:]) for node in LIVE]


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """Where homes go: admin sockets want short paths."""
    folder = Path(tempfile.mkdtemp(prefix="mlx-t-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(short_folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=short_folder))


@pytest.fixture
def node(folder: Path) -> Iterator[Callable[..., Node]]:
    """node(name, tiers, **config): a node that is not started yet; stopped when the test ends."""
    made: list[Node] = []

    def make(name: str, tiers: Any = (), **config: Any) -> Node:
        made.append(Node(folder, name, tiers, **config))
        return made[-1]

    yield make
    for one in reversed(made):
        one.stop()


@pytest.fixture
def decoy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a worker to whoever knows its pid and command line only."""
    code = "print('up', flush=True); import time; time.sleep(600)"
    env = {**os.environ, TOKEN_VARIABLE: "somebody else's"}
    argv = [sys.executable, "-c", code, "node.io.mlx_worker"]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def trio_up(
    short_folder: Path, chat_model: Path, tiny_model: Path, slow_model: Path
) -> Iterator[tuple[Node, Node, Node]]:
    """ada coordinates and holds only `quick`; bob has `slow` and the chat model, cyd `slow` and `quick`."""
    quick = tier(tiny_model, name="quick")
    slow = tier(slow_model, name="slow")
    nodes = mesh_of(
        short_folder,
        ada={"tiers": [quick]},
        bob={"tiers": [slow, tier(chat_model, name="chat")]},
        cyd={"tiers": [slow, quick]},
    )
    yield nodes[0], nodes[1], nodes[2]
    for node in reversed(nodes):
        node.stop()


@pytest.fixture
def trio(trio_up: tuple[Node, Node, Node]) -> tuple[Node, Node, Node]:
    """They agree: a machine too busy to send heartbeats in time may have made them lose each other meanwhile."""
    agree(*trio_up)
    return trio_up


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that every daemon of this test asks, with a cache of its own."""
    with Hub().running() as hub:
        for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE"))]:
            monkeypatch.delenv(name)
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def hub_model(slow_model: Path, tmp_path: Path) -> Path:
    """A repository: a model of 2 MB, 8 MB beside it that only need to be fetched, and what nobody needs."""
    folder = tmp_path / "repository"
    shutil.copytree(slow_model, folder)
    (folder / "more.safetensors").write_bytes(os.urandom(8 * 2**20))
    (folder / "pytorch_model.bin").write_bytes(b"x" * 2**20)
    (folder / "README.md").write_text("# A model")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder
