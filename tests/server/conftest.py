"""The demo models, built once and kept (demo/model.py), and engines whose logs go where a test can read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from demo.model import build_chat, build_tiny, default_cache
from node.io.engine import ModelSpec
from node.io.mlx import MlxEngine, MlxWorker
from node.settings import EngineSettings


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
    return MlxEngine(EngineSettings(start_limit_s=120.0), logs=tmp_path / "logs", token="tests")


@pytest.fixture
async def started(engine: MlxEngine) -> AsyncIterator[Callable[..., Awaitable[MlxWorker]]]:
    """started(directory, name=..., **ModelSpec fields): a running worker, which is stopped when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(directory: Path, name: str = "", **fields: object) -> MlxWorker:
            spec = ModelSpec(name=name or directory.name, path=str(directory), **fields)  # type: ignore[arg-type]
            worker = engine.worker(spec, lambda _: None)
            stack.push_async_callback(worker.stop, 5.0)
            await worker.start()
            return worker

        yield start
